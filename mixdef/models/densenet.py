"""Densely connected networks with bottlenecks and compression (DenseNet-BC)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.registry import model
from mixdef.kernels.pooling import avg_pool
from mixdef.models.layers import (
  as_images,
  check_depth,
  check_fields,
  check_positive,
  conv_layer,
  drop_channels,
  normalize,
)

_BLOCKS = 3


class DenseNet(nn.Module):
  """Three dense blocks with transitions between them; created by `densenet`."""

  depth: int = 22
  growth: int = 12
  num_classes: int = 10
  dropout: float = 0.0
  spatial_dropout: float = 0.0
  norm: str = "group"
  lowering: str = "auto"
  weight_standardization: bool = False

  def __post_init__(self):
    check_depth(self.depth, unit=6, extra=4)
    check_positive(growth=self.growth)
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]`; rows with `weight [B]` 0 are excluded from statistics."""
    conv = conv_layer(
      self.lowering,
      bias=self.norm == "none",
      standardize=self.weight_standardization,
    )
    norm = functools.partial(
      normalize, norm=self.norm, train=train, weight=weight, lowering=self.lowering
    )
    x = conv(2 * self.growth, 3)(as_images(x))
    for block in range(_BLOCKS):
      for _ in range((self.depth - 4) // 6):
        y = conv(4 * self.growth, 1)(norm(x, relu=True))
        y = conv(self.growth, 3)(norm(y, relu=True))
        y = drop_channels(y, self.spatial_dropout, train=train)
        x = jnp.concatenate([x, y], axis=-1)
      x = norm(x, relu=True)
      if block < _BLOCKS - 1:
        x = avg_pool(conv(x.shape[-1] // 2, 1)(x))
    x = nn.Dropout(self.dropout)(x.mean((1, 2)), deterministic=not train)
    return nn.Dense(self.num_classes)(x)


@model
def densenet(
  depth: int = 22,
  growth: int = 12,
  *,
  num_classes: int = 10,
  dropout: float = 0.0,
  spatial_dropout: float = 0.0,
  norm: str = "group",
  lowering: str = "auto",
  weight_standardization: bool = False,
) -> DenseNet:
  """Create a DenseNet-BC.

  conv 3x3 with 2*growth channels; three blocks of n layers
  `[x, conv3x3(relu(norm(conv1x1(relu(norm(x))))))]`, the 1x1 with 4*growth channels,
  the 3x3 with growth; between blocks norm, ReLU, a 1x1 convolution that halves the
  channels (compression 0.5), mean-pool 2; last norm, ReLU, global mean, dense K. The
  defaults give 69 final features, as in the network of weighted smoothing.

  Args:
    depth: 6n+4 layers: 22, 40, 100.
    growth: channels added by each layer, positive.
    num_classes: K.
    dropout: rate in [0,1) before the dense layer, in training only.
    spatial_dropout: rate in [0,1) of the new channels after each layer of a block.
    norm: "group" (groups = largest divisor of the channels up to 16), "batch" or
      "none".
    lowering: how convolutions are lowered; see `mixdef.kernels.convolution`.
    weight_standardization: standardize each convolution's kernel; see
      `mixdef.kernels.standardized`.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if the depth is not 6n+4 or a field is out of range.

  Deviation: the default is GroupNorm instead of the paper's BatchNorm; see `resnet`.
    The position of spatial dropout is our choice: that of the paper's dropout of
    values.

  Reference: Huang, Liu, van der Maaten, Weinberger, Densely Connected Convolutional
  Networks, CVPR 2017, arXiv 1608.06993.
  """
  return DenseNet(
    depth,
    growth,
    num_classes,
    dropout=dropout,
    spatial_dropout=spatial_dropout,
    norm=norm,
    lowering=lowering,
    weight_standardization=weight_standardization,
  )

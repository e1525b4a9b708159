"""The small convolutional network of the membership-inference literature."""

import functools

import flax.linen as nn
import jax

from mixdef.core.registry import model
from mixdef.kernels import standardized
from mixdef.kernels.convolution import linen_conv
from mixdef.kernels.pooling import max_pool
from mixdef.models.layers import as_images, check_fields, drop_channels

# Xavier-uniform with the ReLU gain sqrt(2); the gain enters squared.
_XAVIER_RELU = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_XAVIER = nn.initializers.xavier_uniform()

# After a valid 5x5 convolution, a map of size 6 has the 2 pixels needed for pooling.
_SMALLEST_VALID = 6


class CNN(nn.Module):
  """Two 5x5 convolutions and two dense layers; created by `cnn`."""

  num_classes: int = 10
  dropout: float = 0.0
  spatial_dropout: float = 0.0
  lowering: str = "auto"
  weight_standardization: bool = False

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]` for `x [B,H,W,C]`; `weight` has no effect."""
    del weight
    x = as_images(x)
    conv = standardized.Conv if self.weight_standardization else nn.Conv
    for layer in range(2):
      valid = layer == 1 and min(x.shape[1:3]) >= _SMALLEST_VALID
      x = conv(
        32,
        (5, 5),
        padding="VALID" if valid else "SAME",
        kernel_init=_XAVIER_RELU,
        conv_general_dilated_cls=functools.partial(linen_conv, self.lowering),
      )(x)
      x = max_pool(nn.relu(x))
      x = drop_channels(x, self.spatial_dropout, train=train)
    x = x.reshape(x.shape[0], -1)
    x = nn.tanh(nn.Dense(128, kernel_init=_XAVIER)(x))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, kernel_init=_XAVIER)(x)


@model
def cnn(
  num_classes: int = 10,
  *,
  dropout: float = 0.0,
  spatial_dropout: float = 0.0,
  lowering: str = "auto",
  weight_standardization: bool = False,
) -> CNN:
  """Create the CNN of ML-Leaks and its successors.

  conv 5x5x32 SAME, ReLU, max-pool 2; conv 5x5x32 VALID, ReLU, max-pool 2; flatten
  (rows, columns, channels); dense 128, tanh; dense K. Xavier-uniform weights, with
  the ReLU gain on convolutions; zero biases. The flattened width is 800 for images
  of 28x28 and 1152 for 32x32.

  Args:
    num_classes: K.
    dropout: rate in [0,1) before the last dense layer, in training only.
    spatial_dropout: rate in [0,1) of whole channels after each pooling.
    lowering: how convolutions are lowered; see `mixdef.kernels.convolution`.
    weight_standardization: standardize each convolution's kernel; see
      `mixdef.kernels.standardized`.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if a field is out of range.

  Deviation: if the map of the second convolution is smaller than 6x6 (images of 8x8), a
  valid 5x5 window leaves nothing to pool, so that layer is SAME as well. The position
  of spatial dropout is our choice.

  Reference: Salem et al., ML-Leaks, NDSS 2019, arXiv 1806.01246.
  """
  return CNN(
    num_classes,
    dropout=dropout,
    spatial_dropout=spatial_dropout,
    lowering=lowering,
    weight_standardization=weight_standardization,
  )

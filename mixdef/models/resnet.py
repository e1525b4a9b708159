"""Residual networks for small images: ResNet-(6n+2) and wide ResNet-(6n+4)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.registry import model
from mixdef.models.layers import (
  as_images,
  check_depth,
  check_fields,
  check_positive,
  conv_layer,
  drop_channels,
  normalize,
)

_WIDTHS = (16, 32, 64)


class ResNet(nn.Module):
  """Basic residual blocks in three stages; created by `resnet`."""

  depth: int = 20
  num_classes: int = 10
  dropout: float = 0.0
  spatial_dropout: float = 0.0
  norm: str = "group"
  lowering: str = "auto"
  weight_standardization: bool = False

  def __post_init__(self):
    check_depth(self.depth, unit=6, extra=2)
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]`; `weight [B]` is 0 for rows outside batch statistics."""
    conv = conv_layer(
      self.lowering,
      bias=self.norm == "none",
      standardize=self.weight_standardization,
    )
    norm = functools.partial(
      normalize, norm=self.norm, train=train, weight=weight, lowering=self.lowering
    )
    x = norm(conv(16, 3)(as_images(x)), relu=True)
    for width in _WIDTHS:
      for block in range((self.depth - 2) // 6):
        stride = 2 if block == 0 and width > _WIDTHS[0] else 1
        y = norm(conv(width, 3, stride)(x), relu=True)
        y = drop_channels(y, self.spatial_dropout, train=train)
        y = norm(conv(width, 3)(y))
        x = nn.relu(_widen(x[:, ::stride, ::stride], width) + y)
    x = nn.Dropout(self.dropout)(x.mean((1, 2)), deterministic=not train)
    return nn.Dense(self.num_classes)(x)


class WideResNet(nn.Module):
  """Pre-activation residual blocks in three wide stages; created by `wide_resnet`."""

  depth: int = 16
  width: int = 4
  num_classes: int = 10
  dropout: float = 0.0
  spatial_dropout: float = 0.0
  norm: str = "group"
  lowering: str = "auto"
  weight_standardization: bool = False

  def __post_init__(self):
    check_depth(self.depth, unit=6, extra=4)
    check_positive(width=self.width)
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]`; `weight [B]` is 0 for rows outside batch statistics."""
    conv = conv_layer(
      self.lowering,
      bias=self.norm == "none",
      standardize=self.weight_standardization,
    )
    norm = functools.partial(
      normalize, norm=self.norm, train=train, weight=weight, lowering=self.lowering
    )
    x = conv(16, 3)(as_images(x))
    for stage, width in enumerate(base * self.width for base in _WIDTHS):
      for block in range((self.depth - 4) // 6):
        stride = 2 if block == 0 and stage > 0 else 1
        y = norm(x, relu=True)
        skip = x if x.shape[-1] == width else conv(width, 1, stride)(y)
        y = norm(conv(width, 3, stride)(y), relu=True)
        y = drop_channels(y, self.spatial_dropout, train=train)
        x = skip + conv(width, 3)(y)
    x = norm(x, relu=True).mean((1, 2))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes)(x)


@model
def resnet(
  depth: int = 20,
  *,
  num_classes: int = 10,
  dropout: float = 0.0,
  spatial_dropout: float = 0.0,
  norm: str = "group",
  lowering: str = "auto",
  weight_standardization: bool = False,
) -> ResNet:
  """Create a CIFAR-style residual network.

  conv 3x3x16, then three stages of n blocks with 16, 32 and 64 channels, the last
  two starting with stride 2; `relu(x + norm(conv(relu(norm(conv(x))))))`; global
  mean; dense K. Shortcuts have no parameters (option A of the paper).

  Args:
    depth: 6n+2 layers: 20, 32, 44, 56.
    num_classes: K.
    dropout: rate in [0,1) before the dense layer, in training only.
    spatial_dropout: rate in [0,1) between the convolutions of each block, of whole
      channels.
    norm: "group" (groups = largest divisor of the channels up to 16), "batch" or
      "none".
    lowering: how convolutions are lowered; see `mixdef.kernels.convolution`.
    weight_standardization: standardize each convolution's kernel; see
      `mixdef.kernels.standardized`.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if the depth is not 6n+2 or a field is out of range.

  Deviation: the default is GroupNorm instead of the paper's BatchNorm, because batch
  statistics couple records, which per-example gradients do not allow. The position of
  spatial dropout is our choice, as in wide residual networks.

  Reference: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition,
  CVPR 2016, arXiv 1512.03385, section 4.2.
  """
  return ResNet(
    depth,
    num_classes,
    dropout=dropout,
    spatial_dropout=spatial_dropout,
    norm=norm,
    lowering=lowering,
    weight_standardization=weight_standardization,
  )


@model
def wide_resnet(
  depth: int = 16,
  width: int = 4,
  *,
  num_classes: int = 10,
  dropout: float = 0.0,
  spatial_dropout: float = 0.0,
  norm: str = "group",
  lowering: str = "auto",
  weight_standardization: bool = False,
) -> WideResNet:
  """Create a wide residual network, WRN-depth-width.

  conv 3x3x16, then three stages of n pre-activation blocks with 16, 32 and 64 times
  `width` channels; `x + conv(relu(norm(conv(relu(norm(x))))))`; norm, ReLU, global
  mean; dense K. A 1x1 convolution is the shortcut where the channels change.

  Args:
    depth: 6n+4 layers: 10, 16, 22, 28, 40.
    width: multiplier of the channels, positive.
    num_classes: K.
    dropout: rate in [0,1) before the dense layer, in training only.
    spatial_dropout: rate in [0,1) between the convolutions of each block, of whole
      channels.
    norm: "group" (groups = largest divisor of the channels up to 16), "batch" or
      "none".
    lowering: how convolutions are lowered; see `mixdef.kernels.convolution`.
    weight_standardization: standardize each convolution's kernel; see
      `mixdef.kernels.standardized`.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if the depth is not 6n+4 or a field is out of range.

  Deviation: the default is GroupNorm; see `resnet`. The paper's dropout between the
  convolutions drops single values, while `spatial_dropout` drops whole channels.

  Reference: Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016,
  arXiv 1605.07146.
  """
  return WideResNet(
    depth,
    width,
    num_classes,
    dropout=dropout,
    spatial_dropout=spatial_dropout,
    norm=norm,
    lowering=lowering,
    weight_standardization=weight_standardization,
  )


def _widen(x: jax.Array, channels: int) -> jax.Array:
  """Pad with zero channels up to `channels`."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))

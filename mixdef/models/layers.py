"""Helpers of the networks: layers, and checks of the networks' fields.

Every parameterized layer is a leaf of `flax.linen`, a `standardized.Conv` or a
`group_norm.GroupNorm`, and is applied once, batch axis first, because rules for
per-example gradients are looked up by layer type.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.check import check_choice, check_count, check_flag, check_number
from mixdef.core.platform import platform
from mixdef.kernels import standardized
from mixdef.kernels.convolution import LOWERINGS, linen_conv
from mixdef.kernels.group_norm import GroupNorm

NORMS = ("group", "batch", "none")
_MAX_GROUPS = 16


def conv_layer(
  lowering: str, *, bias: bool, standardize: bool
) -> Callable[..., nn.Conv]:
  """Return a factory of layers, `conv(channels, size, stride=1) -> nn.Conv`.

  Args:
    lowering: how the convolution is lowered; see `mixdef.kernels.convolution`.
    bias: whether the layer has a bias, which is redundant before a normalization.
    standardize: whether to create a `standardized.Conv`.

  Returns:
    A factory of layers that pad by half the kernel size on all sides.
  """
  layer = standardized.Conv if standardize else nn.Conv

  def conv(channels: int, size: int, stride: int = 1) -> nn.Conv:
    return layer(
      channels,
      (size, size),
      strides=stride,
      padding=size // 2,
      use_bias=bias,
      kernel_init=nn.initializers.he_normal(),
      conv_general_dilated_cls=functools.partial(linen_conv, lowering),
    )

  return conv


def num_groups(channels: int) -> int:
  """Return the largest divisor of `channels` that is at most 16.

  Deviation: De et al. 2022 use 16 groups, but some networks here have widths that 16
  does not divide (DenseNet's 30 and 33 channels get 15 and 11 groups).

  >>> [num_groups(c) for c in (8, 16, 30, 33, 64)]
  [8, 16, 15, 11, 16]
  """
  return next(g for g in range(_MAX_GROUPS, 0, -1) if channels % g == 0)


def normalize(
  x: jax.Array,
  *,
  norm: str,
  train: bool,
  weight: jax.Array | None,
  lowering: str,
  relu: bool = False,
) -> jax.Array:
  """Apply the normalization layer of a network, inside its `nn.compact` method.

  Args:
    x: feature maps `[B,H,W,C]`.
    norm: "group", "batch" (momentum 0.9, statistics in `batch_stats`) or "none".
    train: batch statistics are used and updated only if True.
    weight: `[B]`, 0 marks padding, which is excluded from the batch statistics.
    lowering: lowering of the convolutions. If it does not support forward mode, group
      normalization does not support it either, for speed.
    relu: apply a ReLU to the result, for any `norm`.

  Returns:
    `[B,H,W,C]`.

  Deviation: a batch of only padding has no statistics. It is treated as all zeros, so
  that the running statistics stay finite and do not depend on padded records.
  """
  if norm == "group":
    on_cpu = platform() == "cpu"
    reverse_only = lowering == "canonical" or (lowering == "auto" and on_cpu)
    groups = num_groups(x.shape[-1])
    return GroupNorm(groups, relu=relu, reverse_only=reverse_only)(x)
  if norm == "batch":
    mask = None
    if train and weight is not None:
      mask = (weight > 0)[:, None, None, None]
      empty = ~mask.any()
      x, mask = jnp.where(empty, 0, x), mask | empty
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=mask)
  return nn.relu(x) if relu else x


def drop_channels(x: jax.Array, rate: float, *, train: bool) -> jax.Array:
  """Apply spatial dropout, which keeps or drops whole channels of an image."""
  return nn.Dropout(rate, broadcast_dims=(1, 2))(x, deterministic=not train)


def as_images(x: jax.Array) -> jax.Array:
  """Return images as `[B,H,W,C]`, adding a channel axis if it is missing.

  Raises:
    ValueError: if `x` is neither `[B,H,W]` nor `[B,H,W,C]`, or holds token ids.
  """
  check_quantities(x, "a network for images")
  if x.ndim not in (3, 4):
    raise ValueError(f"images must be [B,H,W] or [B,H,W,C], not {x.shape}; use mlp")
  return x if x.ndim == 4 else x[..., None]


def check_quantities(x: jax.Array, model: str) -> None:
  """Raise if `x` holds integers, which are names such as token ids.

  Raises:
    ValueError: with the networks that read them.
  """
  if jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f"{model} computes with numbers, and these are {x.dtype}, categories such as "
      "token ids: use transformer or gru, or pass quantities as float32"
    )


def check_fields(model: nn.Module) -> None:
  """Raise if a common field of a network is out of range.

  Raises:
    ValueError: the message names the field, its value and its range.
  """
  check_count("num_classes", model.num_classes)
  for name in ("dropout", "spatial_dropout"):
    check_number(name, getattr(model, name, 0.0), 0, below=1)
  for name, choices in (("norm", NORMS), ("lowering", LOWERINGS)):
    check_choice(name, getattr(model, name, choices[0]), choices)
  check_flag("weight_standardization", getattr(model, "weight_standardization", False))


def check_positive(**sizes) -> None:
  """Raise unless all sizes are positive integers.

  Raises:
    ValueError: the message names the first invalid value.
  """
  for name, size in sizes.items():
    check_count(name, size)


def check_depth(depth: int, *, unit: int, extra: int) -> None:
  """Raise unless `depth` is `unit * n + extra` with n at least 1.

  Raises:
    ValueError: the message lists the smallest valid depths.
  """
  check_count("depth", depth)
  if depth <= extra or (depth - extra) % unit:
    valid = ", ".join(str(unit * n + extra) for n in (1, 2, 3))
    raise ValueError(f"depth={depth!r} must be {unit}n+{extra}: {valid}, ...")

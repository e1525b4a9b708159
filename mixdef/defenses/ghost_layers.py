"""The layers that per-example clipping knows by their type, of linen and of NNX."""

import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding

from mixdef.kernels.convolution import linen_conv
from mixdef.models.layer_calls import Layer


class Affine(NamedTuple):
  """A layer that multiplies the inputs of every position by one matrix.

  Attributes:
    inputs: from its input [B,...] to the inputs of its positions [B,...,I].
    kernel: name of the matrix [I,O], whose axes may be split further.
    bias: name of what is added [O], or None.
    width: O.
    transposed: whether the matrix is stored as [O,I].
    patches: whether `inputs` copies, as a convolution's does.
  """

  inputs: Callable
  kernel: str
  bias: str | None
  width: int
  transposed: bool = False
  patches: bool = False


def affine(layer: Layer, x: Any) -> Affine | None:
  """Return the matrix of a layer, or None if it is of another type.

  Args:
    layer: a call of a layer.
    x: its input [B,...].
  """
  module, kind = layer.module, _NAMES.get(layer.kind) or _of_nnx().get(layer.kind)
  if kind is None or not _is_plain(module, layer.kind):
    return None
  if kind == "table":
    if layer.method != "attend":
      return None
    return Affine(_same, "embedding", None, module.num_embeddings, transposed=True)
  if layer.method != "__call__":
    return None
  bias = "bias" if module.use_bias else None
  if kind == "dense":
    return Affine(_same, "kernel", bias, layer.params["kernel"].shape[-1])
  if kind == "general":
    return _general(module, layer.params["kernel"], bias, x)
  patches = _patches(module, x)
  if patches is None:
    return None
  width = layer.params["kernel"].shape[-1]
  return Affine(patches, "kernel", bias, width, patches=True)


def is_lookup(layer: Layer) -> bool:
  """Return whether a layer looks rows of a table up, one for every integer."""
  kind = _NAMES.get(layer.kind) or _of_nnx().get(layer.kind)
  known = kind == "table" and layer.method == "__call__"
  return known and layer.module.num_embeddings > 1 and _is_plain(*layer[:2])


_NAMES = {
  nn.Dense: "dense",
  nn.DenseGeneral: "general",
  nn.Conv: "conv",
  nn.Embed: "table",
}


def _of_nnx():
  nnx = sys.modules.get("flax.nnx")
  if nnx is None:
    return {}
  return {
    nnx.Linear: "dense",
    nnx.LinearGeneral: "general",
    nnx.Conv: "conv",
    nnx.Embed: "table",
  }


# Fields by which a layer may be given another product, which may do anything.
_PRODUCTS = (
  *("dot_general", "dot_general_cls", "promote_dtype", "conv_general_dilated"),
  *("conv_general_dilated_cls", "preferred_element_type"),
)


def _is_plain(module, kind):
  """Return whether a layer uses the product that its library gives it."""
  defaults = inspect.signature(kind.__init__).parameters
  for name in _PRODUCTS:
    if name not in defaults or not hasattr(module, name):
      continue
    value = getattr(module, name)
    ours = isinstance(value, functools.partial) and value.func is linen_conv
    if not (value is defaults[name].default or ours):
      return False
  return True


def _same(rows):
  return rows


def _general(module, kernel, bias, x):
  """Return the matrix of a dense layer over the last axes of its input."""
  axis = getattr(module, "axis", -1)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  features = getattr(module, "features", None) or module.out_features
  features = (features,) if isinstance(features, int) else tuple(features)
  batched = getattr(module, "batch_dims", ()) or getattr(module, "batch_axis", ())
  last = [one % x.ndim for one in axes] == list(range(x.ndim - len(axes), x.ndim))
  if batched or not last:
    return None
  width = math.prod(features)
  deep = kernel.size // width
  return Affine(
    lambda rows: rows.reshape(*rows.shape[: rows.ndim - len(axes)], deep),
    *("kernel", bias, width),
  )


def _patches(module, x):
  """Return the function from rows to the patches that a convolution multiplies.

  None is returned for a convolution that groups its channels, wraps around, or has
  another layout.
  """
  kernel = _tuple(module.kernel_size, 1)
  rank = len(kernel)
  strides, dilation = (
    _tuple(value, rank) for value in (module.strides, module.kernel_dilation)
  )
  padding = canonicalize_padding(module.padding, rank)
  plain = (
    module.feature_group_count == 1
    and module.mask is None
    and _tuple(module.input_dilation, rank) == (1,) * rank
    and x.ndim == rank + 2
    and (not isinstance(padding, str) or padding in ("SAME", "VALID"))
  )
  if not plain:
    return None
  window = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
  if isinstance(padding, str):
    pads = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
  else:
    pads = padding

  def patches(rows):
    # Unlike `jnp.pad`, this crops where a padding is negative.
    config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    rows = jax.lax.pad(rows, jnp.zeros((), rows.dtype), config)
    taps = []
    for offset in itertools.product(*map(range, kernel)):
      steps = zip(offset, dilation, rows.shape[1:-1], window, strides, strict=True)
      cut = [slice(o * d, n - w + o * d + 1, s) for o, d, n, w, s in steps]
      taps.append(rows[:, *cut])
    return jnp.concatenate(taps, -1)

  return patches


def _tuple(value, rank):
  """Expand a window argument to one value per axis."""
  if value is None or isinstance(value, int):
    return (1 if value is None else value,) * rank
  return tuple(value)

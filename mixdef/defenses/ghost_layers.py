"""The layers that per-example clipping knows by their type, of linen and of NNX."""

import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding

from mixdef.kernels.convolution import linen_conv
from mixdef.models.layer_calls import Layer


class Product(NamedTuple):
  """A matrix by which a layer multiplies, and what determines its gradient.

  Attributes:
    pair: `(x [B,...], out [B,...]) -> a [T,I], b [T,O]` in float32, from the layer's
      input and the cotangent of its output, so that the gradient of the matrix is
      sum_t a_t b_t^T. Integers a [T] stand for rows of the identity [I,I].
    width: O.
    kernel: name of the matrix, whose axes may be split further; "" if it is frozen.
    bias: name of the parameter whose gradient is sum_t b_t, or "".
    patches: whether `pair` copies its input, as a convolution's does.
  """

  pair: Callable
  width: int
  kernel: str
  bias: str = ""
  patches: bool = False


def products(layer: Layer, held: Collection[str], x: Any) -> list[Product]:
  """Return the matrices of a layer, or none if it is of another type.

  A kernel with a low-rank change, W + scale A B, is two matrices: the gradient of A is
  sum_t a_t (scale B b_t)^T, and that of B is sum_t (scale A^T a_t) b_t^T.

  Args:
    layer: a call of a layer.
    held: names of the parameters that are not frozen.
    x: its input [B,...].
  """
  rule = _RULES.get(layer.kind) or _of_nnx().get(layer.kind)
  whole = rule(layer, x) if rule and _is_plain(*layer[:2]) else None
  if whole is None:
    return []
  whole = whole._replace(bias=whole.bias if whole.bias in held else "")
  change = layer.changes.get(whole.kernel)
  if change is None:
    if whole.kernel not in held:
      whole = whole._replace(kernel="", patches=False)
    return [whole]
  if change.b.shape[1] != whole.width:
    return []

  def of_a(x, out):
    a, b = whole.pair(x, out)
    return a, change.scale * times(b, change.b.T)

  def of_b(x, out):
    a, b = whole.pair(x, out)
    return change.scale * times(a, change.a), b

  first, second = (f"{whole.kernel}/{name}" for name in "ab")
  return [
    whole._replace(pair=of_a, width=change.a.shape[1], kernel=first, bias=""),
    whole._replace(pair=of_b, kernel=second),
  ]


def times(a: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiply the rows of a pair, [T,I] or integers [T], by a matrix [I,O]."""
  matrix = matrix.astype(jnp.float32)
  return matrix[a] if a.ndim == 1 else jnp.matmul(a, matrix, precision="highest")


def _dense(layer, x):
  del x
  if layer.method != "__call__":
    return None
  width = layer.params["kernel"].shape[-1]
  return Product(_pair(lambda rows: rows, width), width, "kernel", _bias(layer))


def _general(layer, x):
  """Return the matrix of a dense layer over the last axes of its input."""
  module = layer.module
  axis = getattr(module, "axis", -1)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  features = getattr(module, "features", None) or module.out_features
  features = (features,) if isinstance(features, int) else tuple(features)
  batched = getattr(module, "batch_dims", ()) or getattr(module, "batch_axis", ())
  last = [one % x.ndim for one in axes] == list(range(x.ndim - len(axes), x.ndim))
  if batched or not last or layer.method != "__call__":
    return None
  width = math.prod(features)
  deep = layer.params["kernel"].size // width
  rows = _pair(lambda x: x.reshape(*x.shape[: x.ndim - len(axes)], deep), width)
  return Product(rows, width, "kernel", _bias(layer))


def _conv(layer, x):
  patches = _patches(layer.module, x)
  if patches is None or layer.method != "__call__":
    return None
  width = layer.params["kernel"].shape[-1]
  return Product(_pair(patches, width), width, "kernel", _bias(layer), patches=True)


def _table(layer, x):
  """Return a table [V,D] as a matrix: of one-hot rows, or of logits' cotangents."""
  del x
  count, width = layer.params["embedding"].shape
  if count == 1:  # any integer means its only row
    return None

  def looked_up(x, out):
    ids = x.reshape(-1)
    return jnp.where(ids < 0, ids + count, ids), _matrix(out, width)

  def attended(x, out):
    return _matrix(out, count), _matrix(x.astype(out.dtype), width)

  pair = attended if layer.method == "attend" else looked_up
  return Product(pair, width, "embedding")


def _bias(layer):
  return "bias" if layer.module.use_bias else ""


def _pair(rows, width):
  """Return the pair of a layer that multiplies `rows(x)` [B,...,I]."""

  def pair(x, out):
    a = rows(x.astype(out.dtype))
    return _matrix(a, a.shape[-1]), _matrix(out, width)

  return pair


def _matrix(rows, width):
  return rows.reshape(-1, width).astype(jnp.float32)


_RULES = {
  nn.Dense: _dense,
  nn.DenseGeneral: _general,
  nn.Conv: _conv,
  nn.Embed: _table,
}


def _of_nnx():
  nnx = sys.modules.get("flax.nnx")
  if nnx is None:
    return {}
  return {
    nnx.Linear: _dense,
    nnx.LinearGeneral: _general,
    nnx.Conv: _conv,
    nnx.Embed: _table,
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

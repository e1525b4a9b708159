"""Per-layer rules of per-example clipping: squared gradient norms and clipped sums.

In shapes, R is the number of records, B = R views the number of rows, T the number of
positions of a record (including those of all its views), I the number of inputs of a
position and O of its outputs. For one record, the gradient of an affine layer's kernel
is sum_t a_t b_t^T, for its inputs a [T,I] and the cotangents b [T,O] of its outputs.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from flax.linen.linear import canonicalize_padding

from mixdef.kernels.convolution import linen_conv

# On a CPU, the patches of a few images stay in cache; those of a whole batch do not.
_IMAGES_AT_ONCE = 4


class UnsupportedError(Exception):
  """Raised with the reason why a model cannot be clipped by `ghost`."""


def name_of(module):
  """Return a module's path, or its type if it is the whole model."""
  return "/".join(module.path) or type(module).__name__


def measure(module, kwargs, params, x, cotangent, views):
  """Measure the gradients of one leaf module, record by record.

  An affine layer keeps its per-record gradients if they are no larger than the arrays
  they are computed from, I O <= T (I + O). Computing them then costs no more than the T
  x T products of their ghost norm, and summing the kept gradients costs nearly nothing.
  For every other layer, the sum is obtained by a backward pass through that layer
  alone.

  Args:
    module: `nn.Dense`, `nn.Conv` or any other leaf module, as it was applied.
    kwargs: keyword arguments that it was called with, in addition to `x`.
    params: its parameters, by name.
    x: its input, [B,...].
    cotangent: cotangent of its output, [B,...].
    views: number of adjacent rows that belong to one record.

  Returns:
    The squared gradient norms [R], and `factor [R] -> sum_i factor_i g_i`, with the
    structure of `params`. A record of factor 0 adds exactly zero to it, whatever its
    values.

  Raises:
    UnsupportedError: if the module cannot be applied separately.
  """
  inputs = _inputs(module, x)
  if inputs is not None:
    positions = cotangent[0, ..., 0].size * views
    wide = cotangent.shape[-1]
    deep = params["kernel"].size // wide
    if deep * wide <= positions * (deep + wide):
      return _kept(module, inputs, params, x, cotangent, views)
    squared = _ghost_squares(module, inputs, x, cotangent, views)
    return squared, _pulled_sum(module, kwargs, params, x, cotangent, views)
  squared = _pulled_squares(module, kwargs, params, x, cotangent, views)
  return squared, _pulled_sum(module, kwargs, params, x, cotangent, views)


def square(tree):
  """Sum the squares of all entries of a tree, in float32."""
  return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(tree))


def grouped(tree, views):
  """Split the leading axis of every leaf into records and views, [R,views,...]."""
  return jax.tree.map(lambda a: a.reshape(-1, views, *a.shape[1:]), tree)


def ungrouped(tree):
  """Merge the two leading axes of every leaf, the inverse of `grouped`."""
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def finite_or_zero(tree, finite):
  """Replace a gradient that is not finite, because zero times NaN is NaN."""
  return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), tree)


def _kept(module, inputs, params, x, cotangent, views):
  """Compute every record's gradient once, for its norm and for the sum."""

  def one(x, b):
    a, b = _affine(inputs, x, b)
    grads = {"kernel": jnp.matmul(b.T, a, precision="highest")}
    if module.use_bias:
      grads["bias"] = b.sum(0)
    squared = square(grads)
    return squared, finite_or_zero(grads, jnp.isfinite(squared))

  squared, grads = _each_record(module, one, x, cotangent, views)

  def total(factor):
    return {
      name: jnp.tensordot(factor, leaf, 1, precision="highest").T.reshape(
        params[name].shape
      )
      for name, leaf in grads.items()
    }

  return squared, total


def _ghost_squares(module, inputs, x, cotangent, views):
  """Compute squared norms without gradients: <a a^T, b b^T>, never underestimated.

  The terms may cancel, for example if features are large and alike at all positions.
  The possible rounding error is added, so that the result errs towards more clipping: a
  sum of n products is off by at most n units of rounding of their magnitudes.
  """

  def one(x, b):
    a, b = _affine(inputs, x, b)
    if a.shape[0] == 1:
      squared = square(a) * square(b)
    else:
      of_inputs, of_cotangents = (
        jnp.matmul(v, v.T, precision="highest") for v in (a, b)
      )
      sizes = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
      unit = jnp.finfo(jnp.float32).eps / 2
      margin = (sum(a.shape) + b.shape[1]) * unit * sizes.sum() ** 2
      squared = jnp.maximum((of_inputs * of_cotangents).sum(), 0.0) + margin
    return squared + square(b.sum(0)) if module.use_bias else squared

  return _each_record(module, one, x, cotangent, views)


def _affine(inputs, x, cotangent):
  """Return a record's inputs [T,I] and cotangents [T,O], in float32."""
  a = inputs(x.astype(cotangent.dtype))
  return tuple(v.reshape(-1, v.shape[-1]).astype(jnp.float32) for v in (a, cotangent))


def _each_record(module, one, x, cotangent, views):
  x, cotangent = grouped((x, cotangent), views)
  if type(module) is nn.Dense or jax.default_backend() != "cpu":
    return jax.vmap(one)(x, cotangent)
  at_once = max(1, _IMAGES_AT_ONCE // views)
  return jax.lax.map(lambda record: one(*record), (x, cotangent), batch_size=at_once)


def _pulled_squares(module, kwargs, params, x, cotangent, views):
  """Differentiate this one layer, record by record."""
  apply = _alone(module, kwargs)
  try:
    jax.eval_shape(apply, params, x[:views])
  except FlaxError as error:
    text = f"{name_of(module)} cannot be applied separately: {error}"
    raise UnsupportedError(text) from None

  def one(x, cotangent):
    (grads,) = jax.vjp(lambda params: apply(params, x), params)[1](cotangent)
    return square(grads)

  return jax.vmap(one)(*grouped((x, cotangent), views))


def _pulled_sum(module, kwargs, params, x, cotangent, views):
  apply = _alone(module, kwargs)

  def total(factor):
    used = jnp.repeat(factor > 0, views)

    def over_rows(value, rows):
      return jnp.expand_dims(value, range(1, rows.ndim))

    # A zero cotangent does not remove an input of NaN; the input of a used record does.
    clean = jnp.where(over_rows(used, x), x, x[used.argmax()])
    weighted = cotangent * over_rows(jnp.repeat(factor, views), cotangent)
    weighted = jnp.where(over_rows(used, weighted), weighted, 0)
    # Record by record, because the layer may let the rows that it is given interact.
    each = jax.vmap(apply, (None, 0))
    _, pull = jax.vjp(lambda params: each(params, grouped(clean, views)), params)
    (grads,) = pull(grouped(weighted.astype(cotangent.dtype), views))
    return finite_or_zero(grads, used.any())

  return total


def _alone(module, kwargs):
  alone = module.clone(parent=None, name=None)
  return lambda params, rows: alone.apply({"params": params}, rows, **kwargs)


def _inputs(module, x):
  """Return the function from rows to the inputs of their positions, or None.

  None is returned for a layer that is not affine in patches of its input.
  """
  if type(module) is nn.Dense:
    return (lambda rows: rows) if _has_linens_product(module) else None
  if type(module) is not nn.Conv or not _has_linens_product(module):
    return None
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


def _has_linens_product(module):
  """Return whether a layer uses linen's own product; a replacement may do anything."""
  if type(module) is nn.Dense:
    names = ("promote_dtype", "dot_general", "dot_general_cls")
  else:
    names = ("promote_dtype", "conv_general_dilated")
    ours = module.conv_general_dilated_cls
    if not (isinstance(ours, functools.partial) and ours.func is linen_conv):
      names += ("conv_general_dilated_cls",)
  return all(getattr(module, name) is getattr(type(module), name) for name in names)


def _tuple(value, rank):
  """Expand a linen window argument to one value per axis."""
  if value is None or isinstance(value, int):
    return (1 if value is None else value,) * rank
  return tuple(value)

"""Per-layer rules of per-example clipping: squared gradient norms and clipped sums.

In shapes, R is the number of records, B = R views the number of rows, T the number of
positions of a record (including those of all its views), I the number of inputs of a
position and O of its outputs. For one record, the gradient of an affine layer's kernel
is sum_t a_t b_t^T, for its inputs a [T,I] and the cotangents b [T,O] of its outputs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from mixdef.defenses.ghost_layers import affine, is_lookup
from mixdef.models.layer_calls import Layer

# On a CPU, the patches of a few images stay in cache; those of a whole batch do not.
_IMAGES_AT_ONCE = 4


class UnsupportedError(Exception):
  """Raised with the reason why a model cannot be clipped by `ghost`."""


class Call(NamedTuple):
  """A call of a layer, as it was recorded.

  Attributes:
    layer: what is called.
    places: name of a parameter -> its index among the leaves of all parameters.
    x: its input [B,...].
    out: its output [B,...], or the cotangent of the output.
  """

  layer: Layer
  places: dict[str, int]
  x: Any
  out: Any

  @property
  def alone(self) -> Callable:
    """The call as a function of the leaves, by place, and of its input."""

    def run(leaves, x):
      own = {name: leaves[place] for name, place in self.places.items()}
      return self.layer.alone(own, x)

    return run


def sharing(calls: list[Call]) -> list[list[Call]]:
  """Group the calls that share parameters, as those of one layer or a tied table."""
  groups: list[tuple[set, list]] = []
  for call in calls:
    places, together = set(call.places.values()), [call]
    apart = []
    for known, others in groups:
      if known & places:
        places, together = known | places, [*others, *together]
      else:
        apart.append((known, others))
    groups = [*apart, (places, together)]
  return [together for _, together in groups]


def measure(calls: list[Call], leaves: list, views: int):
  """Measure the gradients of the parameters that some calls share, record by record.

  An affine layer keeps its per-record gradients if they are no larger than the arrays
  they are computed from, I O <= T (I + O). Computing them then costs no more than the T
  x T products of their ghost norm, and summing the kept gradients costs nearly nothing.
  For every other layer, the sum is obtained by a backward pass through that layer
  alone. The positions of several calls of a layer are positions of one.

  Args:
    calls: one of the lists that `sharing` returns.
    leaves: the leaves of all parameters.
    views: number of adjacent rows that belong to one record.

  Returns:
    The squared gradient norms [R], and `factor [R] -> {place: sum_i factor_i g_i}`. A
    record of factor 0 adds exactly zero to it, whatever its values.

  Raises:
    UnsupportedError: if a layer cannot be applied separately.
  """
  params = {place: leaves[place] for call in calls for place in call.places.values()}
  rules = [affine(call.layer, call.x) for call in calls]
  rule = rules[0]
  alike = {None if one is None else (one.kernel, one.transposed) for one in rules}
  if rule is not None and len(alike) == 1 and _same_places(calls):
    positions = sum(call.out[0].size // rule.width for call in calls) * views
    deep = calls[0].layer.params[rule.kernel].size // rule.width
    if deep * rule.width <= positions * (deep + rule.width):
      return _kept(calls, rules, params, views)
    squared = _ghost_squares(calls, rules, views)
  elif all(is_lookup(call.layer) for call in calls) and _is_short(calls, views):
    squared = _lookup_squares(calls, views)
  else:
    squared = _pulled_squares(calls, params, views)
  return squared, _pulled_sum(calls, params, views)


def _same_places(calls):
  return all(call.places == calls[0].places for call in calls)


def square(tree):
  """Sum the squares of all entries of a tree, in float32."""
  return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(tree))


def grouped(tree, views):
  """Split the leading axis of every leaf into records and views, [R,views,...]."""
  return jax.tree.map(lambda a: a.reshape(-1, views, *a.shape[1:]), tree)


def ungrouped(tree):
  """Merge the two leading axes of every leaf, the inverse of `grouped`."""
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def shares(weight, views):
  """Return each row's part in the mean loss of its record, [R,views], by its weight.

  Rows of weight 0 have none. The rows of a record need not have equal weights: those of
  a person are its records and padding.
  """
  weight = weight.reshape(-1, views)
  total = weight.sum(1, keepdims=True)
  return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)


def finite_or_zero(tree, finite):
  """Replace a gradient that is not finite, because zero times NaN is NaN."""
  return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), tree)


def _kept(calls, rules, params, views):
  """Compute every record's gradient once, for its norm and for the sum."""
  rule, places = rules[0], calls[0].places

  def one(xs, outs):
    a, b = _affine(rules, xs, outs)
    grads = {"kernel": jnp.matmul(b.T, a, precision="highest")}
    if rule.bias:
      grads["bias"] = b.sum(0)
    squared = square(grads)
    return squared, finite_or_zero(grads, jnp.isfinite(squared))

  squared, grads = _each_record(calls, rules, one, views)

  def total(factor):
    sums = {}
    for name, own in (("kernel", rule.kernel), ("bias", rule.bias)):
      if name in grads:
        place = places[own]
        whole = jnp.tensordot(factor, grads[name], 1, precision="highest")
        whole = whole if rule.transposed else whole.T
        sums[place] = whole.reshape(params[place].shape)
    return sums

  return squared, total


def _ghost_squares(calls, rules, views):
  """Compute squared norms without gradients: <a a^T, b b^T>, never underestimated."""

  def one(xs, outs):
    a, b = _affine(rules, xs, outs)
    if a.shape[0] == 1:
      squared = square(a) * square(b)
    else:
      of_inputs = jnp.matmul(a, a.T, precision="highest")
      sizes = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
      squared = _paired(of_inputs, b, sizes.sum() ** 2, sum(a.shape))
    return squared + square(b.sum(0)) if rules[0].bias else squared

  return _each_record(calls, rules, one, views)


def _paired(of_inputs, b, size, terms):
  """Return <a a^T, b b^T> for a record, with a bound of its rounding error.

  The terms may cancel, for example if features are large and alike at all positions.
  The possible rounding error is added, so that the result errs towards more clipping: a
  sum of n products is off by at most n units of rounding of their magnitudes.
  """
  of_cotangents = jnp.matmul(b, b.T, precision="highest")
  unit = jnp.finfo(jnp.float32).eps / 2
  margin = (terms + b.shape[1]) * unit * size
  return jnp.maximum((of_inputs * of_cotangents).sum(), 0.0) + margin


def _lookup_squares(calls, views):
  """Compute squared norms of a table's gradients: sum <b_s, b_t> where id_s = id_t."""
  count = calls[0].layer.module.num_embeddings

  def one(xs, outs):
    ids = jnp.concatenate([x.reshape(-1) for x in xs])
    ids = jnp.where(ids < 0, ids + count, ids)
    b = jnp.concatenate([b.reshape(-1, b.shape[-1]) for b in outs])
    b = b.astype(jnp.float32)
    same = (ids[:, None] == ids).astype(jnp.float32)
    sizes = jnp.linalg.norm(b, axis=1)
    return _paired(same, b, (same * sizes[:, None] * sizes).sum(), len(ids))

  xs, outs = grouped(([c.x for c in calls], [c.out for c in calls]), views)
  return jax.vmap(one)(xs, outs)


def _is_short(calls, views):
  """Return whether pairs of positions are fewer than the entries of a table."""
  positions = sum(call.x[0].size for call in calls) * views
  return positions**2 <= sum(leaf.size for leaf in calls[0].layer.params.values())


def _affine(rules, xs, outs):
  """Return a record's inputs [T,I] and cotangents [T,O], in float32."""
  a, b = [], []
  for rule, x, out in zip(rules, xs, outs, strict=True):
    inputs = rule.inputs(x.astype(out.dtype))
    a.append(inputs.reshape(-1, inputs.shape[-1]).astype(jnp.float32))
    b.append(out.reshape(-1, rule.width).astype(jnp.float32))
  return tuple(each[0] if len(each) == 1 else jnp.concatenate(each) for each in (a, b))


def _each_record(calls, rules, one, views):
  xs, outs = grouped(([c.x for c in calls], [c.out for c in calls]), views)
  if not rules[0].patches or jax.default_backend() != "cpu":
    return jax.vmap(one)(xs, outs)
  at_once = max(1, _IMAGES_AT_ONCE // views)
  return jax.lax.map(lambda record: one(*record), (xs, outs), batch_size=at_once)


def _pulled_squares(calls, params, views):
  """Differentiate these calls alone, record by record."""
  for call in calls:
    try:
      jax.eval_shape(call.alone, params, call.x[:views])
    except FlaxError as error:
      text = f"{call.layer.where} cannot be applied separately: {error}"
      raise UnsupportedError(text) from None

  def one(xs, outs):
    def run(params):
      return [call.alone(params, x) for call, x in zip(calls, xs, strict=True)]

    (grads,) = jax.vjp(run, params)[1](outs)
    return square(grads)

  return jax.vmap(one)(*grouped(([c.x for c in calls], [c.out for c in calls]), views))


def _pulled_sum(calls, params, views):
  def total(factor):
    used = jnp.repeat(factor > 0, views)

    def over_rows(value, rows):
      return jnp.expand_dims(value, range(1, rows.ndim))

    def of(call):
      x, out = call.x, call.out
      # A zero cotangent does not remove an input of NaN; the input of a used record
      # does.
      clean = jnp.where(over_rows(used, x), x, x[used.argmax()])
      weighted = out * over_rows(jnp.repeat(factor, views), out)
      weighted = jnp.where(over_rows(used, weighted), weighted, 0)
      # Record by record, because the layer may let the rows that it is given interact.
      each = jax.vmap(call.alone, (None, 0))
      _, pull = jax.vjp(lambda params: each(params, grouped(clean, views)), params)
      (grads,) = pull(grouped(weighted.astype(out.dtype), views))
      return finite_or_zero(grads, used.any())

    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), map(of, calls))

  return total

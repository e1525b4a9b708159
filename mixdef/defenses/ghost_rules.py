"""Per-layer rules of per-example clipping: squared gradient norms and clipped sums.

In shapes, R is the number of records, B = R views the number of rows, T the number of
positions of a record (including those of all its views), I the number of inputs of a
position and O of its outputs. For one record, the gradient of a matrix is sum_t a_t
b_t^T, for its inputs a [T,I] and the cotangents b [T,O] of its outputs (`Product`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from mixdef.core.platform import platform
from mixdef.defenses.ghost_layers import products
from mixdef.models.layer_calls import Layer

# On a CPU, the patches of a few images stay in cache; those of a whole batch do not.
_IMAGES_AT_ONCE = 4


class UnsupportedError(Exception):
  """Raised with the reason why a model cannot be clipped by `ghost`."""


class Call(NamedTuple):
  """A call of a layer, as it was recorded.

  Attributes:
    layer: what is called.
    places: name of a parameter -> its index among the leaves of all parameters, for
      each that is not frozen.
    x: its input [B,...].
    out: its output [B,...], or the cotangent of the output.
  """

  layer: Layer
  places: dict[str, int]
  x: Any
  out: Any

  @property
  def alone(self) -> Callable:
    """The call as a function of some of the leaves, by place, and of its input."""

    def run(leaves, x):
      held = {name: at for name, at in self.places.items() if at in leaves}
      own = {name: leaves[place] for name, place in held.items()}
      return self.layer.alone({**self.layer.params, **own}, x)

    return run


class Copies(NamedTuple):
  """A parameter that acts outside of layers, of which every record has a copy.

  Attributes:
    places: as in `Call`, of one parameter.
    grads: the gradients of the copies [R,...].
  """

  places: dict[str, int]
  grads: Any


def sharing(calls: Sequence[Call | Copies]) -> list[list]:
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


def measure(calls: list, leaves: list, views: int):
  """Measure the gradients of the parameters that some calls share, record by record.

  The per-record gradients of a matrix are kept if they are no larger than the arrays
  they are computed from, I O <= T (I + O). Computing them then costs no more than the T
  x T products of their ghost norm, and summing the kept gradients costs nearly nothing.
  For every other parameter, the sum is obtained by a backward pass through its layer
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
  if isinstance(calls[0], Copies):
    return _copied(*calls)
  rules = _rules(calls)
  if not rules:
    return _pulled_squares(calls, params, views), _pulled_sum(calls, params, views)
  squared, kept, others = 0.0, [], dict(params)
  for each in rules:
    if _is_small(calls, each, params, views):
      squares, total = _kept(calls, each, params, views)
      kept.append(total)
      for name in (each[0].kernel, each[0].bias):
        others.pop(calls[0].places.get(name), None)
    else:
      squares = _ghost_squares(calls, each, views)
    squared += squares
  if others:
    kept.append(_pulled_sum(calls, others, views))
  return squared, lambda factor: {
    place: leaf for total in kept for place, leaf in total(factor).items()
  }


def _copied(copies):
  """Measure the gradients that the copies of a parameter have already."""
  squared = jax.vmap(square)(copies.grads)
  grads = jax.vmap(finite_or_zero)(copies.grads, jnp.isfinite(squared))
  (place,) = copies.places.values()
  return squared, lambda factor: {
    place: jnp.tensordot(factor, grads, 1, precision="highest")
  }


def _rules(calls):
  """Return, for each matrix that the calls multiply by, their rules; [] if unknown."""
  found = [products(call.layer, call.places, call.x) for call in calls]
  alike = {tuple((one.kernel, one.bias) for one in each) for each in found}
  if len(alike) > 1 or any(call.places != calls[0].places for call in calls):
    return []
  return list(zip(*found, strict=True))


def _is_small(calls, rules, params, views):
  """Return whether the per-record gradients of a matrix are worth keeping."""
  if not rules[0].kernel:
    return True
  record = jax.tree.map(lambda leaf: leaf[0], _grouped(calls, views))
  a, b = jax.eval_shape(functools.partial(_pair, rules), *record)
  size = params[calls[0].places[rules[0].kernel]].size
  if a.ndim == 1:
    return size < len(a) ** 2
  return size <= len(a) * (a.shape[1] + b.shape[1])


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
  shape = rule.kernel and params[places[rule.kernel]].shape

  def one(xs, outs):
    a, b = _pair(rules, xs, outs)
    grads = {}
    if rule.kernel:
      if a.ndim == 1:
        rows = jnp.zeros(shape, jnp.float32).reshape(-1, b.shape[1])
        grads[rule.kernel] = rows.at[a].add(b).T
      else:
        grads[rule.kernel] = jnp.matmul(b.T, a, precision="highest")
    if rule.bias:
      grads[rule.bias] = b.sum(0)
    squared = square(grads)
    return squared, finite_or_zero(grads, jnp.isfinite(squared))

  squared, grads = _each_record(calls, rules, one, views)

  def total(factor):
    sums = {}
    for name, each in grads.items():
      whole = jnp.tensordot(factor, each, 1, precision="highest")
      sums[places[name]] = whole.T.reshape(params[places[name]].shape)
    return sums

  return squared, total


def _ghost_squares(calls, rules, views):
  """Compute squared norms without gradients: <a a^T, b b^T>, never underestimated.

  The terms may cancel, for example if features are large and alike at all positions.
  The possible rounding error is added, so that the result errs towards more clipping: a
  sum of n products is off by at most n units of rounding of their magnitudes.
  """
  unit = jnp.finfo(jnp.float32).eps / 2

  def one(xs, outs):
    a, b = _pair(rules, xs, outs)
    if len(a) == 1:
      squared = square(b) if a.ndim == 1 else square(a) * square(b)
    else:
      sizes = jnp.linalg.norm(b, axis=1)
      if a.ndim == 1:
        of_inputs = (a[:, None] == a).astype(jnp.float32)
        size = (of_inputs * sizes[:, None] * sizes).sum()
      else:
        of_inputs = jnp.matmul(a, a.T, precision="highest")
        size = (jnp.linalg.norm(a, axis=1) * sizes).sum() ** 2
      of_cotangents = jnp.matmul(b, b.T, precision="highest")
      squared = jnp.maximum((of_inputs * of_cotangents).sum(), 0.0)
      squared += (sum(a.shape) + b.shape[1]) * unit * size
    return squared + square(b.sum(0)) if rules[0].bias else squared

  return _each_record(calls, rules, one, views)


def _pair(rules, xs, outs):
  """Return the pair of a record, of the positions of all calls."""
  pairs = [rule.pair(x, out) for rule, x, out in zip(rules, xs, outs, strict=True)]
  if len(pairs) == 1:
    return pairs[0]
  width = max(a.shape[1] if a.ndim == 2 else 0 for a, _ in pairs)
  if width:  # a table that is looked up in one call, and a matrix in another
    pairs = [(jax.nn.one_hot(a, width) if a.ndim == 1 else a, b) for a, b in pairs]
  return tuple(jnp.concatenate(each) for each in zip(*pairs, strict=True))


def _grouped(calls, views):
  return grouped(([call.x for call in calls], [call.out for call in calls]), views)


def _each_record(calls, rules, one, views):
  if not rules[0].patches or platform() != "cpu":
    return jax.vmap(one)(*_grouped(calls, views))
  at_once = max(1, _IMAGES_AT_ONCE // views)
  each = functools.partial(jax.lax.map, batch_size=at_once)
  return each(lambda record: one(*record), _grouped(calls, views))


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

  return jax.vmap(one)(*_grouped(calls, views))


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

"""Gradient canaries, by which a run of `dp_sgd` audits itself.

A canary is a made-up record whose gradient has a single coordinate that is not zero. It
is clipped, sampled, divided and noised by the code that handles the records, and what
the step shows of it is kept.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.check import check_count, is_static
from mixdef.core.randomness import drawn, fold_in_name, stream
from mixdef.defenses.per_example import scales_of

# Of a canary's gradient, in clipping norms, so that a missing clip shows.
_LENGTH = 10.0
_PER_LEAF = 8
_ROOM = 10  # parameters per canary


class Canaries(NamedTuple):
  """The m canaries of one model, as part of the state of `dp_sgd`.

  Attributes:
    members: bool [m], those that are in, for the whole run.
    signs: float32 [m], of their gradients, +1 or -1.
    leaves: int32 [m], the parameter array of each.
    observed: float32 [T, m]; in step t, what the gradient holds besides the clipped sum
      of the records, times sign and batch size, in clipping norms. If training is as
      claimed, it is [the canary took part] + z N(0, 1), independently.
  """

  members: Any
  signs: Any
  leaves: Any
  observed: Any


def check(count: int, clip, guarantee: bool, bands: int) -> None:
  """Check the arguments of `dp_sgd` that canaries restrict.

  Raises:
    ValueError: for one to three canaries, and for canaries without a guarantee, without
      a finite clipping norm, or with correlated noise.
  """
  check_count("dp_sgd: canaries", count, 0)
  if 0 < count < 4:
    raise ValueError(f"dp_sgd: canaries={count} show nothing: pass 0 or at least 4")
  if count and not guarantee:
    raise ValueError("dp_sgd: canaries audit a guarantee: drop guarantee=False")
  if count and is_static(clip) and clip == math.inf:
    raise ValueError("dp_sgd: canaries need a clip to be scaled by: pass a finite clip")
  if count and bands > 1:
    raise ValueError(
      f"dp_sgd: canaries audit independent noise, not that of bands={bands}: drop one"
    )


def start(key, spec, count: int) -> Canaries:
  """Draw the canaries of one model.

  Args:
    key: the model's key for them.
    spec: the `Spec` of the training, with its trained parameters and its T steps.
    count: m.

  Raises:
    ValueError: for fewer than 10 parameters per canary, and for a training that
      composes with another, whose canaries would test the epsilon of both.
  """
  if spec.trainings > 1:
    raise ValueError(
      f"dp_sgd: canaries={count} would test the epsilon of {spec.trainings} trainings "
      "by what one of them shows: drop canaries, or the part that trains a teacher"
    )
  params, steps = spec.variables["params"], spec.epochs * spec.steps_per_epoch
  leaves = [
    np.full(len(own), leaf, np.int32) for leaf, own in enumerate(places(params, count))
  ]
  coins, signs = fold_in_name(key, "coins"), fold_in_name(key, "signs")
  return Canaries(
    members=drawn(coins, 0.5, (count,)),
    signs=jnp.where(drawn(signs, 0.5, (count,)), 1.0, -1.0),
    leaves=jnp.asarray(np.concatenate(leaves)),
    observed=jnp.zeros((steps, count), jnp.float32),
  )


def places(params, count: int) -> list[np.ndarray]:
  """Return the coordinates of the canaries in each parameter array.

  They are distinct, and the same for all models. Every array has 8, or an equal share
  of fewer, and the rest are in proportion to its size. The first 8 have the same
  coordinates in every array, and all have in arrays of equal size, so that noise that
  arrays share shows as equal noise.

  Args:
    params: the trained parameters, or their shapes.
    count: m.

  Returns:
    For each array, int [.] positions in its flattened form; m in all.

  Raises:
    ValueError: for fewer than 10 parameters per canary.

  >>> [len(own) for own in places((np.zeros((50, 9)), np.zeros(9), np.zeros(3)), 40)]
  [29, 8, 3]
  """
  sizes = np.array([leaf.size for leaf in jax.tree.leaves(params)])
  total = sizes.sum()
  if total < _ROOM * count:
    raise ValueError(
      f"dp_sgd: canaries={count} need {_ROOM * count} trained parameters, and the "
      f"model has {total}: pass at most canaries={total // _ROOM}"
    )
  least = np.minimum(sizes, min(_PER_LEAF, count // len(sizes)))
  share = (count - least.sum()) * (sizes - least) / (total - least.sum())
  own = least + share.astype(int)
  rest = np.argsort(np.floor(share) - share, kind="stable")
  own[rest[: count - own.sum()]] += 1
  return [
    np.concatenate([np.arange(first), first + _some(size - first, many - first)])
    for first, size, many in zip(least, sizes, own, strict=True)
  ]


def _some(size, count):
  """Draw distinct positions below `size`, always the same."""
  return np.sort(stream(0, "canaries").choice(size, count, replace=False))


def insert(total, canaries: Canaries, key, *, factor, clip, probability, views=1):
  """Add the canaries of one step to the clipped sum of the records.

  Each canary that is in takes part with the given probability, as a record whose
  `views` rows all have the same gradient.

  Args:
    total: the sum, by parameter.
    canaries: of the model.
    key: of the step.
    factor: the clipping factors, as in `per_example`.
    clip: C.
    probability: q.
    views: rows of a record.

  Returns:
    The new sum, and the sum without the canaries at their coordinates [m].
  """
  count = len(canaries.members)
  present = canaries.members & drawn(
    fold_in_name(key, "canaries"), probability, (count,)
  )
  scales = scales_of(
    jnp.full(count, _LENGTH * clip),
    jnp.repeat(present.astype(jnp.float32), views),
    factor,
    views,
  )
  added = canaries.signs * _LENGTH * clip * scales
  leaves, structure = jax.tree.flatten(total)
  where, clean, place = places(total, count), gather(total, count), 0
  for leaf, own in enumerate(where):
    values = added[place : place + len(own)].astype(leaves[leaf].dtype)
    flat = leaves[leaf].ravel().at[own].add(values)
    leaves[leaf], place = flat.reshape(leaves[leaf].shape), place + len(own)
  return structure.unflatten(leaves), clean


def gather(tree, count: int):
  """Return the entries of a tree like the parameters at the canaries [m]."""
  where = places(tree, count)
  pairs = zip(jax.tree.leaves(tree), where, strict=True)
  return jnp.concatenate([leaf.ravel()[own].astype(jnp.float32) for leaf, own in pairs])


def observe(canaries: Canaries, grads, clean, step, *, clip, batch_size) -> Canaries:
  """Keep what a step shows of the canaries.

  Args:
    canaries: of the model.
    grads: the noised gradient.
    clean: the second result of `insert`.
    step: t.
    clip: C.
    batch_size: B.
  """
  added = gather(grads, len(canaries.members)) * batch_size - clean
  row = canaries.signs * added / clip
  return canaries._replace(observed=canaries.observed.at[step].set(row))

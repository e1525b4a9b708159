"""Sampling of the rows of a step: shuffled epochs, Poisson draws, auxiliary rows."""

import jax
import jax.numpy as jnp

from mixdef.core.hooks import Rows
from mixdef.core.randomness import fold_in_name


def chunk_of(key, members, num_shards: int):
  """Split the members into disjoint random shards of equal size.

  Args:
    key: the model's key; the same in every epoch.
    members: bool [N], the members.
    num_shards: G, the number of shards.

  Returns:
    int [N], the shard of each member in [0, G); sizes differ by at most one.
  """
  return jnp.argsort(_shuffled(fold_in_name(key, "chunks"), members)) % num_shards


def epoch_rows(key, members, auxiliary, plan, chunk=None):
  """Prepare one epoch of one model.

  A record's position in the shuffle is a hash of its id and the epoch's key, so it does
  not depend on the other records of the training set. Members are assigned round-robin
  to the steps, so no batch is empty or tiny, whatever the remainder. Poisson batches
  contain each member independently with probability `plan.probability`.

  Args:
    key: the epoch's key.
    members: bool [N], the rows this model trains on.
    auxiliary: bool [N], the defender's auxiliary records.
    plan: the static sizes.
    chunk: int [N], the shards returned by `chunk_of`, if `plan.num_shards` is more than
      one. The rows of shard g are the g-th block of a step, and each shard is shuffled
      separately.

  Returns:
    `step -> (Rows, overflow)`, where overflow counts the drawn members that exceed the
    capacity; the caller must treat a nonzero count as an error.
  """
  order = _shuffled(fold_in_name(key, "members"), members, chunk)
  own = _shuffled(fold_in_name(key, "reference"), auxiliary)
  steps = plan.steps_per_epoch

  def dealt(step):
    group = jnp.arange(plan.num_shards)[:, None]
    place = (step + steps * jnp.arange(plan.capacity))[None]
    whole, rest = jnp.divmod(members.sum(), plan.num_shards)
    first = group * whole + jnp.minimum(group, rest)  # members are sorted by shard
    index = order[jnp.minimum(first + place, plan.num_records - 1)]
    real = place < whole + (group < rest)
    # Padding repeats a member of the shard, so non-members are never read.
    index = jnp.where(real, index, order[first])
    return index.ravel(), real.ravel(), jnp.int32(0)  # capacity fits the largest model

  def poisson(step):
    draw = jax.random.uniform(
      jax.random.fold_in(fold_in_name(key, "poisson"), step), members.shape
    )
    drawn = members & (draw < plan.probability)
    index = jnp.nonzero(drawn, size=plan.capacity, fill_value=0)[0]
    real = jnp.arange(plan.capacity) < drawn.sum()
    index = jnp.where(real, index, order[0])
    return index, real, jnp.maximum(drawn.sum() - plan.capacity, 0)

  def rows(step):
    index, real, overflow = poisson(step) if plan.poisson else dealt(step)
    weight = real.astype(jnp.float32)
    is_reference = jnp.zeros_like(weight)
    if plan.auxiliary_rows:
      place = step + steps * jnp.arange(plan.auxiliary_rows)
      index = jnp.concatenate([index, own[place % jnp.maximum(auxiliary.sum(), 1)]])
      more = jnp.ones(plan.auxiliary_rows)
      weight = jnp.concatenate([weight, 0 * more])
      is_reference = jnp.concatenate([is_reference, more])
    return Rows(index, weight, is_reference), overflow

  return rows


def _shuffled(key, chosen, chunk=None):
  """Return ids of the chosen records in random order, followed by all others.

  With `chunk` [N], ids of shard 0 come first, then those of shard 1 and so on.
  """
  draws = jnp.where(chosen, jax.random.uniform(key, chosen.shape), jnp.inf)
  if chunk is None:
    return jnp.argsort(draws)
  # Sorting by the sum would round a draw near 1 up to the next shard.
  return jnp.lexsort((draws, chunk, ~chosen))

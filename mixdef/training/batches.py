"""Which rows a step sees: shuffled deals, Poisson draws, and the reference rows."""

import jax
import jax.numpy as jnp

from mixdef.core.hooks import Rows
from mixdef.core.randomness import fold_in_name


def chunk_of(key, keep, groups: int):
  """Cut the members into disjoint chunks of equal size, at random.

  Args:
    key: the model's; the same in every epoch.
    keep: bool [N], the members.
    groups: G, how many chunks.

  Returns:
    int [N], the chunk of each member in [0, G): sizes differ by one at most.
  """
  return jnp.argsort(_shuffled(fold_in_name(key, "chunks"), keep)) % groups


def epoch_rows(key, keep, reference, plan, chunk=None):
  """Prepare one epoch of one model.

  A record's place in the shuffle is a hash of its id and the epoch's key, so it does
  not depend on who else is in the training set. Members are dealt round-robin over the
  steps: no batch is empty or tiny, whatever remainder the division leaves. Poisson
  batches hold each member independently with probability `plan.probability`.

  Args:
    key: the epoch's key.
    keep: bool [N], the rows this model trains on.
    reference: bool [N], the defender's own records.
    plan: the static sizes.
    chunk: int [N], what `chunk_of` returned, where `plan.groups` is more than one; the
      rows of group g are the g-th share of a step, and its members are dealt alone.

  Returns:
    `step -> (Rows, overflow)`, where overflow counts the drawn members that found no
    place; the caller must treat any as an error.
  """
  members = _shuffled(fold_in_name(key, "members"), keep, chunk)
  own = _shuffled(fold_in_name(key, "reference"), reference)
  steps = plan.steps_per_epoch

  def dealt(step):
    group = jnp.arange(plan.groups)[:, None]
    place = (step + steps * jnp.arange(plan.capacity))[None]
    whole, rest = jnp.divmod(keep.sum(), plan.groups)
    first = group * whole + jnp.minimum(group, rest)  # the shuffle is by chunks
    index = members[jnp.minimum(first + place, plan.num_records - 1)]
    real = place < whole + (group < rest)
    # Padding repeats a member of the chunk: a record that is out is never read.
    index = jnp.where(real, index, members[first])
    return index.ravel(), real.ravel(), jnp.int32(0)  # room for the largest model

  def poisson(step):
    draw = jax.random.uniform(
      jax.random.fold_in(fold_in_name(key, "poisson"), step), keep.shape
    )
    drawn = keep & (draw < plan.probability)
    index = jnp.nonzero(drawn, size=plan.capacity, fill_value=0)[0]
    real = jnp.arange(plan.capacity) < drawn.sum()
    index = jnp.where(real, index, members[0])
    return index, real, jnp.maximum(drawn.sum() - plan.capacity, 0)

  def rows(step):
    index, real, overflow = poisson(step) if plan.poisson else dealt(step)
    weight = real.astype(jnp.float32)
    is_reference = jnp.zeros_like(weight)
    if plan.reference_rows:
      place = step + steps * jnp.arange(plan.reference_rows)
      index = jnp.concatenate([index, own[place % jnp.maximum(reference.sum(), 1)]])
      more = jnp.ones(plan.reference_rows)
      weight = jnp.concatenate([weight, 0 * more])
      is_reference = jnp.concatenate([is_reference, more])
    return Rows(index, weight, is_reference), overflow

  return rows


def _shuffled(key, chosen, chunk=None):
  """Ids of the chosen records in random order, the others behind them.

  With `chunk` [N], those of chunk 0 come first, then those of chunk 1 and so on.
  """
  draws = jnp.where(chosen, jax.random.uniform(key, chosen.shape), jnp.inf)
  if chunk is None:
    return jnp.argsort(draws)
  # A sum of both would round a draw near 1 up to the next chunk.
  return jnp.lexsort((draws, chunk, ~chosen))

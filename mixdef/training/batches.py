"""Which rows a step sees: shuffled deals, Poisson draws, and the reference rows."""

import jax
import jax.numpy as jnp

from mixdef.defense import Rows, fold_in_name


def epoch_rows(key, keep, reference, plan):
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

  Returns:
    `step -> (Rows, overflow)`, where overflow counts the drawn members that found no
    place; the caller must treat any as an error.
  """
  members = _shuffled(fold_in_name(key, "members"), keep)
  own = _shuffled(fold_in_name(key, "reference"), reference)
  steps = plan.steps_per_epoch

  def dealt(step):
    place = step + steps * jnp.arange(plan.capacity)
    index = members[jnp.minimum(place, plan.num_records - 1)]
    real = place < keep.sum()
    return index, real, jnp.int32(0)  # the capacity is the largest model's

  def poisson(step):
    draw = jax.random.uniform(
      jax.random.fold_in(fold_in_name(key, "poisson"), step), keep.shape
    )
    drawn = keep & (draw < plan.probability)
    index = jnp.nonzero(drawn, size=plan.capacity, fill_value=0)[0]
    real = jnp.arange(plan.capacity) < drawn.sum()
    return index, real, jnp.maximum(drawn.sum() - plan.capacity, 0)

  def rows(step):
    index, real, overflow = poisson(step) if plan.poisson else dealt(step)
    # Padding repeats a member: a record that is out is never read.
    index = jnp.where(real, index, members[0])
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


def _shuffled(key, chosen):
  """Ids of the chosen records in random order, the others behind them."""
  return jnp.argsort(jnp.where(chosen, jax.random.uniform(key, chosen.shape), 2.0))

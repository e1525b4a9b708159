"""Helpers of learners with several networks: parts of the members, phases, steps."""

import jax
import jax.numpy as jnp

from mixdef.core.randomness import fold_in_name, row_keys


def part_of(key, ids, parts: int):
  """Assign records to disjoint parts, each record independently.

  A record's part depends only on the model's key and the record's id, neither on its
  content nor on the other members. Part sizes are therefore multinomial, not equal, and
  with n members the probability of an empty part is at most L (1 - 1/L)^n.

  Args:
    key: the model's random key.
    ids: int [B], the records' ids.
    parts: L, the number of parts.

  Returns:
    int [B] in [0, L).

  >>> key, some = jax.random.key(0), jnp.array([5, 2])
  >>> bool((part_of(key, some, 3) == part_of(key, jnp.arange(8), 3)[some]).all())
  True
  """
  keys = row_keys(fold_in_name(key, "parts"), ids)
  return jax.vmap(lambda own: jax.random.randint(own, (), 0, parts))(keys)


def phase_of(ctx, phases: int):
  """Return the index, 0 to phases - 1, of the current of `phases` equal phases.

  The lengths of phases differ by at most one epoch. The index is
  floor(phases * ctx.progress), computed in integers, because a rounded product could
  fall into the previous phase.
  """
  return ctx.epoch * phases // ctx.epochs


def check_phases(what: str, epochs: int, phases: int) -> None:
  """Raise if a phase would have no epoch.

  Raises:
    ValueError: the message names both numbers.

  >>> check_phases("model_stacking", 2, 3)
  Traceback (most recent call last):
  ValueError: model_stacking trains in 3 phases: increase epochs=2 to at least 3
  """
  if epochs < phases:
    raise ValueError(
      f"{what} trains in {phases} phases: increase epochs={epochs} to at least {phases}"
    )


def step_on(learner, state, data, rows, chosen, ctx):
  """Take one step of a learner on some of the rows.

  The other rows stay in the batch with weight 0, so shapes are static. A step without
  rows changes nothing; otherwise momentum and weight decay would act without a
  gradient.

  Args:
    learner: learner of one network.
    state: its `TrainState`.
    data: the records.
    rows: the step's `Rows` [B].
    chosen: bool [B].
    ctx: the step's `Ctx`.

  Returns:
    `(state, metrics)`; the metrics are 0 if no row is chosen.
  """
  rows = rows._replace(weight=rows.weight * chosen)
  new, metrics = learner.step(state, data, rows, ctx)
  some = rows.weight.any()
  metrics = {name: jnp.where(some, value, 0.0) for name, value in metrics.items()}
  return jax.tree.map(lambda a, b: jnp.where(some, a, b), new, state), metrics

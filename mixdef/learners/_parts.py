"""What learners of several networks share: parts of the members, phases, steps."""

import jax
import jax.numpy as jnp

from mixdef.core.randomness import fold_in_name, row_keys


def part_of(key, ids, parts: int):
  """Deal records into disjoint parts, each record on its own.

  A record's part depends on nothing but the model's key and the record's id: neither on
  its content nor on who else is a member. So part sizes are multinomial, not equal, and
  of n members none falls into some part with a probability of at most L (1 - 1/L)^n.

  Args:
    key: the model's.
    ids: int [B], the records' ids.
    parts: L, how many parts there are.

  Returns:
    int [B] in [0, L).

  >>> key, some = jax.random.key(0), jnp.array([5, 2])
  >>> bool((part_of(key, some, 3) == part_of(key, jnp.arange(8), 3)[some]).all())
  True
  """
  keys = row_keys(fold_in_name(key, "parts"), ids)
  return jax.vmap(lambda own: jax.random.randint(own, (), 0, parts))(keys)


def phase_of(ctx, phases: int):
  """Which of `phases` equal shares of the epochs this is: 0 to phases - 1.

  Shares differ by one epoch at most. It is floor(phases * ctx.progress), in integers:
  a rounded product could fall into the phase before.
  """
  return ctx.epoch * phases // ctx.epochs


def check_phases(what: str, epochs: int, phases: int) -> None:
  """Refuse a training that leaves a phase without an epoch.

  Raises:
    ValueError: with both numbers.

  >>> check_phases("model_stacking", 2, 3)
  Traceback (most recent call last):
  ValueError: model_stacking trains in 3 phases: raise epochs=2 to at least 3
  """
  if epochs < phases:
    raise ValueError(
      f"{what} trains in {phases} phases: raise epochs={epochs} to at least {phases}"
    )


def step_on(learner, state, data, rows, chosen, ctx):
  """Take one step of a learner on some of the rows.

  The other rows keep their places with weight 0, so shapes are static. A step without
  any row changes nothing: momentum and weight decay would act without a gradient.

  Args:
    learner: of one network.
    state: its `TrainState`.
    data: the records.
    rows: the step's `Rows` [B].
    chosen: bool [B].
    ctx: the step's `Ctx`.

  Returns:
    `(state, metrics)`, the metrics 0 where there is no row.
  """
  rows = rows._replace(weight=rows.weight * chosen)
  new, metrics = learner.step(state, data, rows, ctx)
  some = rows.weight.any()
  metrics = {name: jnp.where(some, value, 0.0) for name, value in metrics.items()}
  return jax.tree.map(lambda a, b: jnp.where(some, a, b), new, state), metrics

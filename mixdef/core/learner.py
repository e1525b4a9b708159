"""A `Learner`: model, optimizer and defense as pure functions that `fit` drives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from mixdef.core.chaining import chain
from mixdef.core.hooks import (
  Defense,
  Hook,
  Stage,
  mean_value_and_grad,
  weighted_mean,
)
from mixdef.core.optimizers import offered


class TrainState(NamedTuple):
  """Everything one model carries; `stats` holds BatchNorm's running statistics.

  `key` is the model's own: every draw of its training and release comes from it.
  """

  params: Any
  stats: Any
  opt: Any
  defense: Any
  key: Any


class Learner(NamedTuple):
  """Pure functions of one model's training; hashable, so programs are cached by it.

  ```
  init    (key, spec) -> TrainState
  step    (state, data, rows, ctx) -> (state, metrics)
  epoch   (state, data, keep, ctx) -> state      None: nothing happens then
  finish  (state, data, keep, ctx) -> state      None: nothing happens then
  predict (state, x, *, raw=False) -> log-probabilities [B,K]

  of a GAN also:
  predict  (state, x, *, y=None, raw=False) -> D(x, y) of every critic [B,C]
  generate (state, z [B,latent], y [B,K]) -> records [B,...]
  ```

  `predict` answers as the released model does; `raw=True` skips `release_output`: the
  released weights' own answer, which white-box attacks see. `batch`, `before`, `rows`
  and `traits` are the defense's; an attack may change records as `batch` does. `text`
  says what is trained, for messages.

  A GAN has `generate`, with z ~ N(0, I) of `latent` numbers and conditions y, rows of
  the simplex over `num_classes`.
  Its members are cut into `groups` disjoint chunks of equal size, one a critic, and a
  step sees the rows of all of them, [groups * B].
  """

  init: Callable
  step: Callable
  epoch: Hook
  finish: Hook
  predict: Callable
  batch: Hook = None
  before: tuple[tuple[Stage, "Learner"], ...] = ()
  rows: Hook = None
  traits: frozenset[str] = frozenset()
  text: str = ""
  generate: Hook = None
  latent: int = 0
  num_classes: int = 0
  groups: int = 1


def descend(defense, optimizer, losses_fn, params, opt, state, batch, ctx):
  """Estimate the gradient, let the defense change it, take one optimizer step.

  Args:
    defense: a chain.
    optimizer: what `check_optimizer` returned.
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`, not reduced.
    params: parameters of the model.
    opt: the optimizer's state.
    state: the defense's state.
    batch: the `Batch`, already transformed.
    ctx: the step's `Ctx`.

  Returns:
    `(params, opt, state, value, losses [B], aux)`.
  """
  estimate = (defense.value_and_grad or mean_value_and_grad)(losses_fn)
  (value, (losses, aux)), grads = estimate(params, batch, state, ctx)
  if defense.grads:
    grads, state = defense.grads(grads, state, ctx, params)

  def value_fn(params):
    return weighted_mean(losses_fn(params, batch, ctx)[0], batch.weight)

  extra = {"value": value, "grad": grads, "value_fn": value_fn}
  extra = {name: extra[name] for name in offered(defense)}
  updates, opt = optimizer.update(grads, opt, params, **extra)
  return optax.apply_updates(params, updates), opt, state, value, losses, aux


def stage_learners(defense: Defense, learner: Callable) -> tuple:
  """Return the stages of a chain, each with the learner of its models.

  Args:
    defense: a chain.
    learner: `(defense=) -> Learner`, the structure that all of them share.
  """
  return tuple(
    # The learner carries the stage's defense, and it does not hash.
    (
      stage._replace(defense=None),
      learner(defense=_stage_defense(stage, defense)),
    )
    for stage in defense.before
  )


def _stage_defense(stage, defense):
  """The stage's own defense, or the rest of the chain without its model fields.

  The module already carries those fields.
  """
  if stage.defense is not None:
    return stage.defense
  return chain(*(p._replace(model=None) for p in defense.parts if not p.before))

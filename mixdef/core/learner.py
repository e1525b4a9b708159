"""`Learner`: model, optimizer and defense as pure functions, driven by `fit`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from mixdef.core.chaining import chain
from mixdef.core.estimators import mean_value_and_grad
from mixdef.core.hooks import (
  Defense,
  Stage,
  Transform,
  weighted_mean,
)
from mixdef.core.optimizers import offered
from mixdef.core.traits import Traits


class TrainState(NamedTuple):
  """The complete state of one model; `stats` holds BatchNorm's running statistics.

  `key` belongs to the model: all randomness of its training and release derives from
  it.
  """

  params: Any
  stats: Any
  opt: Any
  defense: Any
  key: Any


class Learner(NamedTuple):
  """Pure functions that train one model; hashable, so it keys the program cache.

  ```
  init      (key, spec) -> TrainState
  step      (state, data, rows, ctx) -> (state, metrics)
  epoch     (state, data, members, ctx) -> state      None: no action
  finish    (state, data, members, ctx) -> state      None: no action
  predict   (state, x, *, raw=False) -> log-probabilities [B,K]
  guarantee (state) -> {"epsilon", "delta"}           None: no epsilon is stated
  features  (state, data, rows, ctx) -> (x -> [N,...])  None: no layer is frozen

  for a GAN:
  predict   (state, x, *, y=None, raw=False) -> D(x, y) of every critic [B,C]
  generate  (state, z [B,latent], y [B,K]) -> records [B,...]
  ```

  A learner receives a `ctx` with a key and the position, and adds the other fields for
  the hooks. A step reads `data.x` only at the positions in `rows.index`, because other
  records may not be on the device.

  `predict` returns the output of the released model. `raw=True` skips `release_output`
  and returns the output of the released weights, as in white-box attacks. `batch`,
  `stages`, `rows` and `traits` are the defense's; attacks may use `batch` to transform
  records as training does. `text` describes the learner in messages; `defense` and
  `network` name, for reports, its chain, or itself if it takes none, and the classes of
  its networks. `model` is what a classifier was made of: a linen module, or the
  `Network` of any other model.
  `features` takes the shapes of the arguments of `step`, and returns the function that
  computes `Featured.features`; it raises `NoFeatures` if the steps need the records.

  A GAN has `generate`, with z ~ N(0, I) of dimension `latent` and conditions y, rows of
  the simplex over `num_classes`. Its members are split into `num_shards` disjoint
  shards of equal size, one per critic, and a step sees the rows of all: [num_shards *
  B].
  """

  init: Callable
  step: Callable
  epoch: Callable | None
  finish: Callable | None
  predict: Callable
  batch: Transform | None = None
  stages: tuple[tuple[Stage, "Learner"], ...] = ()
  rows: Callable | None = None
  traits: Traits = Traits()
  text: str = ""
  generate: Callable | None = None
  latent: int = 0
  num_classes: int = 0
  num_shards: int = 1
  guarantee: Callable | None = None
  model: Any = None
  features: Callable | None = None
  defense: str = ""
  network: str = ""

  @property
  def kind(self) -> str:
    """The kind of trained models: "classifiers" or "generators"."""
    return "generators" if self.generate else "classifiers"


def descend(defense, optimizer, losses_fn, variables, opt, state, batch, ctx):
  """Take one optimizer step: estimate the gradient, apply the defense, update.

  Args:
    defense: a chain.
    optimizer: an optimizer returned by `check_optimizer`.
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`, not reduced. The batch
      is the whole batch, a part of it or one record, so `losses_fn` must set
      `ctx.batch` for the hooks.
    variables: {"params": ...}, and the model's statistics if it has any.
    opt: the optimizer's state.
    state: the defense's state.
    batch: the `Batch`, already transformed.
    ctx: the step's `Ctx`, a key and the position.

  Returns:
    `(params, opt, state, value, losses [B], aux)`.
  """
  params = variables["params"]
  estimate = (defense.value_and_grad or mean_value_and_grad)(losses_fn)
  (value, (losses, aux)), grads = estimate(params, batch, state, ctx)
  noise_std = defense.noise_std(state) if defense.noise_std else None
  if defense.grads:
    grads, state = defense.grads(grads, state, ctx._replace(variables=variables))

  def value_fn(params):
    return weighted_mean(losses_fn(params, batch, ctx)[0], batch.weight)

  extra = {"value": value, "grad": grads, "value_fn": value_fn, "noise_std": noise_std}
  extra = {name: extra[name] for name in offered(defense)}
  updates, opt = optimizer.update(grads, opt, params, **extra)
  return optax.apply_updates(params, updates), opt, state, value, losses, aux


def guarantee_of(defense: Defense) -> Callable | None:
  """Return `Learner.guarantee` for a chain, whose state is `TrainState.defense`.

  If every critic of a GAN has its own state, the largest values are returned.
  """
  states = defense.guarantee
  if states is None:
    return None
  return lambda state: {k: jnp.max(v) for k, v in states(state.defense).items()}


def stage_learners(defense: Defense, learner: Callable) -> tuple:
  """Return the stages of a chain, each with the learner of its models.

  Args:
    defense: a chain.
    learner: `(defense=) -> Learner`, which builds the learner of each stage.
  """
  return tuple(
    # The learner already holds the stage's defense, which is not hashable.
    (
      stage._replace(defense=None),
      learner(defense=_stage_defense(stage, defense)),
    )
    for stage in defense.stages
  )


def _stage_defense(stage, defense):
  """Return the stage's own defense, or the rest of the chain, for its model."""
  if stage.defense is not None:
    return stage.defense
  rest = [part for part in defense.parts if not part.stages]
  if stage.composes:
    rest = [_among(part, 1 + stage.models) for part in rest]
  return chain(*(part._replace(model=None, network=None) for part in rest))


def _among(part, trainings):
  """Return a part whose epsilon, if it states one, covers so many trainings."""
  if not (part.traits.composes and part.guarantee):
    return part
  return part._replace(
    init=lambda key, spec: part.init(key, spec._replace(trainings=trainings))
  )

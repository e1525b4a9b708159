"""The learner of a classifier: one network, its optimizer and its defense."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core import isolation
from mixdef.core.chaining import chain
from mixdef.core.estimators import mean_value_and_grad
from mixdef.core.hooks import Batch, Ctx, Data, Defense, Featured, weighted_mean
from mixdef.core.learner import (
  Learner,
  TrainState,
  descend,
  guarantee_of,
  stage_learners,
)
from mixdef.core.optimizers import check_optimizer, offered, start
from mixdef.core.randomness import fold_in_name
from mixdef.data import to_float
from mixdef.models.adapters import adapt
from mixdef.models.features import NoFeatures, features_of
from mixdef.models.probing import called, check_network

_BLOCK = 512  # records per forward pass of an epoch hook


def classifier(
  model, optimizer, defense: Defense | None = None, *, microbatch: int | None = None
) -> Learner:
  """Create the learner of a classifier.

  Args:
    model: a linen module; a function `rngs -> module` or class of NNX; a function `key
      -> module` or class of Equinox, or a module of either; or a pair `(init, apply)`
      (see `models.adapt`). Called with x [B,...] it returns logits [B,K]. It may take
      a training flag, such as `train` or `deterministic`, and `weight` [B] (0 =
      padding).
    optimizer: optax transform. If it reads the loss, as `reduce_on_plateau` does, it
      receives the loss of the batch, except under `dp_sgd`, whose noise does not cover
      it.
    defense: a defense or chain; None means undefended.
    microbatch: number of rows of a step that are differentiated at once, >= 1; their
      gradients are summed. A step then needs memory for only this many rows, which on a
      CPU stay in cache, and its gradient equals that of the whole batch up to rounding.
      Each group of rows draws its own dropout mask. None differentiates the whole batch
      at once.

  Returns:
    The `Learner`. Its metrics are the mean training loss and `accuracy`, the agreement
    with the target's most likely class, which is the dominant record of a mixed row and
    the top class of a soft label.

  Raises:
    TypeError: for anything but such a model and an optax transform.
    ValueError: for a defense that the model or microbatches cannot carry; at `init`,
      for a model that returns anything but logits of the data's classes, whose dropout
      or statistics never act, or whose variables cannot be updated (with `dp_sgd` or
      microbatches, none can, such as BatchNorm's statistics), and for an optimizer that
      needs an argument that is not available.

  >>> import optax
  >>> from mixdef import models
  >>> learner = classifier(models.mlp(32), optax.adam(1e-3))
  """
  defense = chain() if defense is None else chain(defense)
  _refuse_critics_parts(defense)
  if not isinstance(model, nn.Module):
    model = adapt(model)  # which can be hashed, and is adapted once
  instead = _without_statistics(model)
  given, model = model, _with_fields(model, defense)
  network = adapt(model)
  if defense.network:
    given = model = network = defense.network(network)
  optimizer = check_optimizer(optimizer)
  if microbatch is not None:
    _check_microbatch(microbatch, defense)
    estimator = functools.partial(mean_value_and_grad, microbatch=microbatch)
    defense = defense._replace(value_and_grad=estimator)

  def infer(variables, x):
    return jax.nn.log_softmax(network.apply(variables, x, train=False)[0])

  def init(key, spec):
    spec = isolation.public(spec) if defense.traits.per_example else spec
    key_of_params, example = fold_in_name(key, "params"), spec.example
    make = functools.partial(network.init, key_of_params, example)
    variables = called(make, example)
    _check_kept(variables, defense, microbatch, instead)
    check_network(network, variables, example, spec.num_classes)
    spec = spec._replace(variables=variables)
    params = variables["params"]
    stats = {name: value for name, value in variables.items() if name != "params"}
    key_of_defense = fold_in_name(key, "defense")
    state = defense.init(key_of_defense, spec) if defense.init else {}
    opt = start(
      *(optimizer, params, fold_in_name(key, "optimizer")),
      extra=offered(defense),
      why=f", for {defense} covers no loss" if defense.traits.per_example else "",
    )
    return TrainState(params, stats, opt, state, key)

  def step(state, data, rows, ctx):
    batch = _gather(data, rows, infer, _variables(state))
    if defense.batch:
      own = batch.x.dtype
      batch = defense.batch(batch, state.defense, ctx)
      if batch.x.dtype != own and jnp.issubdtype(own, jnp.integer):
        raise ValueError(
          f"a batch hook of {defense} makes {batch.x.dtype} of {own} records, names "
          "such as token ids: leave it out, or pass quantities as float32"
        )

    def losses_fn(params, batch, ctx):
      variables = {"params": params, **state.stats}
      # The first row's id gives single-record batches different dropout masks.
      key = jax.random.fold_in(fold_in_name(ctx.key, "model"), batch.index[0])
      instead = {} if batch.features is None else {"features": batch.features}
      logits, stats = network.apply(
        variables,
        batch.x,
        train=True,
        key=key,
        weight=batch.weight,
        **instead,
      )
      log_probs = jax.nn.log_softmax(logits)
      ctx = ctx._replace(batch=batch)
      if defense.log_probs:
        log_probs = defense.log_probs(log_probs, state.defense, ctx)
      losses = -(batch.y * log_probs).sum(-1)
      if defense.loss:
        known = ctx._replace(log_probs=log_probs)
        losses = defense.loss(losses, state.defense, known)
      return losses, (log_probs, stats)

    params, opt, defended, value, losses, (log_probs, stats) = descend(
      *(defense, optimizer, losses_fn, _variables(state), state.opt, state.defense),
      *(batch, ctx),
    )
    stats = {**state.stats, **stats}
    if defense.update:
      log_probs, losses = jax.lax.stop_gradient((log_probs, losses))
      known = ctx._replace(
        batch=batch,
        log_probs=log_probs,
        losses=losses,
        variables={"params": params, **stats},
      )
      defended = defense.update(defended, known)
    hits = (log_probs.argmax(-1) == batch.y.argmax(-1)).astype(jnp.float32)
    metrics = {"loss": value, "accuracy": weighted_mean(hits, batch.weight)}
    return TrainState(params, stats, opt, defended, state.key), metrics

  def features(state, data, rows, ctx):
    def seen(state, data, rows, key, step, epoch):
      at = ctx._replace(key=key, step=step, epoch=epoch)
      batch = _gather(data, rows, infer, _variables(state))
      for part in defense.parts or ():
        if part.batch:
          out = part.batch(batch, state.defense[part.name], at)
          if out.x is not batch.x or out.index is not batch.index:
            raise NoFeatures(f"{part.name} changes the records of a batch")
      return ()

    jax.eval_shape(seen, state, data, rows, *ctx[:3])
    return features_of(network, _variables(state), data.x)

  def released(state):
    variables = _variables(state)
    if defense.release_params:
      return defense.release_params(variables, state.defense, _at_release(state))
    return variables

  def refreshing(hook, variables_of):
    """Return the learner's `epoch` or `finish`, which refreshes the defense's state."""
    if hook is None:
      return None

    def run(state, data, members, ctx):
      variables = variables_of(state)

      def predict(x):
        return jax.lax.map(
          lambda record: infer(variables, record[None])[0], x, batch_size=_BLOCK
        )

      known = ctx._replace(
        variables=variables, predict=predict, data=Data(*data[:3]), members=members
      )
      return state._replace(defense=hook(state.defense, known))

    return run

  def predict(state, x, *, raw=False):
    log_probs = infer(released(state), x)
    if defense.release_output and not raw:
      ctx = _at_release(state)._replace(queries=x)
      log_probs = defense.release_output(log_probs, state.defense, ctx)
    return log_probs

  return Learner(
    init=init,
    step=step,
    epoch=refreshing(defense.epoch, _variables),
    finish=refreshing(defense.finish, released),
    predict=predict,
    batch=defense.batch,
    stages=stage_learners(
      defense,
      functools.partial(classifier, model, optimizer, microbatch=microbatch),
    ),
    rows=defense.rows,
    traits=defense.traits,
    text=f"{network.text}|{defense}"
    + (f"|microbatch={microbatch}" if microbatch else ""),
    model=given,
    guarantee=guarantee_of(defense),
    features=features if network.features else None,
    defense=str(defense),
    network=network.name,
  )


def _variables(state):
  return {"params": state.params, **state.stats}


def _at_release(state):
  """Return the `Ctx` of a trained model, which has a key and no position."""
  return Ctx(
    key=fold_in_name(state.key, "release"),
    step=None,
    epoch=None,
    epochs=None,
    steps_per_epoch=None,
    batch_size=None,
  )


def _refuse_critics_parts(defense):
  for part in defense.parts:
    if part.traits.critic:
      raise ValueError(f"{part.name} acts on the critic of a GAN: give it to wgan_gp")


def _with_fields(model, defense):
  if not defense.model:
    return model
  if not isinstance(model, nn.Module):
    part = next(part for part in defense.parts if part.model)
    raise ValueError(
      f"{part.name} sets a field of a linen module, and this model is not one: set it "
      "in the model and remove the defense"
    )
  fields = set(model.__dataclass_fields__)
  for part in defense.parts:
    for name in part.model or {}:
      if name not in fields:
        raise ValueError(
          f"{part.name} sets the field {name!r}, which {type(model).__name__} lacks: "
          f"add it to the module or drop the defense"
        )
  return model.clone(**defense.model)


def _check_microbatch(microbatch, defense):
  if type(microbatch) is not int or microbatch < 1:
    raise ValueError(
      f"microbatch={microbatch!r} must be an integer of at least 1, or None for the "
      "whole batch"
    )
  for part in defense.parts:
    if part.value_and_grad:
      raise ValueError(
        f"{part.name} estimates gradients in its own way, without "
        f"microbatch={microbatch}: leave it out"
      )
    if part.traits.couples == "batch":
      raise ValueError(
        f"{part.name} couples the records of a batch, which microbatch={microbatch} "
        "would take apart: leave it out"
      )


def _without_statistics(model):
  """Return what to use in place of BatchNorm in a model."""
  if type(model).__module__.startswith("mixdef.") and hasattr(model, "norm"):
    return "use norm='group'"
  layers = "nn" if isinstance(model, nn.Module) else "nnx"
  return f"use {layers}.GroupNorm or {layers}.LayerNorm instead of BatchNorm"


def _check_kept(variables, defense, microbatch, instead):
  """Raise if a model has variables other than parameters that a step cannot update."""
  kept = sorted(variables.keys() - {"params", "constants", "frozen"})
  if kept and defense.traits.per_example:
    raise ValueError(
      f"the model keeps {kept[0]}, as BatchNorm does, which per-example clipping does "
      f"not bound and no noise covers: {instead}, or keep parameters alone"
    )
  if kept and microbatch is not None:
    raise ValueError(
      f"the model keeps {kept[0]}, which microbatch={microbatch} would update by "
      f"parts of a batch: {instead}, or leave microbatch out"
    )


def _gather(data, rows, infer, variables):
  x, y = data.x[rows.index], data.y[rows.index]
  classes = jax.eval_shape(infer, variables, x[:1]).shape[-1]
  return Batch(
    x=to_float(x),
    y=jax.nn.one_hot(y, classes),
    index=rows.index,
    weight=rows.weight,
    auxiliary=rows.auxiliary,
    partner=rows.index,
    lam=jnp.ones_like(rows.weight),
    features=data.features[rows.index] if isinstance(data, Featured) else None,
  )

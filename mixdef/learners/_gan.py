"""Common parts of GAN learners: networks, batches, fakes, steps and the `Learner`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mixdef.core.hooks import Batch, weighted_mean
from mixdef.core.learner import Learner, descend, guarantee_of
from mixdef.core.optimizers import check_optimizer, start
from mixdef.core.randomness import fold_in_name, random_key, row_keys
from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models import Networks
from mixdef.models.network import Network

UNSHARED = ", because a GAN has no single loss"
"""The reason why optimizers of a GAN receive only gradients and parameters."""

# Hooks that do not apply to a GAN, and what they would read or change.
_REFUSED = {
  "network": "selects the trained parameters of a classifier",
  "model": "sets fields of a classifier",
  "rows": "selects rows other than the members",
  "log_probs": "changes a classifier's log-probabilities",
  "epoch": "reads a classifier's outputs after each epoch",
  "finish": "reads a classifier's outputs after training",
  "release_params": "releases other weights than those trained",
  "release_output": "changes a classifier's released outputs",
}


class Pairs(NamedTuple):
  """A critic's inputs: records, fakes with the same conditions, and points in between.

  All are [B, *shape]; they replace `Batch.x`.
  """

  real: Any
  fake: Any
  between: Any


def gather(data, rows, num_classes: int) -> Batch:
  """Return the unmixed batch of a step's rows, with one-hot conditions."""
  return Batch(
    x=to_float(data.x[rows.index]),
    y=jax.nn.one_hot(data.y[rows.index], num_classes),
    index=rows.index,
    weight=rows.weight,
    auxiliary=rows.auxiliary,
    partner=rows.index,
    lam=jnp.ones_like(rows.weight),
  )


def by_shard(rows, shards: int):
  """Reshape a step's rows [K*B] to shards [K,B]."""
  return jax.tree.map(lambda leaf: leaf.reshape(shards, -1), rows)


def latents(key, ids, latent: int):
  """Draw z ~ N(0, I) [B,latent]; a row's z depends only on its id."""
  keys = row_keys(fold_in_name(key, "latent"), ids)
  return jax.vmap(lambda own: jax.random.normal(own, (latent,)))(keys)


def fakes_of(networks: Networks, g, stats, batch: Batch, key):
  """Return fakes with the conditions of a batch, and the generator's new statistics."""
  z = latents(key, batch.index, networks.latent)
  # The first row's id gives single rows different dropout masks.
  own = jax.random.fold_in(key, batch.index[0])
  return networks.fakes(g, stats, z, batch.y, batch.weight, own)


def real_and_fake(networks: Networks, g, stats, data, rows, key):
  """Return the batch of a shard's rows, and fixed fakes with the same conditions.

  The generator's statistics are not updated, because the conditions are those of
  members.
  """
  batch = gather(data, rows, networks.num_classes)
  fake, _ = fakes_of(networks, g, stats, batch, key)
  return batch, jax.lax.stop_gradient(fake)


def public_conditions(key, count: int, num_classes: int):
  """Draw uniform conditions [B,K], independent of the members."""
  labels = jax.random.randint(fold_in_name(key, "conditions"), (count,), 0, num_classes)
  return jax.nn.one_hot(labels, num_classes)


def public_fakes(networks: Networks, key, count: int):
  """Draw z ~ N(0, I) [B,latent] and uniform conditions [B,K], free of the members."""
  z = latents(key, jnp.arange(count), networks.latent)
  return z, public_conditions(key, count, networks.num_classes)


def between(key, real, fake, ids):
  """Draw a point on the line between each record and its fake [B, *shape]."""
  keys = row_keys(fold_in_name(key, "between"), ids)
  share = jax.vmap(jax.random.uniform)(keys)
  share = share.reshape(-1, *(1,) * (real.ndim - 1))
  return share * real + (1 - share) * fake


def gradient_penalty(score, x):
  """Return (||grad_x D(x)||_2 - 1)^2 per record [B].

  Args:
    score: x [B, *shape] -> D(x) [B]; each record is scored independently, so the
      gradient of the sum contains the gradient of each score.
    x: [B, *shape].
  """
  gradient = jax.grad(lambda x: score(x).sum())(x)
  square = jnp.square(gradient).reshape(len(x), -1).sum(1)
  # The norm is not differentiable at zero.
  return jnp.square(jnp.sqrt(square + 1e-12) - 1)


def wasserstein(networks: Networks, params, pairs: Pairs, y):
  """Return D(x,y), D(x',y) and (||grad D(x^,y)||_2 - 1)^2 per row [B]."""

  def score(x):
    return networks.score(params, x, y)

  return score(pairs.real), score(pairs.fake), gradient_penalty(score, pairs.between)


def minimize(loss: Callable, optimizer, params, opt):
  """Take one step of an optimizer on `loss: params -> (value, aux)`.

  Returns:
    `(params, opt, value, aux)`.
  """
  (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
  updates, opt = optimizer.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, value, aux


def defended_step(defense, optimizer, losses_fn, critic, batch, ctx, x=None):
  """Take one step of a critic under a defense.

  Args:
    defense: a chain.
    optimizer: an optimizer returned by `check_optimizer`.
    losses_fn: `(params, batch, ctx) -> (losses [B], D(real) - D(fake) [B])`.
    critic: its parameters, optimizer state and defense state.
    batch: the `Batch`, already transformed.
    ctx: the step's `Ctx`.
    x: replaces `batch.x` in `losses_fn`, if given.

  Returns:
    `(critic, metrics)`.
  """
  params, opt, state = critic
  seen = batch if x is None else batch._replace(x=x)
  params, opt, state, value, losses, apart = descend(
    defense, optimizer, losses_fn, {"params": params}, opt, state, seen, ctx
  )
  if defense.update:
    losses = jax.lax.stop_gradient(losses)
    known = ctx._replace(batch=batch, losses=losses, variables={"params": params})
    state = defense.update(state, known)
  metrics = {"critic_loss": value, "distance": weighted_mean(apart, batch.weight)}
  return (params, opt, state), metrics


def put(state, name: str, params, opt, **fields):
  """Replace one network and its optimizer's state, and other fields of the state."""
  return state._replace(
    params={**state.params, name: params}, opt={**state.opt, name: opt}, **fields
  )


def generator_due(ctx, critic_steps: int, warm_epochs: int = 0):
  """Return whether a generator step is due: every `critic_steps` steps, once warm."""
  place = ctx.step - warm_epochs * ctx.steps_per_epoch
  return (place >= 0) & ((place + 1) % critic_steps == 0)


def alternate(due, generator_step: Callable, state, metrics):
  """Take the generator's step `(state, metrics) -> (state, metrics)` if it is due."""
  state, metrics = jax.lax.cond(due, generator_step, lambda *same: same, state, metrics)
  return state, {**metrics, "generator_steps": due.astype(jnp.float32)}


def init_networks(networks: Networks, optimizer, key, spec, *, critics: int):
  """Initialize one generator and several critics, with their optimizer states.

  Args:
    networks: generator and critic.
    optimizer: optax optimizer of all networks.
    key: the model's random key.
    spec: the training's `Spec`.
    critics: K, the number of critics and the leading axis of their leaves.

  Returns:
    `(params, stats, opt)`, params and opt as `{"g": ..., "d": ...}`.

  Raises:
    ValueError: for networks that do not fit the records, or a critic with state
      that depends on several records.
  """
  check_sizes(networks, spec)
  y = jnp.zeros((1, networks.num_classes))
  z = jnp.zeros((1, networks.latent))
  made = dict(networks.generator.init(fold_in_name(key, "generator"), z, y))
  example = to_float(spec.example)

  _refuse_random(networks.critic, example, y)

  def critic_of(key):
    variables = networks.critic.init(key, example, y)
    if variables.keys() != {"params"}:
      raise ValueError(
        "the critic has state besides its parameters, such as BatchNorm's statistics, "
        "so a record's score would depend on others: use instance or group "
        "normalization"
      )
    return variables["params"]

  d = jax.vmap(critic_of)(row_keys(fold_in_name(key, "critic"), jnp.arange(critics)))
  g = made.pop("params")
  own = row_keys(fold_in_name(key, "critic_optimizer"), jnp.arange(critics))
  opt = {
    "g": start(optimizer, g, fold_in_name(key, "optimizer"), why=UNSHARED),
    "d": jax.vmap(lambda p, key: start(optimizer, p, key, why=UNSHARED))(d, own),
  }
  return {"g": g, "d": d}, made, opt


def gan_learner(
  name: str, networks: Any, init, step, *, defense=None, released="g", **fields
) -> Learner:
  """Return the `Learner` of a GAN.

  `predict` is the score of every critic for records [B,C]; without conditions, the
  critics are evaluated with the uniform condition.

  Args:
    name: the method and its options, the first part of the text.
    networks: `Networks`, or another named tuple of modules with their sizes.
    init: as in `Learner`.
    step: as in `Learner`.
    defense: a chain, or None for a learner without a defense.
    released: name of the generator's parameters that `generate` uses.
    **fields: other fields of the `Learner`.
  """

  def predict(state, x, *, y=None, raw=False):
    del raw  # no hook changes the scores
    x, classes = to_float(x), networks.num_classes
    y = jnp.full((len(x), classes), 1 / classes) if y is None else y
    return jax.vmap(lambda d: networks.score(d, x, y), out_axes=1)(state.params["d"])

  def generate(state, z, y):
    return networks.generate(state.params[released], state.stats, z, y)

  texts = [text_of(field) for field in networks if isinstance(field, nn.Module)]
  adapted = [field for field in networks if isinstance(field, Network)]
  parts = [name, *texts, *(network.text for network in adapted)]
  names = [type(field).__name__ for field in networks if isinstance(field, nn.Module)]
  if defense is not None:
    parts.append(str(defense))
    fields["batch"], fields["traits"] = defense.batch, defense.traits
    fields["guarantee"] = guarantee_of(defense)
  own: dict[str, Any] = {
    "predict": predict,
    "generate": generate,
    "text": "|".join(parts),
    "latent": networks.latent,
    "num_classes": networks.num_classes,
    "defense": name if defense is None else str(defense),
    "network": ", ".join([*names, *(network.name for network in adapted)]),
  }
  return Learner(init, step, None, None, **{**own, **fields})


def refuse_parts(name: str, defense) -> None:
  """Raise if a part of a chain has a hook that does not apply to a GAN.

  Raises:
    ValueError: the message names the part and the reason.
  """
  for part in defense.parts:
    if part.traits.bands > 1:
      raise ValueError(
        f"{name} does not support the correlated noise of {part.name}, which is that "
        "of a classifier's training: drop bands"
      )
    for hook, what in _REFUSED.items():
      if getattr(part, hook) is not None:
        raise ValueError(
          f"{name} does not support {part.name}, which {what}: remove it"
        )
    if part.stages and not part.traits.critic:
      raise ValueError(
        f"{name} does not support {part.name}, which learns from classifiers trained "
        "before: remove it"
      )
    if part.value_and_grad is not None and not part.traits.per_example:
      raise ValueError(
        f"{name} does not support {part.name}, whose gradients are those of a "
        "classifier's loss: remove it"
      )
    if part.loss is not None and not part.traits.critic:
      raise ValueError(
        f"{name} does not support {part.name}, which acts on a classifier's loss: "
        "remove it"
      )


def _refuse_random(critic, example, y):
  """Raise if a critic draws random numbers in training, where it receives no key."""

  def run(key, x, y):
    variables = critic.init(key, x, y)
    return critic.apply(variables, x, y, train=True, key=key)[0], variables

  drawn, initial = (
    str(jax.make_jaxpr(program)(random_key(0), example, y)).count("random_bits")
    for program in (run, critic.init)
  )
  if drawn > initial:
    raise ValueError(
      "the critic draws random numbers in training, as dropout does, which is not "
      "supported: remove them"
    )


def check_parts(networks: Any, optimizer: Any) -> tuple[Any, Any]:
  """Check the arguments; return the networks, adapted, and the optimizer.

  Raises:
    TypeError: the message names the type.
    ValueError: for a network that needs what a learner does not know.
  """
  if not isinstance(networks, Networks):
    raise TypeError(
      f"networks is {text_of(networks)[:60]} of type {type(networks).__name__}: pass "
      "models.image_networks(...), table_networks(...) or Networks(generator, critic, "
      "latent, num_classes, shape)"
    )
  return networks.adapted(), check_optimizer(optimizer)


def check_sizes(networks, spec) -> None:
  """Raise if networks do not fit the records.

  Raises:
    ValueError: the message names both sizes.
  """
  if spec.num_classes != networks.num_classes:
    raise ValueError(
      f"the networks expect {networks.num_classes} classes, but the data have "
      f"{spec.num_classes}: build them with num_classes={spec.num_classes}"
    )
  shape = spec.example.shape[1:]
  if shape != networks.shape:
    raise ValueError(
      f"the networks produce records of shape {networks.shape}, but the data have "
      f"{shape}: build them with {shape}"
    )

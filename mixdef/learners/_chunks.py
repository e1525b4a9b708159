"""Helpers of GAN learners: initialization, critic outputs and shards of members."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixdef.core.optimizers import start
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.data import to_float
from mixdef.learners._gan import (
  UNSHARED,
  between,
  check_sizes,
  gather,
  gradient_penalty,
  latents,
  uniform_conditions,
)
from mixdef.models import Networks


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
    ValueError: for networks that do not fit the records, or a critic that compares
      them.
  """
  check_sizes(networks, spec)
  y = jnp.zeros((1, networks.num_classes))
  z = jnp.zeros((1, networks.latent))
  made = dict(networks.generator.init(fold_in_name(key, "generator"), z, y))
  example = to_float(spec.example)

  def critic_of(key):
    variables = networks.critic.init(key, example, y)
    if variables.keys() != {"params"}:
      raise ValueError(
        "the critic keeps more than parameters, as BatchNorm does, and a record's "
        "score would depend on others: use instance or group normalisation"
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


def critics_answers(networks: Networks) -> Callable:
  """Return `predict` of a learner: the score of every critic for records [B,C].

  Without conditions, the critics are evaluated with the uniform condition.
  """

  def predict(state, x, *, y=None, raw=False):
    del raw  # no hook changes the scores
    x, y = to_float(x), uniform_conditions(y, len(x), networks.num_classes)

    def answer(params):
      return networks.critic.apply({"params": params}, x, y)

    return jax.vmap(answer, out_axes=1)(state.params["d"])

  return predict


def by_chunk(rows, chunks: int):
  """Reshape a step's rows [K*B] to shards [K,B]."""
  return jax.tree.map(lambda leaf: leaf.reshape(chunks, -1), rows)


def real_and_fake(networks: Networks, g, stats, data, rows, key):
  """Return the batch of a shard's rows, and fakes with the same conditions.

  The generator runs in training mode but its statistics are not updated, because the
  conditions are those of members.
  """
  batch = gather(data, rows, networks.num_classes)
  z = latents(key, batch.index, networks.latent)
  how = {"train": True, "weight": batch.weight, "mutable": list(stats)}
  fake, _ = networks.generator.apply({"params": g, **stats}, z, batch.y, **how)
  return batch, jax.lax.stop_gradient(fake)


def wasserstein_losses(critic, params, batch, fake, key, penalty: float):
  """Return -D(x,y) + D(x',y) + penalty (||grad D(x^,y)||_2 - 1)^2 per row [B].

  Returns:
    `(losses [B], D(x,y) [B], D(x',y) [B])`.
  """

  def score(x):
    return critic.apply({"params": params}, x, batch.y)

  real, made = score(batch.x), score(fake)
  points = between(key, batch.x, fake, batch.index)
  return made - real + penalty * gradient_penalty(score, points), real, made


def public_fakes(networks: Networks, key, count: int):
  """Draw z ~ N(0, I) and uniform conditions, both independent of the members.

  Returns:
    `(z [B,latent], y [B,K])`.
  """
  z = latents(key, jnp.arange(count), networks.latent)
  labels = jax.random.randint(
    fold_in_name(key, "conditions"), (count,), 0, networks.num_classes
  )
  return z, jax.nn.one_hot(labels, networks.num_classes)

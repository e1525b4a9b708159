"""Helpers of GAN learners: conditional batches, latents and the gradient penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixdef.core.hooks import Batch
from mixdef.core.optimizers import check_optimizer
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models import Networks

UNSHARED = ", for a GAN has no one loss"
"""The reason why optimizers of a GAN receive only gradients and parameters."""

# Hooks that do not apply to a GAN, and what they would read or change.
_REFUSED = {
  "model": "sets fields of a classifier",
  "rows": "chooses other rows than the members",
  "log_probs": "changes a classifier's log-probabilities",
  "epoch": "reads a classifier's answers after each epoch",
  "finish": "reads a classifier's answers after training",
  "release_params": "releases other weights than those trained",
  "release_output": "changes a classifier's released answers",
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


def latents(key, ids, latent: int):
  """Draw z ~ N(0, I) [B,latent]; a row's z depends only on its id."""
  keys = row_keys(fold_in_name(key, "latent"), ids)
  return jax.vmap(lambda own: jax.random.normal(own, (latent,)))(keys)


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


def refuse_parts(name: str, defense) -> None:
  """Raise if a part of a chain has a hook that does not apply to a GAN.

  Raises:
    ValueError: naming the part and the reason.
  """
  for part in defense.parts:
    for hook, what in _REFUSED.items():
      if getattr(part, hook) is not None:
        raise ValueError(f"{name} cannot carry {part.name}, which {what}: leave it out")
    if part.stages and "critic" not in part.traits:
      raise ValueError(
        f"{name} cannot carry {part.name}, which learns from classifiers trained "
        "before: leave it out"
      )
    if part.value_and_grad is not None and "per_example" not in part.traits:
      raise ValueError(
        f"{name} cannot carry {part.name}, whose gradients are of a classifier's loss: "
        "leave it out"
      )
    if part.loss is not None and "critic" not in part.traits:
      raise ValueError(
        f"{name} cannot carry {part.name}, which acts on a classifier's loss: leave it "
        "out"
      )


def check_parts(networks: Any, optimizer: Any):
  """Check that the arguments are networks and an optimizer; return the optimizer.

  Raises:
    TypeError: naming what it is.
  """
  if not isinstance(networks, Networks):
    raise TypeError(
      f"networks is {text_of(networks)[:60]} of type {type(networks).__name__}: pass "
      "models.image_networks(...) or table_networks(...)"
    )
  return check_optimizer(optimizer)


def check_sizes(networks, spec) -> None:
  """Raise if networks do not fit the records.

  Raises:
    ValueError: naming both sizes.
  """
  if spec.num_classes != networks.num_classes:
    raise ValueError(
      f"the networks take {networks.num_classes} classes, the data have "
      f"{spec.num_classes}: build them with num_classes={spec.num_classes}"
    )
  shape = spec.example.shape[1:]
  if shape != networks.shape:
    raise ValueError(
      f"the networks make records of shape {networks.shape}, the data's have {shape}: "
      f"build them with {shape}"
    )


def uniform_conditions(y, count: int, num_classes: int):
  """Return y, or if it is None, the uniform condition [B,K]."""
  if y is None:
    return jnp.full((count, num_classes), 1 / num_classes)
  return y

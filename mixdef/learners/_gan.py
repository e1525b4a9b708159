"""What GAN learners share: batches of conditions, latents, the gradient penalty."""

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
"""Why its optimizers are given gradients and parameters alone."""

# A hook that a GAN has no place for, and what it would read or change.
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
  """What a critic compares: records, fakes of the same conditions, points between.

  All are [B, *shape]; they take the place of `Batch.x`.
  """

  real: Any
  fake: Any
  between: Any


def gather(data, rows, num_classes: int) -> Batch:
  """Return the unmixed batch of a step's rows, conditions as one-hot rows."""
  return Batch(
    x=to_float(data.x[rows.index]),
    y=jax.nn.one_hot(data.y[rows.index], num_classes),
    index=rows.index,
    weight=rows.weight,
    reference=rows.reference,
    partner=rows.index,
    lam=jnp.ones_like(rows.weight),
  )


def latents(key, ids, latent: int):
  """Draw z ~ N(0, I) [B,latent]; a row's z depends on its id alone."""
  keys = row_keys(fold_in_name(key, "latent"), ids)
  return jax.vmap(lambda own: jax.random.normal(own, (latent,)))(keys)


def between(key, real, fake, ids):
  """Draw a point on the line from each record to its fake [B, *shape]."""
  keys = row_keys(fold_in_name(key, "between"), ids)
  share = jax.vmap(jax.random.uniform)(keys)
  share = share.reshape(-1, *(1,) * (real.ndim - 1))
  return share * real + (1 - share) * fake


def gradient_penalty(score, x):
  """Return (||grad_x D(x)||_2 - 1)^2 of each record [B].

  Args:
    score: x [B, *shape] -> D(x) [B]; each record is judged alone, so the gradient of
      the sum holds the gradient of each.
    x: [B, *shape].
  """
  gradient = jax.grad(lambda x: score(x).sum())(x)
  square = jnp.square(gradient).reshape(len(x), -1).sum(1)
  # At a gradient of zero the norm itself has no finite derivative.
  return jnp.square(jnp.sqrt(square + 1e-12) - 1)


def refuse_parts(name: str, defense) -> None:
  """Refuse parts of a chain that act where a GAN has nothing to act on.

  Raises:
    ValueError: naming the part and the reason.
  """
  for part in defense.parts:
    for hook, what in _REFUSED.items():
      if getattr(part, hook) is not None:
        raise ValueError(f"{name} cannot carry {part.name}, which {what}: leave it out")
    if part.before and "critic" not in part.traits:
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
  """Refuse what is no pair of networks or no optimizer; returns the optimizer.

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
  """Refuse networks that do not fit the records.

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
  """Return y, or where it is None the condition that favours no class [B,K]."""
  if y is None:
    return jnp.full((count, num_classes), 1 / num_classes)
  return y

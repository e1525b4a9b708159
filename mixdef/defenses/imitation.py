"""Imitation of a released model, which attacks with few models train; no defense."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mixdef.core.check import check_number
from mixdef.core.hooks import Defense, defense, take
from mixdef.core.registry import PARTS

_LOWEST = math.log(1.4e-45)  # of a float32; stands for a probability of 0


@defense(registry=PARTS)
def imitation(teacher: Any, *, warm_up: float = 0.8) -> Defense:
  """Train an imitator, a model that reproduces the outputs of a released one.

  It is for the attacks `imia` and `glira`.

  With s the student's and t the teacher's log-probabilities of the rows of a batch:

  ```
  epoch <  warm_up * epochs    loss_i = CE(y_i, s_i)
  epoch >= warm_up * epochs    loss_i = (CE(y_i, s_i) + mean_k (s_ik - t_ik)^2) / 2
  ```

  The teacher is fixed. It is queried only with the rows that a student trains on, in
  inference mode, and after its output hooks. `fit_many` trains all imitators at once.

  Args:
    teacher: the `Run` of the release; or a function `x [B,...] -> log-probabilities or
      logits [B,K]` that JAX can trace, which is queried with the rows after
      augmentation; or its outputs on file, an array [N,K] for the records of the data
      set. Outputs on file are those of the records themselves, so the chain must not
      augment.
    warm_up: fraction of the epochs without imitation, in [0, 1]. Published: 0.8 for
      CIFAR-10 and CIFAR-100, 0.5 for MNIST.

  Returns:
    The part. It raises an error in the first step if the teacher has another number of
    classes.

  Raises:
    TypeError: for another kind of teacher.
    ValueError: for a `warm_up` out of range, or at `init` for a table of another size.

  Guarantee: none. An imitator is not released; it learns from its own members and from
    the teacher's outputs for them.

  Deviation: the paper's squared difference is one of log-probabilities [recalled], and
    that of the official code one of logits [verified]. They differ by a constant per
    record, which outputs do not show; log-probabilities are used. The weights of the
    code on the true class and the best other class are 1 in all of its settings, as its
    temperature is, and are left out. Probabilities of 0 count as 1.4e-45. Mixed rows
    with outputs on file get the mixture of the probabilities [ours].

  Reference: Imitative membership inference (IMIA), USENIX Security 2026, arXiv
    2509.06796.

  >>> import numpy as np
  >>> str(imitation(np.zeros((100, 10), np.float32), warm_up=0.5)).partition("#")[0]
  'imitation(teacher=float32[100, 10]'
  """
  check_number("imitation: warm_up", warm_up, 0, 1)
  table = _table(teacher)
  function = _function(teacher)

  def init(key, spec):
    del key
    if table is not None and table.shape != (spec.num_records, spec.num_classes):
      raise ValueError(
        f"imitation: teacher has shape {table.shape}; pass its outputs for the "
        f"{spec.num_records} records and {spec.num_classes} classes of the data"
      )
    return {}

  def outputs(batch):
    if table is not None:
      return jnp.log(take(jnp.exp(table), batch))
    return function(batch.x)

  def loss(losses, state, ctx):
    del state

    def imitate(losses):
      known = jax.lax.stop_gradient(jax.nn.log_softmax(outputs(ctx.batch)))
      if known.shape != ctx.log_probs.shape:
        raise ValueError(
          f"imitation: the teacher's outputs have shape {known.shape}, those of the "
          f"model {ctx.log_probs.shape}: pass one with the same classes"
        )
      apart = ctx.log_probs - jnp.maximum(known, _LOWEST)
      return (losses + (apart**2).mean(-1)) / 2

    # A branch, because the teacher need not be queried during the warm-up.
    return jax.lax.cond(
      ctx.epoch >= warm_up * ctx.epochs, imitate, lambda losses: losses, losses
    )

  return Defense("", init=init, loss=loss)


def _function(teacher: Any) -> Callable:
  """Return the function of a teacher's outputs."""
  if _is_run(teacher):
    learner, state = teacher.learner, teacher.state
    return lambda x: learner.predict(state, x)
  return teacher


def _table(teacher: Any) -> jax.Array | None:
  """Return a teacher's outputs on file, or None for a teacher that can be queried."""
  if _is_run(teacher) or callable(teacher):
    return None
  if getattr(teacher, "ndim", None) != 2:
    raise TypeError(
      f"imitation: teacher is of type {type(teacher).__name__}; pass a Run, a function "
      "x -> log-probabilities, or an array [N,K] of outputs"
    )
  return jax.nn.log_softmax(jnp.asarray(teacher, jnp.float32))


def _is_run(teacher):
  return hasattr(teacher, "learner") and hasattr(teacher, "state")

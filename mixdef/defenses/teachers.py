"""Distillation, and helpers for defenses that train on other models' outputs."""

import jax

from mixdef.core.check import check_choice, check_flag, check_number
from mixdef.core.hooks import Defense, Stage, defense, take
from mixdef.core.traits import Traits


@defense(aliases={"kd": "distillation"}, neutral="distillation(form='hinton', a=0.0)")
def distillation(
  temperature=10.0, *, form="soft", a=0.5, official_scale=False
) -> Defense:
  """Train a student on the softened outputs of a teacher of the same records.

  With q = softmax(teacher / T) and s_T = softmax(student / T):

  ```
  soft     loss_i = CE(q_i, s_1)
  hinton   loss_i = a T^2 KL(q_i || s_T) + (1 - a) CE(y_i, s_1)
  ```

  The teacher is trained first, on the same members, by the rest of the chain: alone,
  `distillation` has an undefended teacher.

  Args:
    temperature: T above 0. 10 is the official value of the hinton form and lies in the
      published grid of the soft form (1..1000), whose default is not known [ours].
    form: "soft" or "hinton".
    a: weight of the teacher in [0, 1]; only used by the hinton form.
    official_scale: whether to divide the KL term by K, too, as the official code does
      by averaging over all entries; only used by the hinton form.

  Returns:
    The defense, with one stage before it.

  Raises:
    ValueError: for an unknown option or a number out of range; at `init`, if no teacher
      was trained.

  Guarantee: none alone. With `dp_sgd`, teacher and student have the same noise, and its
    epsilon covers both trainings.

  Deviation: the teacher output of a mixed row is the mixture of the two records'
    probabilities. Auxiliary rows also use teacher outputs, so that they stay comparable
    with the members.

  Reference: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    arXiv 1503.02531; Kaya, Dumitras, 2021 (soft); Chen, Yu, Fritz, 2022, arXiv
    2207.05801 (hinton).

  >>> str(distillation(4.0, form="hinton"))
  "distillation(temperature=4.0, form='hinton')"
  """
  check_number("distillation: temperature", temperature, above=0)
  check_number("distillation: a", a, 0, 1)
  check_choice("distillation: form", form, ("soft", "hinton"))
  check_flag("distillation: official_scale", official_scale)

  def init(key, spec):
    del key
    return soft_targets("distillation", spec, temperature)

  def batch(batch, state, ctx):
    del ctx
    return batch._replace(y=state[batch.index])

  def loss(losses, state, ctx):
    softened = jax.nn.log_softmax(ctx.log_probs / temperature)
    divergence = _kl(take(state, ctx.batch), softened)
    scale = a * temperature**2
    if official_scale:
      scale = scale / softened.shape[-1]
    return scale * divergence + (1 - a) * losses

  soft = form == "soft"
  return Defense(
    "",
    stages=(ONE_TEACHER,),
    init=init,
    batch=batch if soft else None,
    loss=None if soft else loss,
    traits=Traits(order="table" if soft else None),
  )


def soft_targets(what, spec, temperature=1.0):
  """Return the targets softmax(teacher / T) [N,K] of the previous stage.

  Args:
    what: name of the defense, for the error message.
    spec: its `Spec`.
    temperature: T above 0.

  Raises:
    ValueError: if no teacher was trained.
  """
  if spec.table is None:
    raise ValueError(
      f"{what} has no teacher because Spec.table is None; train with fit or fit_many, "
      "which train the previous stage"
    )
  return jax.nn.softmax(spec.table / temperature)


def _same_members(key, members, auxiliary):
  del key, auxiliary
  return members[None]


def _only_teacher(key, log_probs, rows, members):
  del key, rows, members
  return log_probs[0]


ONE_TEACHER = Stage(rows=_same_members, table=_only_teacher, composes=True)


def _kl(q, log_s):
  """Return KL(q || s) [B]; entries of q that are 0 add 0."""
  return (jax.scipy.special.xlogy(q, q) - q * log_s).sum(-1)

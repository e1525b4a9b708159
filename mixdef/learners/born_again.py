"""Born-again students, trained on disjoint parts of the members and averaged."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.chaining import chain
from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense
from mixdef.core.learner import Learner, TrainState
from mixdef.core.randomness import row_keys
from mixdef.core.registry import learner
from mixdef.defenses.losses import confidence_penalty
from mixdef.learners._parts import check_phases, part_of, phase_of, step_on
from mixdef.learners.classifier import classifier
from mixdef.models.adapters import adapt, is_pair

_TEACHER_SHARE = 0.5


@learner
def ban_mpr(
  model, optimizer, *, students=3, coefficient=0.1, experimental=False
) -> Learner:
  """Create the learner of born-again students with a membership-privacy regularizer.

  The members are split into G disjoint parts and the epochs into G equal phases. In
  phase g, only student g is trained, on part g, with

  ```
  t_0 = y,   t_g = (y + p_{g-1}(x)) / 2       p_{g-1}: the previous student, fixed
  loss_i = CE(t_g, p_g(x_i)) - coefficient H(p_g(x_i))
  output = log((p_0(x) + ... + p_{G-1}(x)) / G)
  ```

  The teacher therefore predicts on records that it was not trained on. A step costs one
  student step and one teacher prediction, regardless of G.

  Args:
    model: as for `classifier`; every student is freshly initialized.
    optimizer: optax `GradientTransformation`; each student has its own state.
    students: G, at least 1; the default 3 is our choice.
    coefficient: weight of the entropy, at least 0; 0.1 is that of `confidence_penalty`.
    experimental: True to accept that the regularizer is a placeholder.

  Returns:
    The `Learner`. Its metrics are those of the student trained in the epoch. It does
    not accept a defense, because chains apply only to `classifier` in this version.

  Raises:
    ValueError: without `experimental=True`, or for numbers out of range; at `init`, for
      fewer epochs than students, or for anything that `classifier` rejects.

  Guarantee: none. Part g affects all later students through their teachers' outputs,
    and the released average.

  Deviation: only the abstract was available; it mentions augmentation, subsets, a chain
    of students, a regularizer and a plain average. The regularizer's formula is unknown
    to us, and the entropy of the output is a placeholder, so results of this learner
    are no evidence for or against the method. The equal mix of labels and teacher, the
    phases and G are also our choices, and the augmentation is omitted. A record's part
    is drawn from the model's key and the record's id, so part sizes are equal only on
    average.

  Reference: born-again networks with membership privacy regularisation (ban_mpr), 2022;
    abstract only. Furlanello et al., Born Again Neural Networks, 2018, arXiv
    1805.04770.

  >>> import optax
  >>> from mixdef.models import mlp
  >>> ban_mpr(mlp(64), optax.adam(1e-3), experimental=True).text[-28:]
  'students=3, coefficient=0.1)'
  """
  if experimental is not True:
    raise ValueError(
      "ban_mpr: the regularizer's published formula is unknown to us and ours is a "
      "placeholder: pass experimental=True to use it anyway"
    )
  if isinstance(model, tuple | list) and not is_pair(model):
    raise ValueError(f"ban_mpr accepts one model, not {len(model)}: pass one")
  check_count("ban_mpr: students", students)
  check_number("ban_mpr: coefficient", coefficient, 0)
  taught = Defense("teacher", batch=_taught)
  regularizer = confidence_penalty(coefficient, name="regularizer")
  model = model if isinstance(model, nn.Module) else adapt(model)
  student = classifier(model, optimizer, chain(taught, regularizer))

  def init(key, spec):
    check_phases("ban_mpr", spec.epochs, students)
    keys = row_keys(key, jnp.arange(students))
    made = jax.vmap(lambda own: student.init(own, spec))(keys)
    return made._replace(defense={}, key=key)

  def step(state, data, rows, ctx):
    g = phase_of(ctx, students)
    teacher = _student(state, jnp.maximum(g - 1, 0))
    outputs = jnp.exp(student.predict(teacher, data.x[rows.index]))
    share = jnp.where(g > 0, _TEACHER_SHARE, 0.0)
    state_of = {"teacher": (outputs, share), "regularizer": ()}
    own = _student(state, g)._replace(defense=state_of)
    chosen = part_of(state.key, rows.index, students) == g
    own, metrics = step_on(student, own, data, rows, chosen, ctx)
    params, stats, opt = jax.tree.map(
      lambda all_of, one: all_of.at[g].set(one), _leaves(state), _leaves(own)
    )
    return TrainState(params, stats, opt, {}, state.key), metrics

  def predict(state, x, *, raw=False):
    del raw  # no hook changes the outputs
    log_probs = jax.lax.map(
      lambda g: student.predict(_student(state, g), x), jnp.arange(students)
    )
    return jax.nn.logsumexp(log_probs, 0) - jnp.log(students)

  network = adapt(model)
  numbers = f"students={students}, coefficient={coefficient}"
  return Learner(
    *(init, step, None, None, predict),
    text=f"ban_mpr(model={network.text}, {numbers})",
    defense=f"ban_mpr({numbers})",
    network=network.name,
  )


def _taught(batch, state, ctx):
  """Mix the labels with the teacher's predictions [B,K] on the same rows."""
  del ctx
  outputs, share = state
  return batch._replace(y=(1 - share) * batch.y + share * outputs)


def _leaves(state):
  return state.params, state.stats, state.opt


def _student(state, g):
  """Return the state of student g, without a defense state."""
  params, stats, opt = jax.tree.map(lambda leaf: leaf[g], _leaves(state))
  return TrainState(params, stats, opt, {}, state.key)

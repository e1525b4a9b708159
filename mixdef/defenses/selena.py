"""SELENA: a student of teachers that did not train on the record they predict."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_count
from mixdef.core.hooks import Defense, Stage, defense
from mixdef.core.randomness import row_keys
from mixdef.core.traits import Traits
from mixdef.defenses.teachers import soft_targets


@defense
def selena(teachers=25, *, non_models=10) -> Defense:
  """Train a student on the outputs of teachers that did not train on the record.

  Every record i has a random set A_i of L of the K teachers, determined only by the
  model's key and the record's id:

  ```
  teacher k   trains on the members i with k not in A_i        (Split-AI)
  q_i         = 1/L sum of softmax(teacher_k(x_i)) over k in A_i
  loss_i      = CE(q_i, student(x_i)),   members only          (self-distillation)
  ```

  Each teacher trains on about (1 - L/K) of the members, by the rest of the chain:
  alone, `selena` has undefended teachers. A model costs K + 1 trainings, which
  `fit_many` runs in parallel; the outputs of all K, [K,N,classes], are held at once.

  Args:
    teachers: K, at least 2; the published value is 25.
    non_models: L in 1..K-1; the published value is 10. A larger value averages more
      outputs but makes the teachers less accurate.

  Returns:
    The defense, with one stage of K trainings before it. Its state is q [N,classes];
    the rows of non-members are never trained on.

  Raises:
    ValueError: for numbers out of range; at `init`, if no teacher was trained.

  Guarantee: none in general. No teacher in q_i was trained on record i, so its label
    influences the student only through other records. Near duplicates are other
    records: a mislabelled record with duplicates is identified almost surely. The
    student is still trained on the inputs of the members, which is not protected.

  Deviation: the published Split-AI is also used for queries, with the set of a random
    member for non-members. Here the student is used for all queries, as in the
    published SELENA, so the sets are used only in training. The published warm-up epoch
    and learning rates can be set in the optimizer.

  Reference: Tang, Mahloujifar, Song, Shejwalkar, Nasr, Houmansadr, Mittal, Mitigating
    Membership Inference Attacks by Self-Distillation Through a Novel Ensemble
    Architecture, 2022, arXiv 2110.08324; duplicates: Aerni, Zhang, Tramèr, Evaluations
    of Machine Learning Privacy Defenses are Misleading, 2024, arXiv 2404.17399.

  >>> str(selena(5, non_models=2))
  'selena(teachers=5, non_models=2)'
  """
  check_count("selena: teachers", teachers)
  check_count("selena: non_models", non_models)
  if non_models >= teachers:
    raise ValueError(
      f"selena: non_models={non_models} of teachers={teachers} leaves no teacher "
      "trained on a record: pass fewer non_models or more teachers"
    )

  def non_model_sets(key, num_records):
    """Return the sets A_i as bool [K,N]: the teachers that must not see each record."""

    def of_record(key):
      return jax.random.permutation(key, teachers) < non_models

    return jax.vmap(of_record)(row_keys(key, jnp.arange(num_records))).T

  def rows(key, members, auxiliary):
    del auxiliary
    return members[None] & ~non_model_sets(key, len(members))

  def table(key, log_probs, rows, members):
    del rows

    def add(total, one):
      in_set, answers = one
      return total + jnp.where(in_set[:, None], jnp.exp(answers), 0.0), None

    # One teacher after another: a masked mean would hold all outputs several times.
    sets = non_model_sets(key, len(members))
    total, _ = jax.lax.scan(add, jnp.zeros(log_probs.shape[1:]), (sets, log_probs))
    return jnp.log(total / non_models)

  def init(key, spec):
    del key
    return soft_targets("selena", spec)

  def batch(batch, state, ctx):
    del ctx
    return batch._replace(y=state[batch.index])

  return Defense(
    "",
    stages=(Stage(rows=rows, table=table, models=teachers),),
    init=init,
    batch=batch,
    traits=Traits(order="table"),
  )

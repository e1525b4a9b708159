"""DMP: a student trained only on a teacher's outputs for auxiliary records."""

import math

import jax.numpy as jnp
from jax.scipy.special import entr

from mixdef.core.check import check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.traits import Traits
from mixdef.defenses.teachers import ONE_TEACHER, soft_targets

_ROUNDING = 1e-6  # a uniform output may have an entropy a little above log K


@defense
def dmp(temperature=1.0, *, entropy=1.0) -> Defense:
  """Train a student only on a teacher's outputs for the defender's auxiliary records.

  With q = softmax(teacher / T), s the student's output at temperature 1 and R the
  auxiliary rows:

  ```
  loss = mean of CE(q_i, s_i) = KL(q_i || s_i) + H(q_i)
         over i in R with H(softmax(teacher_i)) <= entropy log K
  ```

  The teacher is trained first, on the members, by the rest of the chain: alone, `dmp`
  has an undefended teacher. The student's epochs, and its steps per epoch, follow the
  number of auxiliary records; their labels are not used.

  Args:
    temperature: T of the teacher, above 0. The published value is 1.
    entropy: largest entropy of a teacher's output that is trained on, as a fraction of
      log K, above 0 and at most 1; 1 uses all auxiliary records. A confident output is
      often one far from the members that the teacher memorized.

  Returns:
    The defense, with one stage before it; it needs auxiliary records. Its state is
    `targets` [N,K] and `weight` [N], which is 1 where the entropy admits the row.

  Raises:
    ValueError: for a number out of range; at `init`, if no teacher was trained.

  Guarantee: none. The student is not trained on members, but a teacher that has
    memorized a member has different outputs nearby, which auxiliary rows close to the
    member transfer. The auxiliary rows themselves are not protected because the student
    is trained on them.

  Deviation: the paper selects auxiliary rows of low entropy, by an unpublished rule;
    here by a bound on the entropy of each row, at temperature 1 regardless of T [ours].
    Rows above it have weight 0, so batches differ in size, and a batch without
    remaining rows has no gradient: its loss and accuracy in the history are 0. The
    published code recreates the optimizer each epoch, and a port of it divides the KL
    by K; here momentum is kept and the KL is a sum over classes.

  Reference: Shejwalkar, Houmansadr, Membership Privacy for Machine Learning Models
    Through Knowledge Transfer, 2021, arXiv 1906.06589.

  >>> str(dmp(entropy=0.5))
  'dmp(entropy=0.5)'
  """
  check_number("dmp: temperature", temperature, above=0)
  check_number("dmp: entropy", entropy, high=1, above=0)

  def init(key, spec):
    del key
    entropies = entr(soft_targets("dmp", spec)).sum(-1)
    bound = entropy * math.log(spec.num_classes) + _ROUNDING
    return {
      "targets": soft_targets("dmp", spec, temperature),
      "weight": (entropies <= bound).astype(jnp.float32),
    }

  def batch(batch, state, ctx):
    del ctx
    return batch._replace(
      y=state["targets"][batch.index],
      weight=batch.weight * state["weight"][batch.index],
    )

  return Defense(
    "",
    stages=(ONE_TEACHER,),
    rows=lambda key, members, auxiliary: auxiliary,
    init=init,
    batch=batch,
    traits=Traits(order="table", needs_auxiliary=True),
  )

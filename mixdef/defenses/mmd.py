"""MMD regularization: match the output distributions of members and auxiliary rows."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_number
from mixdef.core.hooks import Defense, defense, weighted_mean
from mixdef.core.traits import Traits


@defense(neutral="mmd(0.0, gate=0.0)")
def mmd(coefficient=3.0, *, bandwidth=1.0, gate=0.03) -> Defense:
  """Penalize the MMD between outputs on members and on auxiliary rows, per class.

  With the outputs p_i = softmax(f(x_i)) on the clean members of a batch and on its
  auxiliary rows, where sg stops the gradient:

  ```
  loss     = CE + coefficient MMD^2                     if gap >= gate, else CE
  MMD^2    = sum_ij w_i w_j k(p_i, p_j)                 biased: i = j counts
  k(p, q)  = exp(-||p - q||^2 / (2 bandwidth^2))
  w_i      = 1 / n                     for a member of class c
           = -(n_c / r_c) / n          for a auxiliary row of class c, p_i := sg[p_i]
  gap      = |accuracy(members) - accuracy(reference)|  after the epoch before
  ```

  n_c and r_c count the members and the auxiliary rows of class c in the batch, and n
  sums n_c over the classes that have both. In the first epoch the gap is assumed to be
  0; in the last epoch the term is disabled.

  Members are compared as they are before mixing: the batch also contains clean copies
  of its rows, which have weight 0 and cost a second forward and backward pass. So
  `mixup|mmd` is MMD+Mix-up: the cross-entropy of mixed rows and the distance of clean
  ones.

  Args:
    coefficient: weight of the term, at least 0; 0 gives no defense. 3 is used by the
      published command on CIFAR-10.
    bandwidth: bandwidth of the kernel on probabilities, above 0. 1 in the official
      code.
    gate: smallest gap in accuracy, in [0, 1], at which the term is active. 0 means
      always, which the authors find unstable; they use 0.03.

  Returns:
    The defense, which needs auxiliary records. Its state is the gap.

  Raises:
    ValueError: for a number out of range.

  Guarantee: none. Auxiliary rows influence the model and must be excluded from the
    audit, as they are here. The loss of every record depends on the whole batch, so
    per-example clipping raises an error.

  Deviation: the official code makes a second pass over batches ordered by class, with
    the gap of the same epoch; here the term joins the loss of the same step, with the
    gap of the epoch before. It draws as many auxiliary records of a class as the batch
    has members; here the auxiliary rows of the batch are reweighted to the members'
    class counts, and a class without auxiliary rows is excluded on both sides. Classes
    missing from the whole auxiliary set are never used. The official term is computed
    in inference mode, a side effect of validation; here it is computed in training
    mode, with dropout, and BatchNorm uses the statistics of the rows with weight. The
    gap is measured in inference mode on both sides. With soft labels the class is the
    likeliest one [ours].

  Reference: Li, Li, Ribeiro, Membership Inference Attacks and Defenses in
    Classification Models, 2021, arXiv 2002.12062.

  >>> str(mmd(1.0, gate=0.0))
  'mmd(coefficient=1.0, gate=0.0)'
  """
  check_number("mmd: coefficient", coefficient, 0)
  check_number("mmd: bandwidth", bandwidth, above=0)
  check_number("mmd: gate", gate, 0, 1)

  def init(key, spec):
    del key, spec
    return {"gap": jnp.float32(0)}

  def batch(batch, state, ctx):
    del state, ctx
    nothing = jnp.zeros_like(batch.weight)
    copies = batch._replace(weight=nothing, auxiliary=nothing)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, copies)

  def loss(losses, state, ctx):
    # The first half says what a row is; its clean copy is in the second half: copies
    # and padding differ only by position.
    rows, batch = len(losses) // 2, ctx.batch
    member = batch.weight[:rows] > 0
    probs = jnp.exp(ctx.log_probs[rows:])
    probs = jnp.where(member[:, None], probs, jax.lax.stop_gradient(probs))
    label = jax.nn.one_hot(batch.y[rows:].argmax(-1), batch.y.shape[-1])
    weight = class_matched(member, batch.auxiliary[:rows] > 0, label)
    on = (state["gap"] >= gate) & (ctx.epoch < ctx.epochs - 1)
    term = squared_distance(probs, weight, bandwidth)
    return losses + jnp.where(on, coefficient, 0.0) * term

  def epoch(state, ctx):
    del state
    hits = (ctx.predict(ctx.data.x).argmax(-1) == ctx.data.y).astype(jnp.float32)
    members, others = (
      weighted_mean(hits, rows.astype(hits.dtype))
      for rows in (ctx.members, ctx.data.auxiliary)
    )
    return {"gap": jnp.abs(members - others)}

  return Defense(
    "",
    init=init,
    batch=batch,
    loss=loss,
    epoch=epoch,
    traits=Traits(
      order="table", couples="batch", needs_auxiliary=True, auxiliary_rows=True
    ),
  )


def class_matched(member, auxiliary, label):
  """Return the signed weight of each row: members against auxiliary rows, per class.

  Args:
    member: bool [B].
    auxiliary: bool [B]; rows that are neither have weight 0.
    label: one-hot [B,K].

  Returns:
    [B]: the weights of members sum to 1, those of auxiliary rows to -1, and those of
    each class to 0; all are 0 if no class has both.

  >>> member = jnp.array([True, True, True, False, False])
  >>> label = jax.nn.one_hot(jnp.array([0, 0, 1, 0, 0]), 2)
  >>> print(class_matched(member, ~member, label))  # class 1 has no auxiliary row
  [ 0.5  0.5  0.  -0.5 -0.5]
  """
  members, others = (rows.astype(label.dtype) @ label for rows in (member, auxiliary))
  both = (members > 0) & (others > 0)
  count = jnp.maximum((members * both).sum(), 1.0)
  share = members / jnp.maximum(others, 1.0)
  sides = member[:, None] - auxiliary[:, None] * share[None]
  return (label * both[None] * sides).sum(-1) / count


def squared_distance(probs, weight, bandwidth):
  """Return the squared maximum mean discrepancy sum_ij w_i w_j k(p_i, p_j).

  Args:
    probs: [B,K].
    weight: [B], with sum 1 over one side and -1 over the other.
    bandwidth: bandwidth of the Gaussian kernel.

  >>> probs = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
  >>> round(float(squared_distance(probs, jnp.array([0.5, 0.5, -1.0]), 1.0)), 6)
  0.126338
  """
  distance = ((probs[:, None] - probs[None]) ** 2).sum(-1)
  return weight @ jnp.exp(-distance / (2 * bandwidth**2)) @ weight

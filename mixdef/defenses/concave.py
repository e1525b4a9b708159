"""The convex-concave loss."""

import jax.numpy as jnp

from mixdef.core.check import check_choice, check_number
from mixdef.core.hooks import Defense, defense


@defense(
  aliases={"ccel": "ccl", "ccql": "ccl(form='ccql')"}, neutral="ccl(1.0, beta=1.0)"
)
def ccl(alpha=0.5, *, beta=0.05, form="ccel") -> Defense:
  """Spread the losses of the members by a concave term, without gradient ascent.

  With the cross-entropy l_i and the confidence p_i = exp(-l_i):

  ```
  ccel   beta (alpha l_i - (1 - alpha) exp(p_i))
  ccql   beta (alpha l_i - (1 - alpha) (p_i + p_i^2 / 2))
  ```

  Both terms decrease as p increases. The cross-entropy is convex in p: its gradient is
  largest on the records that are fitted worst, so the losses of the members contract.
  The other term is concave: its gradient is largest on the records that are fitted best
  and drives the losses apart.

  Args:
    alpha: weight of the cross-entropy, in [0, 1]; with beta = 1, alpha = 1 changes
      nothing.
    beta: scale of the whole loss, above 0. The official runs use 0.05 with SGD at 0.1,
      so a smaller learning rate with the default trains slowly.
    form: "ccel", with the exponential, or "ccql", with the quadratic.

  Returns:
    The defense. Its loss may be negative, down to -beta (1 - alpha) e.

  Raises:
    ValueError: for an unknown option or a number out of range.

  Guarantee: none by itself. It acts on each record separately, so `dp_sgd` keeps its
    epsilon.

  Deviation: with a soft label y the confidence is p_i = sum_k y_k p_ik, which is
    exp(-l_i) on hard labels [ours]. It is computed from the model outputs, not from the
    loss, so a previous part may change l_i. The official focal variant adds the concave
    term, which lowers the confidence; it is not offered. `relaxloss` compares the loss
    with a level of the cross-entropy, so in a chain it must come before `ccl`.

  Reference: Liu, Feng, Zhuang, Cao, Wei, Mitigating Privacy Risk in Membership
    Inference by Convex-Concave Loss, 2024, arXiv 2402.05453.

  >>> str(ccl(form="ccql"))
  "ccl(form='ccql')"
  """
  check_number("ccl: alpha", alpha, 0, 1)
  check_number("ccl: beta", beta, above=0)
  check_choice("ccl: form", form, ("ccel", "ccql"))

  def loss(losses, state, ctx):
    del state
    p = (ctx.batch.y * jnp.exp(ctx.log_probs)).sum(-1)
    concave = jnp.exp(p) if form == "ccel" else p + p**2 / 2
    return beta * (alpha * losses - (1 - alpha) * concave)

  return Defense("", loss=loss)

"""Changes of the loss."""

import jax
import jax.numpy as jnp

from mixdef.defense import Defense, defense, weighted_mean
from mixdef.defenses.validate import check_choice, check_number


@defense
def relaxloss(
  alpha=1.0, *, upper=1.0, form="image", ascent="all", detach=False
) -> Defense:
  """Hold the batch loss at `alpha`, by gradient ascent and flatter posteriors below it.

  With the batch mean L of the losses l_i, the epoch t counted from 0, and
  c_i = clip(p_iy, 0, upper):

  ```
  t even              |L - alpha|
  t odd, L > alpha    L
  t odd, L <= alpha   image:   mean_i( 1[argmax p_i wrong] CE(s_i, p_i) - l_i )
                      tabular: mean_i( CE(s_i, p_i) )
  s_ik = c_i for k = y_i, (1 - c_i) / (K - 1) elsewhere
  ```

  Args:
    alpha: target loss level, at least 0. Official values: CIFAR-10 1.0 (ResNet20),
      0.4 (VGG11); CIFAR-100 3, 0.5; Texas 2.5; Purchase 0.8. With soft labels it must
      exceed their entropy, the smallest loss there is.
    upper: largest confidence kept, in (0, 1]; 1 on images, Texas 0.1, Purchase 0.3.
    form: "image" or "tabular", as above.
    ascent: "all" records carry -l_i in the image form (official code), or those
      predicted correctly only ("correct_only", the paper).
    detach: stop the gradient through s_i; the official code does not.

  Returns:
    The defense. Its loss depends on the whole batch.

  Raises:
    ValueError: for an unknown word, a number out of range, "correct_only" with the
      tabular form, which has no ascent.

  Guarantee: none, and none can be had: per-example clipping is refused.

  Deviation: at L = alpha the even branch descends (the sign of 0 is +1). With a soft
    label y the confidence is p_y = sum_k y_k p_k, "wrong" compares with argmax y, and
    s = c y + (1 - c) (1 - y) / (K - 1) [ours]. Padding never enters L.

  Reference: Chen, Yu, Fritz, RelaxLoss: Defending Membership Inference Attacks without
    Losing Utility, 2022, arXiv 2207.05801.

  >>> str(relaxloss(0.5))
  'relaxloss(alpha=0.5)'
  """
  check_number("relaxloss: alpha", alpha, 0)
  check_number("relaxloss: upper", upper, 0, 1, above=0)
  check_choice("relaxloss: form", form, ("image", "tabular"))
  check_choice("relaxloss: ascent", ascent, ("all", "correct_only"))
  if form == "tabular" and ascent != "all":
    raise ValueError(
      f"relaxloss: form 'tabular' has no ascent to restrict: drop ascent={ascent!r}"
    )

  def flatten(losses, log_probs, y):
    probs = jnp.exp(log_probs)
    confidence = jnp.clip((y * probs).sum(-1, keepdims=True), 0.0, upper)
    rest = (1 - confidence) * (1 - y) / (y.shape[-1] - 1)
    target = confidence * y + rest
    target = jax.lax.stop_gradient(target) if detach else target
    soft = -(target * log_probs).sum(-1)
    if form == "tabular":
      return soft
    wrong = log_probs.argmax(-1) != y.argmax(-1)
    climbs = True if ascent == "all" else ~wrong
    return jnp.where(wrong, soft, 0.0) - jnp.where(climbs, losses, 0.0)

  def loss(losses, state, ctx, log_probs, batch):
    del state
    level = weighted_mean(losses, batch.weight)
    even = jnp.where(level >= alpha, losses - alpha, alpha - losses)
    odd = jnp.where(level > alpha, losses, flatten(losses, log_probs, batch.y))
    return jnp.where(ctx.epoch % 2 == 0, even, odd)

  return Defense("", loss=loss, traits=frozenset({"whole_batch"}))

"""Defenses that change the loss: a target level, focal weights, entropy bonuses."""

import math

import jax
import jax.numpy as jnp

from mixdef.core.check import check_choice, check_flag, check_number
from mixdef.core.hooks import Defense, defense, weighted_mean
from mixdef.core.traits import Traits


@defense(neutral="relaxloss(0.0)")
def relaxloss(
  alpha=1.0, *, upper=1.0, form="image", ascent="all", detach=False
) -> Defense:
  """Hold the batch loss at `alpha` by gradient ascent and flatter posteriors below it.

  With the batch mean L of the losses l_i, the epoch t counted from 0, and c_i =
  clip(p_iy, 0, upper):

  ```
  t even              |L - alpha|
  t odd, L > alpha    L
  t odd, L <= alpha   image:   mean_i( 1[argmax p_i wrong] CE(s_i, p_i) - l_i )
                      tabular: mean_i( CE(s_i, p_i) )
  s_ik = c_i for k = y_i, (1 - c_i) / (K - 1) elsewhere
  ```

  The published values, for SGD at 0.1 with momentum 0.9, weight decay 1e-4, batch 128:

  ```
  CIFAR-10    ResNet20   alpha=1.0              VGG11   alpha=0.4
              WRN-16-4   alpha=0.5946           tuned by Aerni, Zhang, Tramer, 2024
  CIFAR-100   ResNet20   alpha=3.0              VGG11   alpha=0.5
  Texas       table      alpha=2.5, upper=0.1, form="tabular"
  Purchase    table      alpha=0.8, upper=0.3, form="tabular"
  ```

  Args:
    alpha: target loss level, at least 0. With soft labels it must exceed their entropy,
      which is the smallest possible loss.
    upper: largest confidence kept, in (0, 1].
    form: "image" or "tabular", as above.
    ascent: "all" records contribute -l_i in the image form (official code), or only
      those that are predicted correctly ("correct_only", the paper).
    detach: whether to stop the gradient through s_i; the official code does not.

  Returns:
    The defense. Its loss depends on the whole batch.

  Raises:
    ValueError: for an unknown option, a number out of range, or "correct_only" with the
      tabular form, which has no gradient ascent.

  Guarantee: none. Combining it with per-example clipping raises an error.

  Deviation: at L = alpha the even branch descends (the sign of 0 is +1). With a soft
    label y the confidence is p_y = sum_k y_k p_k, "wrong" compares with argmax y, and s
    = c y + (1 - c) (1 - y) / (K - 1) [ours]. Padding does not contribute to L.

  Reference: Chen, Yu, Fritz, RelaxLoss: Defending Membership Inference Attacks without
    Losing Utility, 2022, arXiv 2207.05801.

  >>> str(relaxloss(0.5))
  'relaxloss(alpha=0.5)'
  """
  check_number("relaxloss: alpha", alpha, 0)
  check_number("relaxloss: upper", upper, 0, 1, above=0)
  check_choice("relaxloss: form", form, ("image", "tabular"))
  check_choice("relaxloss: ascent", ascent, ("all", "correct_only"))
  check_flag("relaxloss: detach", detach)
  if form == "tabular" and ascent != "all":
    raise ValueError(
      f"relaxloss: form 'tabular' has no gradient ascent: drop ascent={ascent!r}"
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

  def loss(losses, state, ctx):
    del state
    level = weighted_mean(losses, ctx.batch.weight)
    even = jnp.where(level >= alpha, losses - alpha, alpha - losses)
    odd = jnp.where(level > alpha, losses, flatten(losses, ctx.log_probs, ctx.batch.y))
    return jnp.where(ctx.epoch % 2 == 0, even, odd)

  return Defense("", loss=loss, traits=Traits(couples="batch"))


@defense(neutral="focal_loss(0.0)")
def focal_loss(gamma=2.0) -> Defense:
  """Down-weight the loss of each record by how well it is fitted.

  ```
  loss_i = (1 - p_iy)^gamma l_i
  ```

  Args:
    gamma: focusing exponent, at least 0; 0 changes nothing.

  Returns:
    The defense.

  Guarantee: none by itself. It acts on each record separately, so `dp_sgd` keeps its
    epsilon.

  Deviation: 2, the value of Lin et al. for object detection, is the default; we know of
    no recommended value for privacy [ours]. With a soft label y, 1 - p_iy is sum_k y_k
    (1 - p_ik) [ours], floored at e^-36: for gamma < 1 its power has no finite gradient
    at 0, where the loss is 0.

  Reference: Lin, Goyal, Girshick, He, Dollar, Focal Loss for Dense Object Detection,
    2017, arXiv 1708.02002; as a baseline in Chen, Yu, Fritz, 2022, arXiv 2207.05801.

  >>> str(focal_loss(3.0))
  'focal_loss(gamma=3.0)'
  """
  check_number("focal_loss: gamma", gamma, 0)

  def loss(losses, state, ctx):
    del state
    # Compute 1 - p by expm1: for p near 1 the difference would round to 0.
    miss = -(ctx.batch.y * jnp.expm1(ctx.log_probs)).sum(-1)
    return jnp.maximum(miss, math.exp(-36)) ** gamma * losses

  return Defense("", loss=loss)


@defense(neutral="confidence_penalty(0.0)")
def confidence_penalty(coefficient=0.1) -> Defense:
  """Reward the entropy of the prediction.

  ```
  loss_i = l_i - coefficient H(p_i),      H(p) = -sum_k p_k log p_k
  ```

  Args:
    coefficient: at least 0; 0 changes nothing. Chen et al. use 0.1.

  Returns:
    The defense. Its loss may be negative, down to -coefficient log K.

  Guarantee: none by itself. It acts on each record separately, so `dp_sgd` keeps its
    epsilon.

  Reference: Pereyra, Tucker, Chorowski, Kaiser, Hinton, Regularizing Neural Networks by
    Penalizing Confident Output Distributions, 2017, arXiv 1701.06548; as a baseline in
    Chen, Yu, Fritz, 2022, arXiv 2207.05801.

  >>> str(confidence_penalty(0.3))
  'confidence_penalty(coefficient=0.3)'
  """
  check_number("confidence_penalty: coefficient", coefficient, 0)

  def loss(losses, state, ctx):
    del state
    return losses - coefficient * _entropy(ctx.log_probs)

  return Defense("", loss=loss)


@defense(neutral="hamp_entropy(0.0)")
def hamp_entropy(coefficient=0.001, *, official_scale=False) -> Defense:
  """Fit the label row in KL divergence and reward the entropy of the prediction.

  ```
  loss_i = KL(y_i || p_i) - coefficient H(p_i),      KL(y_i || p_i) = l_i - H(y_i)
  ```

  This is the loss of HAMP; another part of the chain flattens the labels y_i. On hard
  labels the equation is that of `confidence_penalty`.

  Args:
    coefficient: at least 0; 0 leaves the gradient of the cross-entropy. With
      `official_scale`: Purchase, Texas 0.01; CIFAR-100 0.005; CIFAR-10, Location 0.001.
    official_scale: whether to divide the KL term by K, as the official code does by
      averaging over all entries. This weakens the fit but not the reward: `coefficient`
      counts K times.

  Returns:
    The defense. Its loss may be negative, down to -coefficient log K.

  Guarantee: none by itself. It acts on each record separately, so `dp_sgd` keeps its
    epsilon.

  Deviation: the default follows the equation, not the official code; to use a published
    coefficient, set `official_scale` and use the published learning rate, or multiply
    the coefficient by K.

  Reference: Chen, Pattabiraman, Overconfidence is a Dangerous Thing: Mitigating
    Membership Inference Attacks by Enforcing Less Confident Prediction, 2024, arXiv
    2307.01610.

  >>> str(hamp_entropy(0.01, official_scale=True))
  'hamp_entropy(coefficient=0.01, official_scale=True)'
  """
  check_number("hamp_entropy: coefficient", coefficient, 0)
  check_flag("hamp_entropy: official_scale", official_scale)

  def loss(losses, state, ctx):
    del state
    y = ctx.batch.y
    divergence = losses + jax.scipy.special.xlogy(y, y).sum(-1)
    if official_scale:
      divergence = divergence / y.shape[-1]
    return divergence - coefficient * _entropy(ctx.log_probs)

  return Defense("", loss=loss)


def _entropy(log_probs):
  """Return H(p) [B]; a probability of 0 adds 0, and its log may be -inf."""
  p = jnp.exp(log_probs)
  return -(p * jnp.where(p > 0, log_probs, 0.0)).sum(-1)

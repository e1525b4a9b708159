"""Theory of mixup and the likelihood ratio, in closed form.

A record's losses l = -D(x, y) + mean_z D(G(z, y), y), lower for members, are Gaussian
over models: N(m_in, s_in^2) where the model trained on the record, N(m_out, s_out^2)
elsewhere. The premise is that mixup moves the losses of members to the right.
Proposition 1: the likelihood ratio Lambda then decreases for more than about half of
them. The distance between the ratios of members and of non-members bounds the AUC of
every attack that reads them:

    Lambda falls -> H(Q_m, Q_n) -> TV <= sqrt(2) H -> AUC <= -TV^2/2 + TV + 1/2

with Q_m, Q_n the distributions of log Lambda, or of Lambda: TV is the same. The first
arrow assumes constant standard deviations; if mixup changes them as well, it is not a
theorem. `ratio_shift` and `theory_report` count and measure each step.

All functions work elementwise on arrays that broadcast.

Reference: Ji, Hu, Xiang, Zhou, "Mixup Training for Generative Models to Defend
Membership Inference Attacks", INFOCOM 2023.
"""

import numpy as np
from numpy.typing import ArrayLike


def log_likelihood_ratio(
  loss: ArrayLike,
  mean_in: ArrayLike,
  std_in: ArrayLike,
  mean_out: ArrayLike,
  std_out: ArrayLike,
) -> np.ndarray:
  """Return log N(l; m_in, s_in^2) - log N(l; m_out, s_out^2).

      log Lambda(l) = log(s_out/s_in) + (l-m_out)^2/(2 s_out^2) - (l-m_in)^2/(2 s_in^2)

  Args:
    loss: l of the target, any shape.
    mean_in: mean over the models that trained on the record; NaN where there is none.
    std_in: their standard deviation, positive.
    mean_out: mean over the models that did not train on the record.
    std_out: their standard deviation, positive.

  Returns:
    log Lambda in nats; higher means member. NaN where a fit is NaN.

  Raises:
    ValueError: if a spread is not positive.

  >>> fit = -7.60, 3.92, -3.30, 3.86
  >>> log_likelihood_ratio([-7, -3, 5], *fit).round(6)
  array([ 0.43227 , -0.700919, -2.869434])
  """
  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  loss = np.asarray(loss, dtype=np.float64)
  return np.log(s0 / s1) + 0.5 * (((loss - m0) / s0) ** 2 - ((loss - m1) / s1) ** 2)


def vertex(
  mean_in: ArrayLike, std_in: ArrayLike, mean_out: ArrayLike, std_out: ArrayLike
) -> np.ndarray:
  """Return the loss l* at which log Lambda has its extremum.

      l* = -(m_in s_out^2 - m_out s_in^2) / (s_in^2 - s_out^2)

  For s_in < s_out it is the maximum, for s_in > s_out the minimum.

  Args:
    mean_in: m_in.
    std_in: s_in, positive.
    mean_out: m_out.
    std_out: s_out, positive.

  Returns:
    l*; infinite for equal spreads, NaN where the means are equal as well.

  >>> float(vertex(-7.60, 3.92, -3.30, 3.86).round(1))
  133.9
  """
  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  with np.errstate(divide="ignore", invalid="ignore"):
    return (m0 * s1**2 - m1 * s0**2) / ((s1 - s0) * (s1 + s0))


def falls_with_loss(
  loss: ArrayLike,
  mean_in: ArrayLike,
  std_in: ArrayLike,
  mean_out: ArrayLike,
  std_out: ArrayLike,
) -> np.ndarray:
  """Return where a slightly larger loss has a smaller Lambda.

  This is the case to the right of the vertex for s_in < s_out, to the left of it for
  s_in > s_out, and everywhere for equal standard deviations and m_in < m_out.

  Args:
    loss: l, any shape.
    mean_in: m_in.
    std_in: s_in, positive.
    mean_out: m_out.
    std_out: s_out, positive.

  Returns:
    bool; False where a fit is NaN.

  >>> falls_with_loss([133, 135], -7.60, 3.92, -3.30, 3.86)
  array([ True, False])
  """
  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  loss = np.asarray(loss, dtype=np.float64)
  return (loss - m0) / s0**2 < (loss - m1) / s1**2


def total_variation(
  mean_in: ArrayLike, std_in: ArrayLike, mean_out: ArrayLike, std_out: ArrayLike
) -> np.ndarray:
  """Return the total variation distance of two Gaussians, exactly.

  The densities cross at two points (at one for equal standard deviations), and TV is
  the difference of the masses between them. With d = |m_in - m_out|/s and equal
  standard deviations, TV = 2 Phi(d/2) - 1.

  Args:
    mean_in: m_in.
    std_in: s_in, positive.
    mean_out: m_out.
    std_out: s_out, positive.

  Returns:
    TV, in [0, 1].

  >>> float(total_variation(-7.60, 3.92, -3.30, 3.86).round(6))
  0.419567
  """
  from scipy.special import ndtr

  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  narrow, wide = np.minimum(s1, s0), np.maximum(s1, s0)
  ratio, excess = wide / narrow, (wide - narrow) / narrow
  gap = np.abs(m1 - m0) / narrow
  # In units of the narrow one: (r^2 - 1) u^2 - 2 gap u - gap^2 - 2 r^2 log r = 0. The
  # root without cancellation comes first, and is infinite for equal standard
  # deviations.
  curvature, log_ratio = excess * (2 + excess), np.log1p(excess)
  larger = gap + ratio * np.sqrt(gap**2 + 2 * curvature * log_ratio)
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    first = larger / curvature
    second = -(gap**2 + 2 * ratio**2 * log_ratio) / larger
    of_narrow = ndtr(first) - ndtr(second)
    of_wide = ndtr((first + gap) / ratio) - ndtr((second + gap) / ratio)
  return np.where(larger == 0, 0.0, np.abs(of_narrow - of_wide))


def squared_hellinger(
  mean_in: ArrayLike, std_in: ArrayLike, mean_out: ArrayLike, std_out: ArrayLike
) -> np.ndarray:
  """Return the squared Hellinger distance of two Gaussians.

      H^2 = 1 - sqrt(2 s1 s2 / (s1^2+s2^2)) exp(-(m1-m2)^2 / (4 (s1^2+s2^2)))

  Args:
    mean_in: m1.
    std_in: s1, positive.
    mean_out: m2.
    std_out: s2, positive.

  Returns:
    H^2, in [0, 1].

  >>> float(squared_hellinger(0, 1, 2, 1).round(6)), round(1 - float(np.exp(-0.5)), 6)
  (0.393469, 0.393469)
  """
  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  squares = s1**2 + s0**2
  # log of the product; near 0 for near-equal Gaussians, where 1 - product is rounding.
  spread = 0.5 * np.log1p(-((s1 - s0) ** 2) / squares)
  return -np.expm1(spread - (m1 - m0) ** 2 / (4 * squares))


def total_variation_bound(
  mean_in: ArrayLike, std_in: ArrayLike, mean_out: ArrayLike, std_out: ArrayLike
) -> np.ndarray:
  """Return the bound sqrt(2) H of the total variation of two Gaussians.

  Args:
    mean_in: m_in.
    std_in: s_in, positive.
    mean_out: m_out.
    std_out: s_out, positive.

  Returns:
    min(1, sqrt(2) H) >= TV.

  Deviation: capped at 1, which TV never exceeds. sqrt(2) H does from d = 2.36 on, and
    the parabola of `auc_bound` falls beyond 1, so it would be no bound there.

  >>> float(total_variation_bound(-7.60, 3.92, -3.30, 3.86).round(6))
  0.532332
  """
  distance = squared_hellinger(mean_in, std_in, mean_out, std_out)
  return np.minimum(1.0, np.sqrt(2 * distance))


def auc_bound(tv: ArrayLike) -> np.ndarray:
  """Return the largest AUC at a total variation, -TV^2/2 + TV + 1/2.

  It integrates TPR <= min(1, FPR + TV), so it also holds with max(TPR - FPR) of a ROC
  in place of TV.

  Guarantee: bounds every attack that reads nothing but these scores, if `tv` is not
    below the true total variation; an estimate of it can be.

  Args:
    tv: in [0, 1].

  Returns:
    The bound, in [1/2, 1].

  Raises:
    ValueError: if tv is not in [0, 1].

  >>> float(auc_bound(0.419567).round(6))
  0.831549
  """
  tv = np.asarray(tv, dtype=np.float64)
  wrong = ~((tv >= 0) & (tv <= 1))
  if wrong.any():
    raise ValueError(f"tv={tv[wrong].flat[0]}; pass a distance in [0, 1]")
  return tv - tv**2 / 2 + 0.5


def gaussian_auc(
  mean_in: ArrayLike, std_in: ArrayLike, mean_out: ArrayLike, std_out: ArrayLike
) -> np.ndarray:
  """Return the AUC of Gaussian scores, Phi((m_in - m_out)/sqrt(s_in^2 + s_out^2)).

  Args:
    mean_in: mean of the members' scores, which are higher for members; for losses pass
      the negated means.
    std_in: s_in, positive.
    mean_out: mean of the non-members' scores.
    std_out: s_out, positive.

  Returns:
    The AUC of a threshold on the score itself, in [0, 1]. For unequal standard
    deviations the likelihood ratio has a higher AUC.

  >>> float(gaussian_auc(1.104, 1, 0, 1).round(4))
  0.7825
  """
  from scipy.special import ndtr

  m1, s1, m0, s0 = _gaussians(mean_in, std_in, mean_out, std_out)
  return ndtr((m1 - m0) / np.hypot(s1, s0))


def _gaussians(*fit: ArrayLike) -> list[np.ndarray]:
  """Return means and standard deviations as float64 arrays."""
  arrays = [np.asarray(values, dtype=np.float64) for values in fit]
  for name, std in (("std_in", arrays[1]), ("std_out", arrays[3])):
    if (std <= 0).any():
      raise ValueError(f"{name} holds {std.min()}; a spread is positive: floor it")
  return arrays

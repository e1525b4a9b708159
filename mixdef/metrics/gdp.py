"""Gaussian differential privacy: one number for the whole ROC of a mechanism.

Gaussian noise of standard deviation 1/mu on a sum of sensitivity 1 is mu-GDP: no attack
does better than distinguishing N(0, 1) from N(mu, 1).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from mixdef.metrics import error_rates


def gdp_mu(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  thresholds: int | ArrayLike = 20,
  confidence: float = 0.95,
) -> float:
  """Bound the mu of a Gaussian mechanism from below.

      mu >= Phi^-1(1 - FPR_hi) - Phi^-1(FNR_hi)

  at the best of T thresholds, every rate bounded at (1 - confidence)/(2 T).

  Guarantee: below the true mu with the stated confidence, for independent trials. It
    speaks about epsilon, through `gdp_epsilon`, only if the mechanism is mu-GDP.

  Args:
    scores: [N] of one target or of independent trials; higher means member. NaN is
      excluded.
    members: bool [N].
    thresholds: values [T] fixed in advance, or their number, as in
      `epsilon_bonferroni`.
    confidence: in (0, 1).

  Returns:
    The bound, >= 0.

  Raises:
    ValueError: for pooled scores [S, N], no threshold, or a number out of range.

  Reference: Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv 1905.02383;
    Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023,
    arXiv 2302.07956.

  >>> members = np.arange(1000) < 500
  >>> round(gdp_mu(members.astype(float), members, thresholds=[.5]), 2)
  4.88
  """
  from scipy.special import ndtri

  fpr_high, fnr_high = error_rates.bounds(
    scores, members, thresholds=thresholds, confidence=confidence
  )
  # A bound of exactly 1 gives -inf here, which is never the maximum.
  return max(0.0, float((-ndtri(fpr_high) - ndtri(fnr_high)).max()))


def gdp_epsilon(mu: float, delta: float) -> float:
  """Return the epsilon of a mu-GDP mechanism at this delta.

      delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)   (Corollary 2.13)

  Args:
    mu: >= 0.
    delta: in (0, 1).

  Returns:
    The smallest eps >= 0 with delta(eps) <= delta.

  Raises:
    ValueError: if mu or delta is out of range.

  Reference: Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv 1905.02383.

  >>> [round(gdp_epsilon(mu, 1e-5), 4) for mu in (0., .5, 1., 2.)]
  [0.0, 1.9931, 4.3772, 9.9973]
  """
  if not 0 <= mu < np.inf:
    raise ValueError(f"mu={mu}; pass a finite number >= 0")
  if not 0 < delta < 1:
    raise ValueError(f"delta={delta}; pass a probability in (0, 1)")
  if mu == 0:
    return 0.0
  from scipy.special import log_ndtr

  def exceeds(epsilon: float) -> bool:
    first = np.exp(log_ndtr(-epsilon / mu + mu / 2))
    second = np.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return first - second > delta

  return largest(exceeds)


def largest(holds: Callable[[float], bool]) -> float:
  """Return the supremum of the x >= 0 for which `holds` is true.

  Args:
    holds: a monotone condition, true up to the supremum and false above it.

  Returns:
    The supremum to about 13 digits; 0 if it does not hold at 0.

  >>> round(largest(lambda x: x * x < 2), 12)
  1.414213562373
  """
  if not holds(0.0):
    return 0.0
  low, high = 0.0, 1.0
  while holds(high):
    low, high = high, 2 * high
  for _ in range(45):
    middle = (low + high) / 2
    low, high = (middle, high) if holds(middle) else (low, middle)
  return low

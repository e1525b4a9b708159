"""Lower bounds on epsilon from the errors of an attack.

An (epsilon, delta)-DP mechanism keeps every attack, at every threshold, below

    TPR <= e^eps FPR + delta   and   TNR <= e^eps FNR + delta,

so upper bounds of FPR and FNR refute every smaller epsilon. The functions differ in how
the threshold is chosen. A threshold picked on the scores that it is evaluated on
requires a correction, and the best of all observed thresholds does not give a bound at
all.

All of them need independent trials: independent trainings, or the canaries of one
target to the extent that these do not influence each other. For one training run
without that assumption see `one_run`.
"""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import generator
from mixdef.metrics import error_rates
from mixdef.metrics.roc import Roc


def epsilon_at_threshold(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  threshold: float,
  delta: float = 0.0,
  confidence: float = 0.95,
) -> float:
  """Bound epsilon from below at one threshold, fixed before the scores are seen.

      eps >= max( ln((1 - FNR_hi - delta) / FPR_hi), ln((1 - FPR_hi - delta) / FNR_hi) )

  FPR_hi and FNR_hi are Clopper-Pearson upper bounds, each at (1 - confidence)/2.

  Guarantee: below the true epsilon with the stated confidence, for independent trials
    and a threshold that does not depend on them. Zero where nothing is refuted.

  Args:
    scores: [N] of one target or of independent trials; higher means member. NaN is
      excluded.
    members: bool [N].
    threshold: the decision is `score >= threshold`.
    delta: of (epsilon, delta)-DP, in [0, 1).
    confidence: in (0, 1).

  Returns:
    The bound, >= 0; never above `epsilon_ceiling`.

  Raises:
    ValueError: for pooled scores [S, N], or a number out of range.

  Deviation: both directions rest on the same two upper bounds, so taking the larger
    costs no correction.

  Reference: Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine
    Learning: How Private is Private SGD?", 2020, arXiv 2006.07709; Nasr et al.,
    "Adversary Instantiation", 2021, arXiv 2101.04535.

  >>> members = np.arange(200) < 100
  >>> round(epsilon_at_threshold(members.astype(float), members, threshold=.5), 2)
  3.28
  """
  return epsilon_bonferroni(
    scores, members, thresholds=[threshold], delta=delta, confidence=confidence
  )


def epsilon_bonferroni(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  thresholds: int | ArrayLike = 20,
  delta: float = 0.0,
  confidence: float = 0.95,
) -> float:
  """Bound epsilon at the best of several thresholds, with a Bonferroni correction.

  This is `epsilon_at_threshold` with every rate bounded at (1 - confidence)/(2 T).

  Guarantee: as `epsilon_at_threshold`, if the values do not depend on these scores. A
    number of thresholds needs no choice: the scores of non-members at fixed ranks. A
    non-member's j-th largest score has a true FPR of law Beta(j, n - j + 1), which
    the Clopper-Pearson bound covers, and is independent of the members. Scores tied
    with it count too, which keeps the level.

  Args:
    scores: [N] of one target or of independent trials; higher means member. NaN is
      excluded.
    members: bool [N].
    thresholds: values [T] fixed in advance, or their maximum number T: ranks spaced
      geometrically from both ends of the non-members.
    delta: of (epsilon, delta)-DP, in [0, 1).
    confidence: in (0, 1).

  Returns:
    The bound, >= 0.

  Raises:
    ValueError: for pooled scores [S, N], no threshold, or a number out of range.

  Deviation: the number and spacing of ranks are ours.

  >>> members = np.arange(2000) < 1000
  >>> round(epsilon_bonferroni(members.astype(float), members), 2)
  5.0
  """
  _check_delta(delta)
  high = error_rates.bounds(
    scores, members, thresholds=thresholds, confidence=confidence
  )
  return max(0.0, float(_log_ratio(*high, delta).max()))


def epsilon_split(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  delta: float = 0.0,
  confidence: float = 0.95,
  seed: int = 0,
) -> float:
  """Bound epsilon on one random half at the threshold that is best on the other half.

  Guarantee: as `epsilon_at_threshold`. The seed must be fixed too: the best of several
    seeds is a selection.

  Args:
    scores: [N] of one target or of independent trials; higher means member. NaN is
      excluded.
    members: bool [N], at least two of each kind.
    delta: of (epsilon, delta)-DP, in [0, 1).
    confidence: in (0, 1).
    seed: random seed of the halves, drawn separately for members and non-members.

  Returns:
    The bound, >= 0.

  Raises:
    ValueError: for pooled scores [S, N], too few records, or a number out of range.

  >>> members = np.arange(2000) < 1000
  >>> round(epsilon_split(members.astype(float), members), 2)
  4.91
  """
  return float(_split_bounds(scores, members, 1, delta, confidence, seed)[0])


def epsilon_multisplit(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  splits: int = 100,
  delta: float = 0.0,
  confidence: float = 0.95,
  seed: int = 0,
) -> float:
  """Bound epsilon by the median over many random splits, each at half the error.

  Twice the median of p-values is a p-value, so an epsilon that half of the splits
  refute at (1 - confidence)/2 is refuted. The bound depends little on the seed.

  Args:
    scores: [N] of one target or of independent trials; higher means member. NaN is
      excluded.
    members: bool [N], at least two of each kind.
    splits: number of splits.
    delta: of (epsilon, delta)-DP, in [0, 1).
    confidence: in (0, 1).
    seed: random seed of the halves.

  Returns:
    The bound, >= 0: the largest value that half of the splits reach or exceed.

  Raises:
    ValueError: for pooled scores [S, N], too few records, or a number out of range.

  Reference: Meinshausen, Meier, Buehlmann, "p-Values for High-Dimensional Regression",
    2009, arXiv 0811.2177, Theorem 3.1.

  >>> members = np.arange(2000) < 1000
  >>> round(epsilon_multisplit(members.astype(float), members, splits=9), 2)
  4.73
  """
  if splits < 1:
    raise ValueError(f"splits={splits}; pass at least 1")
  bounds = _split_bounds(
    scores, members, splits, delta, 1 - error_rates.tail(confidence, 2), seed
  )
  return float(np.quantile(bounds, 0.5, method="higher"))


def epsilon_ceiling(
  num_members: int,
  num_nonmembers: int,
  *,
  delta: float = 0.0,
  confidence: float = 0.95,
) -> float:
  """Return the largest `epsilon_at_threshold` that this many records can show.

  It is the bound of an attack without any error. A bound near it means that more
  records are needed, not that epsilon is near it.

  Args:
    num_members: at least 1.
    num_nonmembers: at least 1.
    delta: of (epsilon, delta)-DP, in [0, 1).
    confidence: in (0, 1).

  Returns:
    The ceiling, >= 0.

  Raises:
    ValueError: if a number is out of range.

  >>> [round(epsilon_ceiling(n, n), 2) for n in (100, 1000, 25_000)]
  [3.28, 5.6, 8.82]
  """
  if num_members < 1 or num_nonmembers < 1:
    raise ValueError(
      f"num_members={num_members}, num_nonmembers={num_nonmembers}; pass at least 1"
    )
  _check_delta(delta)
  tail = error_rates.tail(confidence, 2)
  fpr_high = error_rates.upper(0, num_nonmembers, tail)
  fnr_high = error_rates.upper(0, num_members, tail)
  return max(0.0, float(_log_ratio(fpr_high, fnr_high, delta)))


def _split_bounds(
  scores: ArrayLike,
  members: ArrayLike,
  splits: int,
  delta: float,
  confidence: float,
  seed: int,
) -> np.ndarray:
  """Return the bound of every split, [splits]."""
  _check_delta(delta)
  inside, outside = error_rates.apart(scores, members)
  k, j = len(inside) // 2, len(outside) // 2
  if not k or not j:
    raise ValueError(
      f"{len(inside)} members and {len(outside)} non-members; a split needs 2 of each"
    )
  tail = error_rates.tail(confidence, 2)
  # The halves have the same sizes in every split, so only a few bounds occur.
  fnr_high = error_rates.upper(np.arange(k + 1), k, tail)
  fpr_high = error_rates.upper(np.arange(j + 1), j, tail)
  rng = generator(seed)
  half = np.arange(k + j) < k
  rest = np.arange(len(inside) - k + len(outside) - j) < len(inside) - k
  bounds = np.empty(splits)
  for number in range(splits):
    inside, outside = rng.permutation(inside), rng.permutation(outside)
    curve = Roc.of(np.concatenate([inside[:k], outside[:j]]), half)
    best = _log_ratio(fpr_high[curve.fp], fnr_high[k - curve.tp], delta).argmax()
    bounds[number] = epsilon_at_threshold(
      np.concatenate([inside[k:], outside[j:]]),
      rest,
      threshold=curve.threshold[best],
      delta=delta,
      confidence=confidence,
    )
  return bounds


def _log_ratio(fpr_high: np.ndarray, fnr_high: np.ndarray, delta: float) -> np.ndarray:
  """Return the larger logarithm of the two directions, -inf where undefined."""
  with np.errstate(divide="ignore"):
    return np.maximum(
      np.log(np.maximum(1 - fnr_high - delta, 0) / fpr_high),
      np.log(np.maximum(1 - fpr_high - delta, 0) / fnr_high),
    )


def _check_delta(delta: float) -> None:
  if not 0 <= delta < 1:
    raise ValueError(f"delta={delta}; pass a probability in [0, 1)")

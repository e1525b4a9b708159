"""Upper bounds on an attack's false-positive and false-negative rates.

Every bound on epsilon or mu uses the two errors of a decision `score >= threshold`,
bounded from above for independent trials.
"""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.metrics.roc import scored_pairs


def bounds(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  thresholds: int | ArrayLike,
  confidence: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Bound the FPR and the FNR from above, at all thresholds at once.

  Args:
    scores: [N]; higher means member. NaN is excluded.
    members: bool [N].
    thresholds: values [T] or their number, see `epsilon_bonferroni`.
    confidence: probability that all 2 T bounds hold simultaneously.

  Returns:
    FPR_hi [T] and FNR_hi [T].

  Raises:
    ValueError: for pooled scores [S, N], no threshold, or a number out of range.
  """
  inside, outside = apart(scores, members)
  if np.ndim(thresholds):
    values = np.asarray(thresholds, dtype=np.float64)
  else:
    values = _rank_thresholds(outside, thresholds)
  if values.ndim != 1 or not len(values) or np.isnan(values).any():
    raise ValueError(f"thresholds={thresholds}; pass a list of numbers")
  share = tail(confidence, 2 * len(values))
  false_negatives = np.searchsorted(inside, values)
  false_positives = len(outside) - np.searchsorted(outside, values)
  return (
    upper(false_positives, len(outside), share),
    upper(false_negatives, len(inside), share),
  )


def apart(scores: ArrayLike, members: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Return the sorted scores of members and of non-members."""
  if np.ndim(scores) != 1:
    raise ValueError(
      f"scores have shape {np.shape(scores)}; pass [N] of one target: pairs of a record"
      " with several targets are not independent"
    )
  scores, members = scored_pairs(scores, members)
  return np.sort(scores[members]), np.sort(scores[~members])


def _rank_thresholds(outside: np.ndarray, count: int | ArrayLike) -> np.ndarray:
  """Return non-member scores at about `count` fixed ranks, dense at both ends.

  Rank j has j non-members at or above it; rank 0 lies just above all of them.
  """
  if not isinstance(count, int | np.integer) or count < 1:
    raise ValueError(f"thresholds={count}; pass a whole number >= 1 or a list")
  number = len(outside)
  top = np.geomspace(1, (number + 1) / 2, (count + 1) // 2).round().astype(int) - 1
  ranks = np.unique([*top, *(number - 1 - top[: count // 2])])
  return np.append(np.nextafter(outside[-1], np.inf), outside[::-1])[ranks]


def upper(count: ArrayLike, trials: int, tail: float) -> np.ndarray:
  """Bound a binomial rate from above (one-sided Clopper-Pearson).

  Args:
    count: successes, any shape, 0 to trials.
    trials: at least 1.
    tail: probability of a bound below the true rate, in (0, 1).

  Returns:
    Beta^-1(1 - tail; k + 1, n - k), and 1 at k = n.

  >>> upper([0, 1, 100], 100, .025).round(4)
  array([0.0362, 0.0545, 1.    ])
  """
  from scipy.special import betainccinv

  count = np.asarray(count)
  bound = betainccinv(count + 1, np.maximum(trials - count, 1), tail)
  return np.where(count < trials, bound, 1.0)


def tail(confidence: float, number: int) -> float:
  """Split the allowed error 1 - confidence equally among `number` bounds.

  >>> round(tail(.95, 2), 6)
  0.025
  """
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}; pass a rate in (0, 1)")
  return (1 - confidence) / number

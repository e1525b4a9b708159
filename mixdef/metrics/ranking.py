"""Sort scores into a ROC, in which ties move together and nothing is interpolated."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Roc(NamedTuple):
  """Counts at every distinct score, in descending order.

  Attributes:
    threshold: [T] distinct scores, descending; the decision is `score >= threshold`.
    tp: [T] members at or above the threshold; the last entry is the number of members.
    fp: [T] non-members at or above it; the last entry is the number of non-members.
  """

  threshold: np.ndarray
  tp: np.ndarray
  fp: np.ndarray


def descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sort scores in descending order and find where each run of equal ones ends.

  Args:
    scores: [N] without NaN; +inf, -inf and -0.0 = 0.0 are ties like any other.

  Returns:
    order [N] and the index in that order of the last record of each run [T].

  >>> descending(np.array([1., 3., 1.]))[1]
  array([0, 2])
  """
  order = np.argsort(-scores)
  ranked = scores[order]
  return order, np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)


def roc(scores: np.ndarray, member: np.ndarray) -> Roc:
  """Count members and non-members at or above every observed score.

  Args:
    scores: [N] without NaN.
    member: bool [N] with both values present.

  Returns:
    The `Roc`.

  >>> roc(np.array([.9, .8, .8]), np.array([True, True, False])).fp
  array([0, 1])
  """
  order, ends = descending(scores)
  tp = np.cumsum(member[order])[ends]
  return Roc(scores[order[ends]], tp, ends + 1 - tp)


def area(tp: np.ndarray, fp: np.ndarray) -> float:
  """Return the area under a ROC, ties counting half.

  Args:
    tp: [T] members at or above each threshold, thresholds descending.
    fp: [T] non-members, likewise; integers or sums of integer weights.

  Returns:
    Pr[score of a member > that of a non-member] + Pr[equal]/2, in [0, 1].

  >>> area(np.array([1, 2]), np.array([0, 2]))
  0.75
  """
  trapezoids = fp[0] * tp[0] + ((fp[1:] - fp[:-1]) * (tp[1:] + tp[:-1])).sum()
  return float(trapezoids / (2 * tp[-1] * fp[-1]))


def best_threshold(scores: np.ndarray, member: np.ndarray) -> float:
  """Find the observed score that maximizes (TPR + TNR)/2, in O(n log n).

  Args:
    scores: [N] without NaN; higher means member. The decision is `score >= threshold`.
    member: bool [N] with both values present.

  Returns:
    The threshold; the lowest of equally good ones.

  >>> best_threshold(np.array([1., 2., 3.]), np.array([False, True, True]))
  2.0
  """
  threshold, tp, fp = roc(scores, member)
  # Use integers, so that equally good thresholds compare equal.
  gain = tp * fp[-1] - fp * tp[-1]
  return float(threshold[::-1][gain[::-1].argmax()])


def highest_tpr(
  tp: np.ndarray, fp: np.ndarray, fpr: ArrayLike, *, strict: bool = False
) -> Any:
  """Return the largest TPR over the thresholds whose FPR is at most `fpr`.

  Args:
    tp: [T] members at or above each threshold, thresholds descending.
    fp: [T] non-members, likewise; integers or sums of integer weights.
    fpr: in [0, 1], a scalar or [P].
    strict: whether to require an FPR below `fpr` instead.

  Returns:
    The TPR, a scalar or [P]; 0 where only the threshold +inf is allowed.

  >>> highest_tpr(np.array([1, 2, 2]), np.array([0, 1, 2]), .5)
  1.0
  """
  members, nonmembers, fpr = tp[-1], fp[-1], np.asarray(fpr, np.float64)
  allowed = np.floor(fpr * nonmembers) + 1
  # fpr * n0 rounds (.29 * 100 < 29), but a count divided by n0 equals the literal that
  # it represents, so compare the quotients.
  over = np.greater_equal if strict else np.greater
  while (too_many := over(allowed / nonmembers, fpr)).any():
    allowed = allowed - too_many
  position = np.searchsorted(fp, allowed, side="right")
  found = np.where(position, tp[position - 1] / members, 0.0)
  return found if found.ndim else float(found)

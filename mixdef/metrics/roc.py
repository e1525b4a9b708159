"""The ROC of an attack. No ROC is interpolated, and ties move together.

Scores and membership may be [N] (one target) or [S, N] (pooled targets). NaN scores
are excluded; `excluded` counts them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate

FPR_GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""The false-positive rates a report shows by default."""


class Roc(NamedTuple):
  """Counts at every distinct score, from the highest down: the scores sorted once.

  Attributes:
    threshold: [T] distinct scores, descending; the decision is `score >= threshold`.
    tp: [T] members at or above the threshold; the last entry is the number of members.
    fp: [T] non-members at or above it; the last entry is the number of non-members.

  >>> curve = Roc.of([.9, .8, .8], [True, True, False])
  >>> curve.fp, curve.auc, curve.tpr_at(0.5)
  (array([0, 1]), 0.75, 0.5)
  """

  threshold: np.ndarray
  tp: np.ndarray
  fp: np.ndarray

  @classmethod
  def of(cls, scores: ArrayLike, members: ArrayLike) -> "Roc":
    """Count members and non-members at or above every observed score.

    Args:
      scores: [N] or [S, N], higher means member; NaN is excluded.
      members: bool of the same shape.

    Raises:
      ValueError: if shapes differ, member is not bool, or one class is missing.
    """
    scores, members = scored_pairs(scores, members)
    order, ends = descending(scores)
    tp = np.cumsum(members[order])[ends]
    return cls(scores[order[ends]], tp, ends + 1 - tp)

  @property
  def auc(self) -> float:
    """Area under the curve, with ties counting half."""
    return area(self.tp, self.fp)

  def tpr_at(self, fpr: ArrayLike, *, strict: bool = False) -> Any:
    """Return the largest TPR whose FPR is at most `fpr`, one or [P]."""
    return highest_tpr(self.tp, self.fp, fpr, strict=strict)

  @property
  def best_threshold(self) -> float:
    """Observed score that maximizes (TPR + TNR)/2; of equally good ones the lowest."""
    # Whole numbers, so that equally good thresholds compare equal.
    gain = self.tp * self.fp[-1] - self.fp * self.tp[-1]
    return float(self.threshold[::-1][gain[::-1].argmax()])

  @property
  def max_balanced_accuracy(self) -> float:
    """Largest (TPR + TNR)/2 over all thresholds, in [0.5, 1].

    It is optimistic: the threshold is picked on the evaluated labels, as in the
    official LiRA code. `balanced_accuracy` is what an attacker can achieve.
    """
    gain = (self.tp * self.fp[-1] - self.fp * self.tp[-1]).max()
    return float(0.5 + max(gain, 0) / (2 * self.tp[-1] * self.fp[-1]))


def scored_pairs(
  scores: ArrayLike, members: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Flatten scores and membership, without the pairs whose score is NaN.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.

  Returns:
    scores float64 [P] and member bool [P].

  Raises:
    ValueError: if shapes differ, member is not bool, or one class is missing.
  """
  scores, members = validate.scored(scores, members)
  scored = ~np.isnan(scores)
  scores, members = scores[scored], members[scored]
  if not members.any() or members.all():
    raise ValueError(
      f"{int(members.sum())} members and {int((~members).sum())} non-members have a "
      "score; at least one of each is needed"
    )
  return scores, members


def complete_targets(scores: ArrayLike, members: ArrayLike) -> np.ndarray:
  """Find the targets that have a member and a non-member with a score.

  Only these have rates of their own. An attack that queries few records, or that leaves
  some without a score, can lack a class in one model but not in the others.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.

  Returns:
    The indices of these targets, ascending.

  >>> complete_targets([[1., 2.], [3., np.nan]], [[True, False], [True, False]])
  array([0])
  """
  scores, members = map(np.atleast_2d, validate.scored(scores, members))
  scored = ~np.isnan(scores)
  return np.flatnonzero((scored & members).any(1) & (scored & ~members).any(1))


def pseudo_targets(scores: ArrayLike, members: ArrayLike) -> np.ndarray:
  """Return the `complete_targets`, at least two, because each is judged by the others.

  Raises:
    ValueError: if there are fewer.
  """
  found = complete_targets(scores, members)
  if len(found) < 2:
    raise ValueError(
      f"scores have shape {np.shape(scores)} and both classes in {len(found)} targets;"
      " thresholds of other models need [S, N] with S >= 2 such targets"
    )
  return found


def excluded(scores: ArrayLike) -> int:
  """Count the scores that are NaN."""
  return int(np.isnan(np.asarray(scores, dtype=np.float64)).sum())


def auc(scores: ArrayLike, members: ArrayLike) -> float:
  """Return the area under the ROC, with mid-ranks for ties.

  A value below 0.5 is returned unchanged: flipping the sign would be a selection.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.

  Returns:
    Pr[score of a member > that of a non-member] + Pr[equal]/2, in [0, 1].

  >>> auc([.9, .8, .8, .1], [True, True, False, False])
  0.875
  """
  return Roc.of(scores, members).auc


def check_fpr(fpr: float) -> None:
  """Raise a ValueError unless `fpr` is a rate."""
  if not 0 <= fpr <= 1:
    raise ValueError(f"fpr={fpr}; pass a rate in [0, 1], not a percentage")


def tpr_at_fpr(
  scores: ArrayLike, members: ArrayLike, fpr: float, *, strict: bool = False
) -> float:
  """Return the largest TPR over the thresholds whose empirical FPR is at most `fpr`.

  The threshold is picked on the evaluated labels, so this describes the ROC, not what
  an attacker can achieve.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.
    fpr: in [0, 1].
    strict: whether to require an FPR below `fpr`, as the official LiRA code does.

  Returns:
    The TPR, in [0, 1].

  Raises:
    ValueError: if fpr is not in [0, 1].

  >>> scores = [.9, .8, .7, .1, .95, .6, .5, .4]
  >>> members = [True] * 4 + [False] * 4
  >>> [tpr_at_fpr(scores, members, f) for f in (0, .24, .25, .5)]
  [0.0, 0.0, 0.75, 0.75]
  """
  check_fpr(fpr)
  return Roc.of(scores, members).tpr_at(fpr, strict=strict)


def resolvable(num_nonmembers: int, fpr: float) -> bool:
  """Return whether at least ten false positives are expected at an FPR.

  >>> resolvable(10_000, .001), resolvable(5_000, .001)
  (True, False)
  """
  return round(num_nonmembers * fpr, 9) >= 10


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

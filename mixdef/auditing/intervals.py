"""Intervals by resampling records, each with all its targets."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import ranking
from mixdef.auditing.figures import area, scored_pairs
from mixdef.data import validate


def bootstrap_records(
  scores: ArrayLike,
  member: ArrayLike,
  *,
  fprs: Sequence[float] = (),
  threshold: ArrayLike | None = None,
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Any]:
  """Return percentile intervals of the pooled figures, with records as clusters.

  A resample draws N records with replacement and takes each with all its targets:
  pairs of one record are dependent, and resampling them one by one gives intervals
  that are too short. The pairs are sorted once; a resample is a vector of record
  weights, summed along that order.

  Guarantee: covers the choice of records, given these models; not the training
    randomness. TPR intervals are unreliable below ten expected false positives: check
    `figures.resolvable`.

  Args:
    scores: [N] or [S, N], larger = member; NaN pairs are left out.
    member: bool of the same shape.
    fprs: rates at which to bound the TPR.
    threshold: a number or [S]; gives the interval of the balanced accuracy at these
      thresholds, held fixed.
    resamples: number of resamples.
    seed: of the draw.
    confidence: in (0, 1).

  Returns:
    {"auc": (lo, hi), "tpr": {fpr: (lo, hi)}, "balanced_accuracy": (lo, hi) or None}.

  Raises:
    ValueError: if resamples < 1, or no pair of one class has a score.

  Reference: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.

  >>> lo, hi = bootstrap_records([3., 2., 1., 0.], [True, True, False, False])["auc"]
  >>> lo, hi
  (1.0, 1.0)
  """
  if resamples < 1:
    raise ValueError(f"resamples={resamples}; pass at least 1")
  scores, member = _rows(scores, member)
  present = (~np.isnan(scores)).any(0)
  pairs = _pool(scores[:, present], member[:, present])
  decided = None
  if threshold is not None:
    decided = _decisions(scores[:, present], member[:, present], threshold)

  rng = np.random.default_rng(seed)
  records = int(present.sum())
  draws: list[list[float]] = []
  for _ in range(resamples):
    weights = _draw(rng, records)
    figures = pairs.figures(weights, fprs)
    if not figures:
      continue  # every drawn record is of one class, possible only for a few records
    if decided is not None:
      called_in, members, left_out, nonmembers = weights @ decided
      figures.append(float(called_in / members + left_out / nonmembers) / 2)
    draws.append(figures)
  intervals = _percentiles(draws, records, confidence)
  return {
    "auc": intervals[0],
    "tpr": dict(zip(fprs, intervals[1 : len(fprs) + 1], strict=True)),
    "balanced_accuracy": None if decided is None else intervals[-1],
  }


def paired_bootstrap(
  first: tuple[ArrayLike, ArrayLike],
  second: tuple[ArrayLike, ArrayLike],
  *,
  fprs: Sequence[float] = (),
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Any]:
  """Compare two attacks, or one attack under two defenses, on the same records.

  Every resample draws records once and takes each with all its targets on both sides:
  what makes a record easy or hard for both cancels in the difference. Two separate
  intervals that overlap do not say that there is no difference.

  Guarantee: covers the choice of records, given these models; not the training
    randomness. TPR intervals are unreliable below ten expected false positives: check
    `figures.resolvable`.

  Args:
    first: scores [N] or [S, N], larger = member, and member, bool of the same shape.
      A record without any score on one side is left out on both.
    second: likewise, of the same N records in the same order, with its own S and
      membership.
    fprs: rates at which to compare the TPR.
    resamples: number of resamples.
    seed: of the draw.
    confidence: in (0, 1).

  Returns:
    {"auc": {"difference", "ci": (lo, hi)}, "tpr": {fpr: the same}}, each first minus
    second.

  Raises:
    ValueError: if resamples < 1, the numbers of records differ, or no pair of one
      class has a score.

  Reference: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.

  >>> member = [True, True, False, False]
  >>> same = paired_bootstrap(([3., 2., 1., 0.], member), ([3., 1., 0., 0.], member))
  >>> same["auc"]
  {'difference': 0.0, 'ci': (0.0, 0.0)}
  """
  if resamples < 1:
    raise ValueError(f"resamples={resamples}; pass at least 1")
  sides = [_rows(*first), _rows(*second)]
  counts = [scores.shape[1] for scores, _ in sides]
  if counts[0] != counts[1]:
    raise ValueError(
      f"first has {counts[0]} records and second {counts[1]}; score the same records"
    )
  present = np.all([(~np.isnan(scores)).any(0) for scores, _ in sides], axis=0)
  one, other = (
    _pool(scores[:, present], member[:, present]) for scores, member in sides
  )
  records = int(present.sum())

  def differences(weights: np.ndarray) -> list[float]:
    pair = one.figures(weights, fprs), other.figures(weights, fprs)
    return [a - b for a, b in zip(*pair, strict=True)] if all(pair) else []

  rng = np.random.default_rng(seed)
  draws = [differences(_draw(rng, records)) for _ in range(resamples)]
  intervals = _percentiles([draw for draw in draws if draw], records, confidence)
  compared = [
    {"difference": difference, "ci": interval}
    for difference, interval in zip(
      differences(np.ones(records, dtype=int)), intervals, strict=True
    )
  ]
  return {"auc": compared[0], "tpr": dict(zip(fprs, compared[1:], strict=True))}


class _Pairs(NamedTuple):
  """All scored pairs, from the highest score down.

  Attributes:
    record: [P] which record the pair belongs to.
    truth: bool [P], whether it is a member there.
    cut: the positions where a threshold may lie, after each run of ties.
  """

  record: np.ndarray
  truth: np.ndarray
  cut: slice | np.ndarray

  def figures(self, weights: np.ndarray, fprs: Sequence[float]) -> list[float]:
    """Return the AUC and TPRs of weighted records, or nothing if one class is gone."""
    pairs = weights[self.record]
    tp = np.cumsum(pairs * self.truth)[self.cut]
    fp = np.cumsum(pairs)[self.cut] - tp
    if tp[-1] == 0 or fp[-1] == 0:
      return []
    return [area(tp, fp), *(ranking.highest_tpr(tp, fp, fpr) for fpr in fprs)]


def _rows(scores: ArrayLike, member: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Return scores float64 and membership bool as [S, N]."""
  scores = np.asarray(scores, dtype=np.float64)
  member = validate.mask(member, scores.shape, "member")
  return np.atleast_2d(scores), np.atleast_2d(member)


def _pool(scores: np.ndarray, member: np.ndarray) -> _Pairs:
  """Sort the scored pairs of [S, N] once for all resamples."""
  values, truth = scored_pairs(scores, member)
  order, ends = ranking.descending(values)
  record = np.nonzero(~np.isnan(scores))[1]
  # Without ties every position is a threshold, and taking them all is a costly copy.
  cut = slice(None) if len(ends) == len(order) else ends
  return _Pairs(record[order], truth[order], cut)


def _percentiles(
  draws: Sequence[Sequence[float]], records: int, confidence: float
) -> list[tuple[float, float]]:
  """Return the percentile interval of every figure."""
  if not draws:
    raise ValueError(f"no resample of {records} records has both classes")
  tail = (1 - confidence) / 2
  bounds = np.quantile(np.array(draws), [tail, 1 - tail], axis=0).T.tolist()
  return [(low, high) for low, high in bounds]


def _draw(rng: np.random.Generator, records: int) -> np.ndarray:
  """Return how often each record is drawn, int [records].

  Whole numbers keep the sums exact, and their cumulative sums are ten times faster
  than those of floats.
  """
  return np.bincount(rng.integers(0, records, records), minlength=records)


def _decisions(
  scores: np.ndarray, member: np.ndarray, threshold: ArrayLike
) -> np.ndarray:
  """Count per record [N, 4] over targets: hits, members, rejections, non-members."""
  called = scores >= np.asarray(threshold, dtype=np.float64).reshape(-1, 1)
  scored = ~np.isnan(scores)
  inside, outside = scored & member, scored & ~member
  columns = [inside & called, inside, outside & ~called, outside]
  return np.stack([column.sum(0) for column in columns], axis=1)

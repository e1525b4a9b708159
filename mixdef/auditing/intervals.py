"""Intervals by resampling records, each with all its targets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import ranking
from mixdef.auditing.figures import area, scored_pairs


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
  scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
  member = np.atleast_2d(member)
  values, truth = scored_pairs(scores, member)
  scored = ~np.isnan(scores)
  present = scored.any(0)
  scores, member, scored = scores[:, present], member[:, present], scored[:, present]
  order, ends = ranking.descending(values)
  # Without ties every position is a threshold, and taking them all is a costly copy.
  cut = slice(None) if len(ends) == len(order) else ends
  record = np.nonzero(scored)[1][order]
  truth = truth[order]
  decided = None if threshold is None else _decisions(scores, member, scored, threshold)

  rng = np.random.default_rng(seed)
  draws: list[list[float]] = []
  for _ in range(resamples):
    weights = _draw(rng, scores.shape[1])
    pairs = weights[record]
    tp = np.cumsum(pairs * truth)[cut]
    fp = np.cumsum(pairs)[cut] - tp
    if tp[-1] == 0 or fp[-1] == 0:
      continue  # every drawn record is of one class, possible only for a few records
    figures = [area(tp, fp), *(ranking.highest_tpr(tp, fp, f) for f in fprs)]
    if decided is not None:
      called_in, members, left_out, nonmembers = weights @ decided
      figures.append(float(called_in / members + left_out / nonmembers) / 2)
    draws.append(figures)
  if not draws:
    raise ValueError(f"no resample of {scores.shape[1]} records has both classes")
  tail = (1 - confidence) / 2
  bounds = np.quantile(np.array(draws), [tail, 1 - tail], axis=0).T.tolist()
  intervals = [(low, high) for low, high in bounds]
  return {
    "auc": intervals[0],
    "tpr": dict(zip(fprs, intervals[1 : len(fprs) + 1], strict=True)),
    "balanced_accuracy": None if decided is None else intervals[-1],
  }


def _draw(rng: np.random.Generator, records: int) -> np.ndarray:
  """Return how often each record is drawn, int [records].

  Whole numbers keep the sums exact, and their cumulative sums are ten times faster
  than those of floats.
  """
  return np.bincount(rng.integers(0, records, records), minlength=records)


def _decisions(
  scores: np.ndarray, member: np.ndarray, scored: np.ndarray, threshold: ArrayLike
) -> np.ndarray:
  """Count per record [N, 4] over targets: hits, members, rejections, non-members."""
  called = scores >= np.asarray(threshold, dtype=np.float64).reshape(-1, 1)
  inside, outside = scored & member, scored & ~member
  columns = [inside & called, inside, outside & ~called, outside]
  return np.stack([column.sum(0) for column in columns], axis=1)

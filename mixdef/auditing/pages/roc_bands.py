"""Bootstrap bands of a whole ROC, at the cost of one matrix product."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import generator
from mixdef.metrics.intervals import effective_trials, independent_pairs, rate_intervals
from mixdef.metrics.roc import Roc, highest_tpr, scored_pairs


def roc_band(
  scores: ArrayLike,
  members: ArrayLike,
  rates: Sequence[float] | np.ndarray,
  *,
  resamples: int = 200,
  seed: int = 0,
  confidence: float = 0.95,
  thresholds: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
  """Return the pointwise band of the TPR at each FPR.

  This uses the same resampling of records as `intervals.bootstrap_records`, for many
  FPRs at once: pairs are counted per record and threshold, and a resample is a
  weighting of records, so all resamples are one product [R, N] x [N, T].

  Guarantee: equals `bootstrap_records` where there are at most `thresholds` distinct
    scores. With more, thresholds lie on a geometric grid of false positives, and an
    FPR is met to within the ratio of two neighbours, 4% for 10,000 non-members.

  Args:
    scores: [N] or [S, N]; higher means member. NaN pairs are excluded.
    members: bool of the same shape.
    rates: FPRs [P], each in [0, 1].
    resamples: number of resamples R.
    seed: random seed of the bootstrap.
    confidence: in (0, 1), for each FPR separately.
    thresholds: maximum number T of thresholds to resample.

  Returns:
    Lower and upper bounds, [P] each.

  Raises:
    ValueError: if shapes differ, or one class has no score.

  >>> roc_band([3., 2., 1., 0.], [True, True, False, False], [.5])
  (array([0.15811388]), array([1.]))
  """
  scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
  members = np.atleast_2d(members)
  values, truth = scored_pairs(scores, members)
  levels = _thresholds(Roc.of(values, truth), thresholds)
  scored = ~np.isnan(scores)
  records = np.cumsum(scored.any(0)) - 1
  record = np.broadcast_to(records, scores.shape)[scored]
  size = (int(records[-1]) + 1, len(levels))
  # The first of the descending thresholds that a score reaches.
  reached = len(levels) - np.searchsorted(levels[::-1], values, side="right")
  tp = _counts(record[truth], reached[truth], size)
  fp = _counts(record[~truth], reached[~truth], size)

  rng = generator(seed)
  draws = [
    np.bincount(rng.integers(0, size[0], size[0]), minlength=size[0])
    for _ in range(resamples)
  ]
  # Integers below 2**53 stay exact as floats, whose products are fast.
  weights = np.array(draws, dtype=np.float64)
  curves = [
    highest_tpr(tp, fp, rates)
    for tp, fp in zip(weights @ tp, weights @ fp, strict=True)
    if tp[-1] and fp[-1]
  ]
  whole = tp.sum(0), fp.sum(0)
  values = highest_tpr(*whole, rates)
  pairs = independent_pairs(scores, members)
  trials = effective_trials(values, np.var(curves, axis=0), pairs)
  low, high = np.array(rate_intervals(values, trials, confidence)).T
  return low, high


def _thresholds(curve: Roc, most: int) -> np.ndarray:
  """Return at most `most` descending thresholds, the lowest score among them."""
  if len(curve.threshold) <= most:
    return curve.threshold
  counts = np.geomspace(1, curve.fp[-1], most - 1)
  places = np.searchsorted(curve.fp, np.append(0, counts), side="right") - 1
  return curve.threshold[np.unique(places[places >= 0])]


def _counts(record: np.ndarray, reached: np.ndarray, size: tuple[int, int]):
  """Count the pairs of each record at or above each threshold, float64 [N, T]."""
  flat = np.bincount(record * size[1] + reached, minlength=size[0] * size[1])
  return flat.reshape(size).cumsum(1).astype(np.float64)

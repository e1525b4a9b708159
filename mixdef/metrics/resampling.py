"""The pooled metrics of an attack under resampling weights of the records.

The metrics of up to five million pairs of a model and a record are exact. Those of more
are read from an ROC that is counted at 64 thresholds or more, with straight lines
between them, so that all resamples are one matrix product. What the lines miss of the
exact metrics is added to every resample.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import record_names, validate
from mixdef.metrics.roc import Roc, scored_pairs

_EXACT = 5_000_000  # pairs up to which a resample reads every pair
_CELLS = 2**24  # of records and thresholds, or resamples and records: 128 MiB
_FEWEST = 64  # thresholds of very many records


class Binned(NamedTuple):
  """Pairs of each of N records with a score at or above each of T thresholds.

  Attributes:
    tp: float64 [N, T], targets that trained on the record, thresholds descending.
    fp: [N, T], targets that did not.
  """

  tp: np.ndarray
  fp: np.ndarray

  @classmethod
  def of(
    cls,
    scores: np.ndarray,
    members: np.ndarray,
    thresholds: int,
    curve: Roc | None = None,
  ) -> "Binned":
    """Count pairs at distinct scores, or at a geometric grid of false positives.

    Args:
      scores: [S, N]; NaN pairs are excluded, and so are records without any score.
      members: bool [S, N].
      thresholds: maximum T. With fewer distinct scores, all are thresholds.
      curve: the ROC of these pairs, if known, which saves sorting them.

    Raises:
      ValueError: if one class has no score.
    """
    values, truth = scored_pairs(scores, members)
    levels = _levels(curve or Roc.of(values, truth), thresholds)
    scored = ~np.isnan(scores)
    records = np.cumsum(scored.any(0)) - 1
    record = np.broadcast_to(records, scores.shape)[scored]
    # The first of the descending thresholds that a score reaches.
    reached = len(levels) - np.searchsorted(levels[::-1], values, side="right")
    size = int(records[-1]) + 1, len(levels)
    cells = record * size[1] + reached

    def counts(side: np.ndarray) -> np.ndarray:
      found = np.bincount(cells[side], minlength=size[0] * size[1]).reshape(size)
      # Integers below 2**53 stay exact as floats, whose products are fast.
      return found.cumsum(1, dtype=np.float64)

    return cls(counts(truth), counts(~truth))


def _levels(curve: Roc, most: int) -> np.ndarray:
  """Return at most `most` descending thresholds, the lowest score among them."""
  if len(curve.threshold) <= most:
    return curve.threshold
  counts = np.geomspace(1, curve.fp[-1], most - 1)
  places = np.searchsorted(curve.fp, np.append(0, counts), side="right") - 1
  return curve.threshold[np.unique(places[places >= 0])]


def weighted_metrics(
  scores: np.ndarray,
  members: np.ndarray,
  fprs: Sequence[float],
  curve: Roc | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
  """Read the scored pairs of [S, N] once and return a function of resampling weights.

  The function maps int weights of the records [R, N] to the AUC and the TPRs, [R, 1 +
  F], NaN where one class is missing.
  """
  if scores.size <= _EXACT:
    one = _of_all_pairs(scores, members, fprs)
    return lambda weights: np.array([one(row) for row in weights])
  curve = curve or Roc.of(scores, members)
  thresholds = max(_FEWEST, _CELLS // scores.shape[1])
  binned, rates = Binned.of(scores, members, thresholds, curve), np.asarray(fprs)

  def on_lines(weights: np.ndarray) -> np.ndarray:
    found = np.full((len(weights), 1 + len(rates)), np.nan)
    both = weights @ binned.tp, weights @ binned.fp
    for row, tp, fp in zip(found, *both, strict=True):
      if tp[-1] and fp[-1]:
        tpr, fpr = np.append(0, tp) / tp[-1], np.append(0, fp) / fp[-1]
        row[0], row[1:] = np.trapezoid(tpr, fpr), np.interp(rates, fpr, tpr)
    return found

  exact = np.append(curve.auc, curve.tpr_at(rates))
  missing = exact - on_lines(np.ones((1, len(binned.tp))))[0]
  return lambda weights: np.clip(on_lines(weights) + missing, 0, 1)


def _of_all_pairs(
  scores: np.ndarray, members: np.ndarray, fprs: Sequence[float]
) -> Callable[[np.ndarray], list[float]]:
  """Return the exact function of the weights [N] of one resample.

  A ROC bends only at the non-members, so it needs only the weight of the members that
  score higher than each of them, or the same.
  """
  values, truth = scored_pairs(scores, members)
  order = np.argsort(-values)
  values, truth = values[order], truth[order]
  record = np.nonzero(~np.isnan(scores))[1][order]
  inside, outside = record[truth], record[~truth]
  scores_in, scores_out = values[truth][::-1], values[~truth]
  beaten = len(scores_in) - np.searchsorted(scores_in, scores_out, side="right")
  reached = len(scores_in) - np.searchsorted(scores_in, scores_out)
  tie_free = np.array_equal(beaten, reached)
  beaten = np.append(beaten, len(scores_in))

  # Reused between resamples: allocating arrays of this size costs more than the sums.
  weight_in, weight_out = np.empty_like(inside), np.empty_like(outside)
  hits, fp = np.zeros(len(inside) + 1, int), np.zeros(len(outside) + 1, int)
  tp, tp_tied = np.empty_like(fp), np.empty_like(outside)
  rates = np.asarray(fprs, dtype=np.float64)

  def metrics(weights: np.ndarray) -> list[float]:
    # "clip" changes no index here; it lets `take` write in place.
    weights.take(inside, out=weight_in, mode="clip").cumsum(out=hits[1:])
    weights.take(outside, out=weight_out, mode="clip").cumsum(out=fp[1:])
    hits.take(beaten, out=tp, mode="clip")
    if tp[-1] == 0 or fp[-1] == 0:
      return [np.nan] * (1 + len(rates))
    won = drawn = weight_out @ tp[:-1]
    if not tie_free:
      drawn = weight_out @ hits.take(reached, out=tp_tied, mode="clip")
    auc = float((won + drawn) / (2 * tp[-1] * fp[-1]))
    # The same as `highest_tpr`, for all rates at once; fp[0] is 0.
    highest = np.searchsorted(fp / fp[-1], rates, side="right") - 1
    return [auc, *(tp[highest] / tp[-1]).tolist()]

  return metrics


def units_of(groups: ArrayLike | None, present: np.ndarray) -> np.ndarray:
  """Return the number of the person of each record that is present, or its own."""
  if groups is None:
    return np.arange(present.sum())
  named = record_names.groups(groups)
  validate.lengths(present, present, groups=named)
  return np.unique(named[present], return_inverse=True)[1]


def draws(
  rng: np.random.Generator, units: np.ndarray, resamples: int
) -> Iterator[np.ndarray]:
  """Yield how often each record is drawn, int [R, N], with all of its person.

  Integers keep the sums exact, and their cumulative sums are ten times faster than
  those of floats.
  """
  count, block = int(units.max(initial=-1)) + 1, max(1, _CELLS // len(units))
  for first in range(0, resamples, block):
    rows = [
      np.bincount(rng.integers(0, count, count), minlength=count)[units]
      for _ in range(min(block, resamples - first))
    ]
    yield np.array(rows)


def decisions(
  scores: np.ndarray, members: np.ndarray, threshold: ArrayLike
) -> np.ndarray:
  """Count per record [N, 4] over targets: hits, members, rejections, non-members.

  The counts are floats, whose products are fast; integers remain exact in them.
  """
  called = scores >= np.asarray(threshold, dtype=np.float64).reshape(-1, 1)
  scored = ~np.isnan(scores)
  inside, outside = scored & members, scored & ~members
  columns = [inside & called, inside, outside & ~called, outside]
  return np.stack([column.sum(0, dtype=np.float64) for column in columns], axis=1)

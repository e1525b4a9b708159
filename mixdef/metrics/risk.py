"""Exposure of individual records and classes, rather than the average."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics.intervals import bootstrap_records
from mixdef.metrics.roc import Roc, auc, resolvable

QUANTILES = (0.5, 0.9, 0.99, 1.0)
"""The fractions of records for which a report states the exposure."""

_CLASS_RESAMPLES = 200


class RecordRisk(NamedTuple):
  """Exposure of N records under one attack.

  Attributes:
    found: float [N], fraction of the models trained on a record in which it is
      classified as a member; NaN where no attacked model trained on it.
    score: float [N], its mean score in those models.
    times: int [N], the number of those models.
    threshold: the lowest score at which a record is classified as a member.
  """

  found: np.ndarray
  score: np.ndarray
  times: np.ndarray
  threshold: float

  def quantiles(self) -> dict[str, float]:
    """Return the exposure below which 50, 90, 99 and 100% of the records lie."""
    known = self.found[~np.isnan(self.found)]
    return {f"{q:g}": float(np.quantile(known, q)) for q in QUANTILES}

  def ranked(self) -> np.ndarray:
    """Return the indices of the attacked records, the most exposed first.

    Records are ordered by the lower bound of the 90% Clopper-Pearson interval of their
    hit rate, because one hit in one model proves less than four in five. Ties are
    ordered by the mean score.
    """
    from scipy.special import betaincinv

    known = np.flatnonzero(self.times)
    times = self.times[known]
    hits = (self.found[known] * times).round()
    proved = np.where(hits, betaincinv(np.maximum(hits, 1), times - hits + 1, 0.05), 0)
    return known[np.lexsort((-self.score[known], -proved.round(12)))]


def exposure_fpr(num_nonmembers: int) -> float:
  """Return the FPR at which exposure is measured: 1%, or 2 or 5% for few pairs.

  >>> exposure_fpr(1000), exposure_fpr(100)
  (0.01, 0.05)
  """
  return next((f for f in (0.01, 0.02) if resolvable(num_nonmembers, f)), 0.05)


def record_risk(scores: ArrayLike, members: ArrayLike, *, fpr: float) -> RecordRisk:
  """Measure how often each record is found in the models trained on it.

  One threshold applies to all records and targets: the lowest whose pooled FPR is at
  most `fpr`. An average hides the few records that are nearly always found; these rates
  do not.

  Args:
    scores: [S, N]; higher means member. NaN pairs are excluded.
    members: bool [S, N].
    fpr: in [0, 1]; choose one that is `resolvable`.

  Returns:
    The `RecordRisk`.

  >>> scores = np.array([[3., 0., 1.], [0., 2., 3.]])
  >>> members = np.array([[True, False, True], [False, True, True]])
  >>> record_risk(scores, members, fpr=0).found.tolist()
  [1.0, 1.0, 1.0]
  """
  scores, members = validate.scored(scores, members, "members")
  curve = Roc.of(scores, members)
  # Compare quotients, because fpr * n0 rounds: .29 * 100 < 29.
  allowed = int((curve.fp / curve.fp[-1] <= fpr).sum())
  threshold = float(curve.threshold[allowed - 1]) if allowed else np.inf
  inside = members & ~np.isnan(scores)
  times = inside.sum(0)
  hits = (inside & (scores >= threshold)).sum(0)
  total = np.where(inside, scores, 0.0).sum(0)
  with np.errstate(invalid="ignore"):
    return RecordRisk(hits / times, total / times, times, threshold)


def class_risk(
  scores: ArrayLike, members: ArrayLike, labels: ArrayLike, *, seed: int = 0
) -> list[dict[str, Any]]:
  """Measure the attack on each class separately, the most exposed first.

  Args:
    scores: [S, N]; higher means member.
    members: bool [S, N].
    labels: int [N].
    seed: random seed of the bootstrap.

  Returns:
    One {"label", "num_records", "auc", "auc_ci"} per class that has members and
    non-members with a score.

  >>> rows = class_risk([[1., 0., 1., 2.]], np.array([[True, False] * 2]), [0, 0, 1, 1])
  >>> [(row["label"], row["auc"]) for row in rows]
  [(0, 1.0), (1, 0.0)]
  """
  scores, members = validate.scored(scores, members, "members")
  rows = []
  for label in np.unique(labels):
    part = np.asarray(labels) == label
    own, membership = scores[:, part], members[:, part]
    scored = ~np.isnan(own)
    if not (scored & membership).any() or not (scored & ~membership).any():
      continue
    bounds = bootstrap_records(own, membership, resamples=_CLASS_RESAMPLES, seed=seed)
    rows.append(
      {
        "label": int(label),
        "num_records": int(scored.any(0).sum()),
        "auc": auc(own, membership),
        "auc_ci": list(bounds["auc"]),
      }
    )
  return sorted(rows, key=lambda row: -row["auc"])

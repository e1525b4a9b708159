"""Confidence intervals by resampling records, each with all its targets."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.randomness import generator
from mixdef.metrics.resampling import decisions, draws, units_of, weighted_metrics
from mixdef.metrics.roc import Roc, check_fpr

_PRIOR_RECORDS = 4
"""Weight, in records, of the largest possible variance in the average with that of the
resamples."""


def bootstrap_records(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  fprs: Sequence[float] = (),
  threshold: ArrayLike | None = None,
  groups: ArrayLike | None = None,
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
  curve: Roc | None = None,
) -> dict[str, Any]:
  """Return intervals of the pooled metrics, with records or persons as clusters.

  A resample draws N records with replacement and takes each with all its targets,
  because the pairs of one record are dependent and resampling them individually gives
  intervals that are too short. The variance over resamples determines how many
  independent trials a metric is worth, and the interval is Clopper and Pearson's for
  that many trials, see `effective_trials`. Few records therefore give wide intervals,
  even where members and non-members are separated perfectly and all resamples agree.
  With groups, persons are drawn in this way, each with all its records. The resamples
  of more than five million pairs read the ROC at 64 thresholds or more.

  Guarantee: covers the choice of records, or persons, given these models; not the
    training randomness. TPR intervals are unreliable below ten expected false
    positives: check `resolvable`.

  Args:
    scores: [N] or [S, N]; higher means member. NaN pairs are excluded.
    members: bool of the same shape.
    fprs: rates at which to bound the TPR.
    threshold: a number or [S]; gives the interval of the balanced accuracy at these
      thresholds, which are held fixed.
    groups: integers or text [N], the person of each record; default none.
    resamples: number of resamples.
    seed: random seed of the bootstrap.
    confidence: in (0, 1).
    curve: the `Roc` of these pairs, if known, which saves sorting them.

  Returns:
    {"auc": (lo, hi), "tpr": {fpr: (lo, hi)}, "balanced_accuracy": (lo, hi) or None,
    "trials": {"auc": n, "tpr": {fpr: n}}, "pairs": the `independent_pairs`}.

  Raises:
    ValueError: if resamples < 1, a rate is out of range, or no pair of one class has a
      score.

  Reference: Korn, Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", 1998.

  >>> lo, hi = bootstrap_records([3., 2., 1., 0.], [True, True, False, False])["auc"]
  >>> round(lo, 3), hi
  (0.158, 1.0)
  """
  _check(resamples, fprs)
  scores, members = _rows(scores, members)
  present = np.asarray((~np.isnan(scores)).any(0))
  scores, members = scored = scores[:, present], members[:, present]
  units = units_of(groups, present)
  metrics_of = weighted_metrics(*scored, fprs, curve)
  decided = None if threshold is None else decisions(*scored, threshold)

  def metrics(weights: np.ndarray) -> np.ndarray:
    found = metrics_of(weights)
    if decided is None:
      return found
    correct_in, num_in, correct_out, num_out = (weights @ decided).T
    with np.errstate(invalid="ignore"):
      balanced = (correct_in / num_in + correct_out / num_out) / 2
    return np.column_stack([found, balanced])

  rng = generator(seed)
  records = scores.shape[1]
  values = metrics(np.ones((1, records), dtype=int))[0]
  drawn = _complete(map(metrics, draws(rng, units, resamples)), records)
  pairs = independent_pairs(*scored, groups=units)
  trials = effective_trials(values, drawn.var(0), pairs)
  intervals = rate_intervals(values, trials, confidence)
  rates = range(1, len(fprs) + 1)
  return {
    "auc": intervals[0],
    "tpr": {fpr: intervals[i] for fpr, i in zip(fprs, rates, strict=True)},
    "balanced_accuracy": None if decided is None else intervals[-1],
    "trials": {
      "auc": float(trials[0]),
      "tpr": {fpr: float(trials[i]) for fpr, i in zip(fprs, rates, strict=True)},
    },
    "pairs": pairs,
  }


def independent_pairs(
  scores: ArrayLike, members: ArrayLike, *, groups: ArrayLike | None = None
) -> int:
  """Count the pairs of a member and a non-member that have no record in common.

  However strongly the models are related, a metric uses at least this many independent
  comparisons: if each orders its two records correctly with probability AUC, all do
  with probability AUC^pairs at most.

  Args:
    scores: [N] or [S, N]; NaN pairs are excluded.
    members: bool of the same shape.
    groups: [N], the person of each record, if persons are to be counted.

  Returns:
    The smallest of three numbers: records that are a member of some target, records
    that are a non-member of some target, and half of all records.

  >>> independent_pairs([[1., 2., 3.]], [[True, False, False]])
  1
  """
  scores, members = _rows(scores, members)
  scored = ~np.isnan(scores)
  inside, outside = (scored & members).any(0), (scored & ~members).any(0)
  if groups is not None:
    units = np.unique(groups, return_inverse=True)[1]
    inside, outside = (np.bincount(units, side) > 0 for side in (inside, outside))
  return int(min(inside.sum(), outside.sum(), (inside | outside).sum() // 2))


def effective_trials(values: ArrayLike, variances: ArrayLike, pairs: int) -> np.ndarray:
  """Return how many independent trials rates are worth, given their variances.

  Independent trials give a rate p the variance p(1 - p)/n. A variance estimated from
  few records is unreliable, so it is averaged with p(1 - p)/pairs, the largest that an
  AUC can have, which has the weight of four records. Here p is moved half a trial
  towards 1/2, and the variance is at least what that adds to p(1 - p)/pairs: perfect
  separation is worth `pairs` trials, for which Clopper and Pearson's bound is exact.

  Deviation: the weight of four records is ours, chosen by simulations of the coverage.

  Args:
    values: rates [F], each in [0, 1].
    variances: [F], over resamples of records.
    pairs: the `independent_pairs`.

  Returns:
    n [F], each at least 1.

  >>> effective_trials([0.5, 1.0], [0.001, 0.0], 100).round().tolist()
  [243.0, 100.0]
  """
  values, pairs = np.asarray(values, dtype=np.float64), max(pairs, 1)
  inner = (pairs * values + 0.5) / (pairs + 1)
  spread = inner * (1 - inner)
  records = 2 * pairs
  largest = spread / pairs
  variance = (records * np.asarray(variances) + _PRIOR_RECORDS * largest) / (
    records + _PRIOR_RECORDS
  )
  variance = np.maximum(variance, (spread - values * (1 - values)) / pairs)
  return np.maximum(spread / variance, 1)


def rate_intervals(
  values: ArrayLike, trials: ArrayLike, confidence: float
) -> list[tuple[float, float]]:
  """Return Clopper and Pearson's interval of each rate, given its effective trials."""
  both = zip(np.ravel(values).tolist(), np.ravel(trials).tolist(), strict=True)
  return [clopper_pearson(rate * n, n, confidence=confidence) for rate, n in both]


def paired_bootstrap(
  first: tuple[ArrayLike, ArrayLike],
  second: tuple[ArrayLike, ArrayLike],
  *,
  fprs: Sequence[float] = (),
  groups: ArrayLike | None = None,
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Any]:
  """Compare two attacks, or one attack under two defenses, on the same records.

  Every resample draws records once and takes each with all its targets on both sides,
  so what makes a record easy or hard for both cancels in the difference. If two
  separate intervals overlap, there may still be a difference.

  Guarantee: covers the choice of records, given these models; not the training
    randomness. TPR intervals are unreliable below ten expected false positives: check
    `resolvable`.

  Args:
    first: scores [N] or [S, N], where higher means member, and member, bool of the same
      shape. A record without any score on one side is excluded on both.
    second: scores and member of the same N records in the same order, with its own S
      and membership.
    fprs: rates at which to compare the TPR.
    groups: [N], the person of each record, if persons are to be resampled.
    resamples: number of resamples.
    seed: random seed of the bootstrap.
    confidence: in (0, 1).

  Returns:
    {"auc": {"difference", "ci": (lo, hi)}, "tpr": {fpr: the same}}; every difference is
    first minus second.

  Raises:
    ValueError: if resamples < 1, a rate is out of range, the numbers of records differ,
      or no pair of one class has a score.

  Reference: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.

  >>> members = [True, True, False, False]
  >>> same = paired_bootstrap(([3., 2., 1., 0.], members), ([3., 1., 0., 0.], members))
  >>> same["auc"]
  {'difference': 0.0, 'ci': (0.0, 0.0)}
  """
  _check(resamples, fprs)
  sides = [_rows(*first), _rows(*second)]
  counts = [scores.shape[1] for scores, _ in sides]
  if counts[0] != counts[1]:
    raise ValueError(
      f"first has {counts[0]} records and second {counts[1]}; score the same records"
    )
  present = np.all([(~np.isnan(scores)).any(0) for scores, _ in sides], axis=0)
  one, other = (
    weighted_metrics(scores[:, present], members[:, present], fprs)
    for scores, members in sides
  )
  records = int(present.sum())

  def differences(weights: np.ndarray) -> np.ndarray:
    return one(weights) - other(weights)

  units = units_of(groups, present)
  blocks = draws(generator(seed), units, resamples)
  drawn = _complete(map(differences, blocks), records)
  values = differences(np.ones((1, records), dtype=int))[0].tolist()
  tail = (1 - confidence) / 2
  bounds = np.quantile(drawn, [tail, 1 - tail], axis=0).T.tolist()
  compared = [
    {"difference": difference, "ci": (low, high)}
    for difference, (low, high) in zip(values, bounds, strict=True)
  ]
  return {"auc": compared[0], "tpr": dict(zip(fprs, compared[1:], strict=True))}


def _check(resamples: int, fprs: Sequence[float]) -> None:
  if resamples < 1:
    raise ValueError(f"resamples={resamples}; pass at least 1")
  for fpr in fprs:
    check_fpr(fpr)


def _rows(scores: ArrayLike, members: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Return scores float64 and membership bool as [S, N]."""
  scores, members = validate.scored(scores, members)
  return np.atleast_2d(scores), np.atleast_2d(members)


def _complete(blocks: Iterable[np.ndarray], records: int) -> np.ndarray:
  """Return the metrics [R, F] of the resamples that have both classes."""
  drawn = np.concatenate(list(blocks))
  drawn = drawn[~np.isnan(drawn).any(1)]
  if not len(drawn):
    raise ValueError(f"no resample of {records} records has both classes")
  return drawn


def clopper_pearson(
  successes: float, trials: float, *, confidence: float = 0.95
) -> tuple[float, float]:
  """Return the exact interval of a binomial rate.

      lo = Beta^-1(a/2; k, n-k+1),   hi = Beta^-1(1-a/2; k+1, n-k),   a = 1 - confidence

  Guarantee: covers at the stated rate for independent trials. Pairs of a record with
    many targets are not independent: use `bootstrap_records` there.

  Args:
    successes: k, 0 to n; fractional for effective numbers of trials.
    trials: n, at least 1.
    confidence: in (0, 1).

  Returns:
    (lo, hi), with lo = 0 at k = 0 and hi = 1 at k = n.

  Raises:
    ValueError: if k, n or confidence is out of range.

  >>> [round(bound, 5) for bound in clopper_pearson(25, 25_000)]
  [0.00065, 0.00148]
  """
  if not 0 <= successes <= trials or trials < 1:
    raise ValueError(
      f"successes={successes}, trials={trials}; pass 0 <= k <= n, n >= 1"
    )
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}; pass a rate in (0, 1)")
  from scipy.special import betaincinv

  tail = (1 - confidence) / 2
  failures = trials - successes
  low = betaincinv(successes, failures + 1, tail) if successes else 0.0
  high = betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
  return float(low), float(high)

"""How mixup shifts the likelihood ratios of a target's records (Proposition 1).

Every record's Gaussians are fitted to undefended reference models. The same ratio is
then evaluated at the losses of an undefended target and of one trained with mixup on
the same records, so that only the loss differs.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._gaussians import fit_references
from mixdef.attacks.signals import Signals
from mixdef.contrib.mixup_theory.theory import falls_with_loss, log_likelihood_ratio
from mixdef.core import validate
from mixdef.core.randomness import generator
from mixdef.metrics.decisions import max_balanced_accuracy
from mixdef.metrics.intervals import clopper_pearson
from mixdef.metrics.roc import scored_pairs


class LossFits(NamedTuple):
  """Gaussians of the losses of T targets' references, float64 [T, N].

  Attributes:
    mean_in: mean over the models that trained on the record; NaN where there is none.
    std_in: their standard deviation, positive.
    mean_out: mean over the models that did not train on the record; NaN where there is
      none.
    std_out: their standard deviation, positive.
  """

  mean_in: np.ndarray
  std_in: np.ndarray
  mean_out: np.ndarray
  std_out: np.ndarray


def fit_losses(
  losses: ArrayLike, members: ArrayLike, *, num_targets: int, fixed: bool = False
) -> LossFits:
  """Fit every record's losses in and out, leaving out one target after another.

  The fits, their floors and their choice of references are those of
  `mixdef.attacks.lira_online`, or of `lira_online_fixed`.

  Deviation: the official code divides the spread by n models instead of n - 1, and
    fits the Gaussians of an undefended target to the target's own losses as well.

  Args:
    losses: [S, N] of undefended models, lower for members; finite.
    members: bool [S, N] of records that may be in or out.
    num_targets: T, the number of targets: the first T of the S models.
    fixed: whether to use one variance per side for all records, for few reference
      models.

  Returns:
    The fits [T, N].

  Raises:
    ValueError: if shapes disagree or T is not in 1..S.

  >>> members = np.array([[True, True, True, False, False, False]]).T
  >>> fits = fit_losses([[9.], [1.], [3.], [5.], [6.], [7.]], members, num_targets=1)
  >>> [float(values[0, 0].round(3)) for values in fits]
  [2.0, 1.414, 6.0, 1.0]
  """
  # The library's fits are of scores, for which higher means member.
  signals = Signals.from_phi(-np.asarray(losses, dtype=np.float64), members)
  if not 1 <= num_targets <= len(signals.members):
    raise ValueError(f"num_targets={num_targets}; pass 1 to {len(signals.members)}")
  rows = []
  for target in range(num_targets):
    options = {"score": "phi", "centre": "mean", "ddof": 1, "fixed": fixed}
    out = fit_references(signals, target, member=False, **options)
    inside = fit_references(signals, target, member=True, spare=out.pooled, **options)
    rows.append(
      (-inside.centre, np.sqrt(inside.variance), -out.centre, np.sqrt(out.variance))
    )
  return LossFits(*(np.stack(column)[:, :, 0] for column in zip(*rows, strict=True)))


def proposition_one(
  undefended: ArrayLike,
  mixup: ArrayLike,
  fits: LossFits,
  chosen: ArrayLike,
  *,
  resamples: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Any]:
  """Count the records whose Lambda is lower under mixup, by the cases of the proof.

  The proof requires two properties of a record, which are also counted: its loss moves
  to the right, and it starts where Lambda decreases with the loss. Where both hold,
  Lambda can still increase if the loss passes the vertex. If a second undefended target
  takes the place of the mixup one, the share is 1/2. With few references, it is mostly
  chance which of a record's standard deviations is the larger.

  Guarantee: the interval covers the choice of records, given these models; what
    training adds shows in by_target. It is Clopper-Pearson over records for one target,
    and where the share is 0 or 1; else records are resampled with all their targets.

  Args:
    undefended: losses [T, N] of the targets trained without mixup.
    mixup: losses [T, N] of the targets trained with mixup on the same records.
    fits: fits of the undefended references, [T, N]; pairs with a NaN are excluded.
    chosen: bool [T, N], the pairs to count: the members, or for contrast the others.
      Only a decrease beyond that of the non-members is protection.
    resamples: number of resamples, at least 1.
    seed: random seed of the resampling.
    confidence: in (0, 1).

  Returns:
    pairs, share (of pairs whose Lambda decreases), ci [lo, hi], shifted_right and
    falling_branch (shares), by_target (the share in each target), and cases: the same
    metrics without by_target for each sign of s_in^2 - s_out^2. None where no pair
    falls in the case.

  Raises:
    ValueError: if shapes disagree, a loss is not finite, or resamples < 1.
  """
  undefended, mixup = _losses(undefended, "undefended"), _losses(mixup, "mixup")
  if undefended.shape != mixup.shape or undefended.shape != fits.mean_in.shape:
    raise ValueError(
      f"undefended has shape {undefended.shape}, mixup {mixup.shape}, the fits"
      f" {fits.mean_in.shape}; pass [T, N] for all"
    )
  if resamples < 1:
    raise ValueError(f"resamples={resamples}; pass at least 1")
  change = log_likelihood_ratio(mixup, *fits) - log_likelihood_ratio(undefended, *fits)
  chosen = validate.mask(chosen, change.shape, "chosen") & ~np.isnan(change)
  marks = {
    "share": change < 0,
    "shifted_right": mixup > undefended,
    "falling_branch": falls_with_loss(undefended, *fits),
  }
  cases = {
    "std_in < std_out": fits.std_in < fits.std_out,
    "std_in = std_out": fits.std_in == fits.std_out,
    "std_in > std_out": fits.std_in > fits.std_out,
  }

  def count(pairs: np.ndarray) -> dict[str, Any]:
    number = int(pairs.sum())
    found: dict[str, Any] = {"pairs": number, "ci": None}
    for name, mark in marks.items():
      found[name] = float(mark[pairs].mean()) if number else None
    if number:
      rng = generator(seed)
      found["ci"] = _interval(marks["share"], pairs, rng, resamples, confidence)
    return found

  return count(chosen) | {
    "by_target": [
      float(fell[pairs].mean()) if pairs.any() else None
      for fell, pairs in zip(marks["share"], chosen, strict=True)
    ],
    "cases": {name: count(chosen & case) for name, case in cases.items()},
  }


def _losses(values: ArrayLike, name: str) -> np.ndarray:
  values = np.asarray(values, dtype=np.float64)
  if values.ndim != 2 or not np.isfinite(values).all():
    raise ValueError(
      f"{name} losses have shape {values.shape}; pass finite losses [T, N], and drop"
      " the models that diverged"
    )
  return values


def _interval(
  hit: np.ndarray,
  pairs: np.ndarray,
  rng: np.random.Generator,
  resamples: int,
  confidence: float,
) -> list[float]:
  """Return an interval of the share of hits among pairs [T, N], by record clusters."""
  hits, trials = (hit & pairs).sum(0), pairs.sum(0)
  hits, trials = hits[trials > 0], trials[trials > 0]
  records = len(trials)
  # A resample of equal outcomes has no variance, which does not mean certainty.
  if trials.max() == 1 or hits.sum() in (0, trials.sum()):
    return list(clopper_pearson(int((hits > 0).sum()), records, confidence=confidence))
  shares = []
  for _ in range(resamples):
    drawn = rng.integers(0, records, records)
    shares.append(hits[drawn].sum() / trials[drawn].sum())
  tail = (1 - confidence) / 2
  return np.quantile(shares, [tail, 1 - tail]).tolist()


def estimate_total_variation(
  scores: ArrayLike,
  member: ArrayLike,
  *,
  bins: int = 20,
  permutations: int = 200,
  seed: int = 0,
) -> dict[str, float]:
  """Estimate the total variation between the scores of members and of non-members.

  Two estimates are returned: half the L1 distance of histograms, and max(TPR - FPR)
  over thresholds, which converges to TV if the score increases with the true likelihood
  ratio and to less otherwise. Both are above 0 for samples of one distribution; a
  histogram of k bins by

      sqrt(k/(2 pi)) sqrt(1/n_in + 1/n_out)

  The null is the histogram estimate when membership is permuted within each target.
  Bins hold equal fractions of all scores, so that an increasing map of the scores
  changes nothing, as for TV itself. Differences inside a bin are not detected.

  Args:
    scores: [N] or [T, N]; higher means member. NaN pairs are excluded.
    member: bool of the same shape.
    bins: number of bins, at least 2.
    permutations: number of permutations, at least 1.
    seed: random seed of the permutations.

  Returns:
    histogram: the estimate; null_mean, null_95: mean and 95% quantile of its null;
    threshold: max(TPR - FPR).

  Raises:
    ValueError: if an option is out of range, or a class has no score.

  >>> found = estimate_total_variation([1., 2., 3., 4.], [False, True, True, False])
  >>> found["histogram"], found["threshold"]
  (1.0, 0.5)
  """
  for name, value, least in (("bins", bins, 2), ("permutations", permutations, 1)):
    if value < least:
      raise ValueError(f"{name}={value}; pass at least {least}")
  scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
  member = validate.mask(np.atleast_2d(member), scores.shape, "member")
  values, truth = scored_pairs(scores, member)
  shares = np.arange(1, bins) / bins
  inner = np.unique(np.quantile(values, shares, method="inverted_cdf"))
  place = np.searchsorted(inner, values, side="right")
  everyone = np.bincount(place)

  def distance(inside: np.ndarray) -> float:
    members = np.bincount(place[inside], minlength=len(everyone))
    others = everyone - members
    gaps = np.abs(members / members.sum() - others / others.sum())
    return min(1.0, float(gaps.sum() / 2))  # shares add up to 1 up to rounding

  rng = generator(seed)
  shuffled = truth.copy()
  targets = np.split(shuffled, np.cumsum((~np.isnan(scores)).sum(1))[:-1])
  null = []
  for _ in range(permutations):
    for rows in targets:  # views: each target keeps its number of members
      rng.shuffle(rows)
    null.append(distance(shuffled))
  return {
    "histogram": distance(truth),
    "null_mean": float(np.mean(null)),
    "null_95": float(np.quantile(null, 0.95)),
    "threshold": 2 * max_balanced_accuracy(values, truth) - 1,
  }

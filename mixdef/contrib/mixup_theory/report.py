"""Compare the theory of mixup with measured losses: a report and its plot."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks.lira import lira_coverage
from mixdef.attacks.signals import Signals
from mixdef.contrib.mixup_theory import theory
from mixdef.contrib.mixup_theory.ratio_shift import (
  LossFits,
  estimate_total_variation,
  fit_losses,
  proposition_one,
)
from mixdef.metrics.intervals import bootstrap_records
from mixdef.metrics.roc import auc, excluded, scored_pairs

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 60


def theory_report(
  undefended: ArrayLike,
  members: ArrayLike,
  mixup: ArrayLike,
  *,
  fixed: bool = False,
  resamples: int = 1000,
  permutations: int = 200,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Any]:
  """Compare Lambda before and after mixup, and every bound with the measured AUC.

  Pairs of mixup targets and records are pooled. `total_variation` and `auc_bound` have
  an entry for each estimate of the distance of Q_m and Q_n, the distributions of log
  Lambda:

    gaussian, sqrt2_hellinger: of Gaussians with their means and standard deviations, as
      in the proof. With few references, a handful of pairs dominates these.
    quartile_gaussian: of Gaussians with their medians and quartiles.
    histogram, threshold: without Gaussians, see `estimate_total_variation`.

  Guarantee: the measured AUC never exceeds the bound of "threshold". The others bound
    it as far as their approximation holds.

  Args:
    undefended: losses [S, N] of models without mixup, lower for members. All are
      references, and the first T are also the targets before mixup. They need as many
      fakes as `mixup`.
    members: bool [S, N], True where the model trained on the record.
    mixup: losses [T, N] or [N] of targets with mixup; t trained on members[t].
    fixed: see `fit_losses`.
    resamples: number of resamples of the intervals.
    permutations: number of permutations of the null of the total variation.
    seed: random seed of both.
    confidence: confidence of the intervals, in (0, 1).

  Returns:
    A dict of plain values:
    targets, records, excluded: numbers of targets, of records, and of pairs that lack
      references;
    coverage: `lira_coverage`, summed over the targets;
    mean_fit: the average of the records' fits, and vertex, total_variation, auc_bound
      and auc of two such Gaussians. This is not a prediction: the records' own fits are
      more informative;
    proposition_1: `proposition_one` of members and of nonmembers;
    natural, mixup: mean, std and quantiles of log Lambda of members and of nonmembers,
      total_variation, auc_bound, auc and auc_ci.

  Raises:
    ValueError: if shapes disagree, a loss is not finite, or half of a class has one
      ratio.
  """
  fits, losses, member = _targets(undefended, members, mixup, fixed)
  signals = Signals.from_phi(-np.asarray(undefended, dtype=np.float64), members)
  coverage = [lira_coverage(signals, target=t) for t in range(len(member))]
  draws = {"resamples": resamples, "seed": seed, "confidence": confidence}
  sides = {"members": member, "nonmembers": ~member}
  return {
    "targets": len(member),
    "records": member.shape[1],
    "excluded": excluded(fits.mean_in + fits.mean_out),
    "coverage": {name: sum(row[name] for row in coverage) for name in coverage[0]},
    "mean_fit": _mean_fit(fits),
    "proposition_1": {
      name: proposition_one(losses["natural"], losses["mixup"], fits, side, **draws)
      for name, side in sides.items()
    },
  } | {
    name: _summary(
      theory.log_likelihood_ratio(loss, *fits), member, permutations, draws
    )
    for name, loss in losses.items()
  }


def _targets(
  undefended: ArrayLike, members: ArrayLike, mixup: ArrayLike, fixed: bool
) -> tuple[LossFits, dict[str, np.ndarray], np.ndarray]:
  """Return the fits, the losses of both kinds of target and the members, all [T, N]."""
  undefended = np.asarray(undefended, dtype=np.float64)
  mixup = np.atleast_2d(np.asarray(mixup, dtype=np.float64))
  if undefended.ndim != 2 or mixup.shape[1:] != undefended.shape[1:]:
    raise ValueError(
      f"undefended losses have shape {undefended.shape}, mixup {mixup.shape}; pass"
      " [S, N] and [T, N] of the same records"
    )
  fits = fit_losses(undefended, members, num_targets=len(mixup), fixed=fixed)
  losses = {"natural": undefended[: len(mixup)], "mixup": mixup}
  return fits, losses, np.asarray(members)[: len(mixup)]


def _mean_fit(fits: LossFits) -> dict[str, Any]:
  """Apply the closed forms to the averages of the records' fits."""
  fitted = ~np.isnan(fits.mean_in + fits.mean_out)
  m1, s1, m0, s0 = mean = [float(values[fitted].mean()) for values in fits]
  turn = float(theory.vertex(*mean))
  return dict(zip(LossFits._fields, mean, strict=True)) | {
    "vertex": turn if np.isfinite(turn) else None,
    **_bounds(
      {
        "gaussian": float(theory.total_variation(*mean)),
        "sqrt2_hellinger": float(theory.total_variation_bound(*mean)),
      }
    ),
    "auc": float(theory.gaussian_auc(-m1, s1, -m0, s0)),
  }


def _summary(
  ratio: np.ndarray, member: np.ndarray, permutations: int, draws: dict[str, Any]
) -> dict[str, Any]:
  """Describe log Lambda [T, N] of one kind of target."""
  values, truth = scored_pairs(ratio, member)
  sides = {"members": values[truth], "nonmembers": values[~truth]}
  for name, side in sides.items():
    if np.ptp(np.quantile(side, [0.25, 0.75])) == 0:
      raise ValueError(
        f"half of the {len(side)} {name} have one log Lambda: score more records"
      )
  moments = [figure for side in sides.values() for figure in (side.mean(), side.std())]
  distances = {
    "gaussian": float(theory.total_variation(*moments)),
    "sqrt2_hellinger": float(theory.total_variation_bound(*moments)),
    "quartile_gaussian": float(theory.total_variation(*_by_quartiles(sides))),
    **estimate_total_variation(
      ratio, member, permutations=permutations, seed=draws["seed"]
    ),
  }
  return {
    name: {
      "mean": float(side.mean()),
      "std": float(side.std()),
      "quantiles": {str(q): float(np.quantile(side, q)) for q in _QUANTILES},
    }
    for name, side in sides.items()
  } | {
    **_bounds(distances),
    "auc": auc(values, truth),
    "auc_ci": list(bootstrap_records(ratio, member, **draws)["auc"]),
  }


def _by_quartiles(sides: dict[str, np.ndarray]) -> list[float]:
  """Return mean and standard deviation of Gaussians with each side's quartiles."""
  from scipy.special import ndtri

  found = []
  for side in sides.values():
    low, middle, high = np.quantile(side, [0.25, 0.5, 0.75])
    found += [float(middle), float((high - low) / (2 * ndtri(0.75)))]
  return found


def _bounds(distances: dict[str, float]) -> dict[str, dict[str, float]]:
  """Return the distances, and the bound of the AUC that follows from each."""
  return {
    "total_variation": distances,
    "auc_bound": {
      name: float(theory.auc_bound(distance))
      for name, distance in distances.items()
      if not name.startswith("null")
    },
  }

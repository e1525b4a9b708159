"""Attack rates at thresholds that are calibrated on shadow models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics import roc


def calibrated_rates(
  scores: ArrayLike, members: ArrayLike, fprs: Sequence[float]
) -> dict[float, dict[str, float]]:
  """Return the rates at thresholds set for an FPR on models of known membership.

  Each target is classified with the thresholds of its pseudo-targets, models whose
  membership the attacker knows; here these are all the others. A threshold is the
  lowest score whose empirical FPR on the pseudo-target is at most the requested one.
  The rates are averaged over pseudo-targets, then over targets. In contrast,
  `tpr_at_fpr` picks the threshold on the target itself: it describes the ROC and cannot
  miss its FPR.

  Guarantee: a target's own labels do not set its threshold. In leave-one-out scores
    they reach it weakly, for the target is a reference of its pseudo-targets.

  Args:
    scores: [S, N] of S >= 2 targets; higher means member. NaN is excluded, and so is a
      target without a scored member or without a scored non-member.
    members: bool [S, N].
    fprs: requested rates, each in [0, 1].

  Returns:
    A dictionary by FPR: {"tpr", "fpr": realized means over targets, "fpr_spread":
    standard deviation (ddof 1) of the realized FPR between targets}.

  Raises:
    ValueError: if fewer than two targets have both classes, or an FPR is out of range.

  >>> rates = calibrated_rates(
  ...   [[1., 2., 3., 4.], [2., 3., 4., 5.]], [[False, False, True, True]] * 2, [0.])
  >>> rates[0.]["tpr"], rates[0.]["fpr"], round(rates[0.]["fpr_spread"], 3)
  (0.75, 0.25, 0.354)
  """
  for fpr in fprs:
    roc.check_fpr(fpr)
  scores, members = validate.scored(scores, members)
  targets = [
    roc.scored_pairs(scores[s], members[s]) for s in roc.pseudo_targets(scores, members)
  ]
  thresholds = np.array([_thresholds(*target, fprs) for target in targets])
  tpr, realised = np.array(
    [
      _rates(*target, np.delete(thresholds, s, axis=0))
      for s, target in enumerate(targets)
    ]
  ).transpose(1, 2, 0)
  return {
    fpr: {
      "tpr": float(tpr[i].mean()),
      "fpr": float(realised[i].mean()),
      "fpr_spread": float(realised[i].std(ddof=1)),
    }
    for i, fpr in enumerate(fprs)
  }


def _thresholds(
  scores: np.ndarray, members: np.ndarray, fprs: Sequence[float]
) -> np.ndarray:
  """Return the lowest observed scores [F] with at most these FPRs, or +inf if none."""
  curve = roc.Roc.of(scores, members)
  allowed = np.searchsorted(curve.fp / curve.fp[-1], fprs, side="right")
  return np.append(np.inf, curve.threshold)[allowed]


def _rates(
  scores: np.ndarray, members: np.ndarray, thresholds: np.ndarray
) -> list[np.ndarray]:
  """Return TPRs and FPRs [F] of one target, averaged over thresholds [S-1, F]."""
  return [
    1 - np.searchsorted(np.sort(part), thresholds).mean(axis=0) / len(part)
    for part in (scores[members], scores[~members])
  ]

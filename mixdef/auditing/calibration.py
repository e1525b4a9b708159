"""What an attacker reaches with thresholds learned on shadow models."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import ranking
from mixdef.auditing.figures import scored_pairs


def calibrated_rates(
  scores: ArrayLike,
  member: ArrayLike,
  fpr: float,
  *,
  pseudo_targets: int | None = None,
) -> dict[str, float]:
  """Return the rates an attacker realises who aims at an FPR without the truth.

  Each target is decided by the thresholds of pseudo-targets, models whose membership
  the attacker knows: the lowest score whose empirical FPR there is at most `fpr`. The
  rates are averaged over pseudo-targets, then over targets. `tpr_at_fpr` picks the
  threshold on the target itself: it describes the ROC and cannot miss its FPR.

  Guarantee: a target's own labels do not set its threshold. In leave-one-out scores
    they reach it weakly, for the target is a reference of its pseudo-targets.

  Args:
    scores: [S, N] of S >= 2 targets, larger = member. NaN is left out.
    member: bool [S, N].
    fpr: wanted, in [0, 1].
    pseudo_targets: how many of the next models, (s + 1) mod S onwards, to use; default
      all S - 1 others.

  Returns:
    {"tpr", "fpr": realised means over targets, "fpr_spread": standard deviation (ddof
    1) of the realised FPR between targets}.

  Raises:
    ValueError: if there are not two targets, a target has one class only, or a number
      is out of range.

  >>> rates = calibrated_rates(
  ...   [[1., 2., 3., 4.], [2., 3., 4., 5.]], [[False, False, True, True]] * 2, 0.)
  >>> rates["tpr"], rates["fpr"], round(rates["fpr_spread"], 3)
  (0.75, 0.25, 0.354)
  """
  scores, member = np.asarray(scores, dtype=np.float64), np.asarray(member)
  if scores.ndim != 2 or len(scores) < 2:
    raise ValueError(
      f"scores have shape {scores.shape}; calibration needs [S, N], S >= 2"
    )
  if not 0 <= fpr <= 1:
    raise ValueError(f"fpr={fpr}; pass a rate in [0, 1], not a percentage")
  others = len(scores) - 1
  if pseudo_targets is not None and not 1 <= pseudo_targets <= others:
    raise ValueError(f"pseudo_targets={pseudo_targets}; pass 1 to {others}, or None")
  targets = [scored_pairs(*row) for row in zip(scores, member, strict=True)]
  thresholds = np.array([_threshold(*target, fpr) for target in targets])
  offsets = np.arange(1, (pseudo_targets or others) + 1)
  tpr, fprs = np.array(
    [
      _rates(*target, thresholds[(s + offsets) % len(targets)])
      for s, target in enumerate(targets)
    ]
  ).T
  return {
    "tpr": float(tpr.mean()),
    "fpr": float(fprs.mean()),
    "fpr_spread": float(fprs.std(ddof=1)),
  }


def _threshold(scores: np.ndarray, member: np.ndarray, fpr: float) -> float:
  """Return the lowest observed score with an FPR of at most `fpr`, +inf if none."""
  curve = ranking.roc(scores, member)
  allowed = curve.threshold[curve.fp / curve.fp[-1] <= fpr]
  return float(allowed[-1]) if len(allowed) else np.inf


def _rates(
  scores: np.ndarray, member: np.ndarray, thresholds: np.ndarray
) -> list[float]:
  """Return the TPR and the FPR of one target, averaged over thresholds."""
  return [
    float(1 - np.searchsorted(np.sort(part), thresholds).mean() / len(part))
    for part in (scores[member], scores[~member])
  ]

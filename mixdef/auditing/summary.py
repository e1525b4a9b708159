"""One dictionary of figures per attack, the layout of every result file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.auditing import figures
from mixdef.auditing.intervals import bootstrap_records
from mixdef.data import validate


def summarize(
  scores: ArrayLike,
  keep: ArrayLike,
  audited: ArrayLike | None = None,
  *,
  fprs: Sequence[float] = figures.FPR_GRID,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Summarise one attack's scores on one target or on many.

  Intervals are 95 %. With one target, a record is one independent trial and the TPR has
  its Clopper-Pearson interval, at the threshold that the FPR picked. With several,
  pairs of a record are dependent, Clopper-Pearson would be too short, and records are
  resampled with all their targets. The AUC's interval resamples records in both cases.

  Args:
    scores: [N] or [S, N], larger = member; NaN is excluded and counted.
    keep: bool of the same shape, True = member.
    audited: bool [N]; the others are dropped and not counted. Default all.
    fprs: false-positive rates, default 0.1, 0.2, 0.5, 1, 2 and 5 %.
    resamples: number of bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    A dictionary of plain numbers, ready for JSON:
      auc, auc_ci [lo, hi];
      balanced_accuracy, balanced_accuracy_ci [lo, hi]: at shadow-calibrated thresholds,
        which the resampling holds fixed; None for one target;
      balanced_accuracy_max: at the best threshold in hindsight;
      tpr: by FPR as text ("0.001"): value, ci [lo, hi], resolvable (ten expected
        false positives or more), n_nonmembers, and interval, "clopper_pearson" or
        "bootstrap_records";
      num_members, num_nonmembers: scored pairs;
      excluded: audited pairs whose score is NaN.

  Raises:
    ValueError: if shapes differ or one class has no score.

  >>> summary = summarize([3., 2., 1., 0.], np.array([True, True, False, False]))
  >>> summary["auc"], summary["tpr"]["0.05"]["value"]
  (1.0, 1.0)
  >>> summary["tpr"]["0.05"]["resolvable"], summary["num_members"]
  (False, 2)
  """
  scores = np.asarray(scores, dtype=np.float64)
  if scores.ndim not in (1, 2):
    raise ValueError(f"scores have shape {scores.shape}; pass [N] or [S, N]")
  keep = validate.mask(keep, scores.shape, "keep")
  if audited is not None:
    audited = validate.mask(audited, scores.shape[-1:], "audited")
    scores, keep = scores[..., audited], keep[..., audited]
  pooled = scores.ndim == 2 and len(scores) > 1
  _, member = figures.scored_pairs(scores, keep)
  members = int(member.sum())
  nonmembers = len(member) - members
  threshold = figures.shadow_thresholds(scores, keep) if pooled else None
  bounds = bootstrap_records(
    scores,
    keep,
    fprs=fprs if pooled else (),
    threshold=threshold,
    resamples=resamples,
    seed=seed,
  )
  tpr = {}
  for fpr in fprs:
    value = figures.tpr_at_fpr(scores, keep, fpr)
    if pooled:
      interval = bounds["tpr"][fpr]
    else:
      interval = figures.clopper_pearson(round(value * members), members)
    tpr[f"{fpr:g}"] = {
      "value": value,
      "ci": list(interval),
      "resolvable": figures.resolvable(nonmembers, fpr),
      "n_nonmembers": nonmembers,
      "interval": "bootstrap_records" if pooled else "clopper_pearson",
    }
  return {
    "auc": figures.auc(scores, keep),
    "auc_ci": list(bounds["auc"]),
    "balanced_accuracy": (
      figures.balanced_accuracy(scores, keep, threshold=threshold) if pooled else None
    ),
    "balanced_accuracy_ci": list(bounds["balanced_accuracy"]) if pooled else None,
    "balanced_accuracy_max": figures.max_balanced_accuracy(scores, keep),
    "tpr": tpr,
    "num_members": members,
    "num_nonmembers": nonmembers,
    "excluded": figures.excluded(scores),
  }

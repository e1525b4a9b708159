"""The metrics of one attack, in the layout of every result file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics import decisions, roc
from mixdef.metrics.calibration import calibrated_rates
from mixdef.metrics.intervals import bootstrap_records

PRIORS = (0.01, 0.1, 0.5)
"""Fractions of members among the queried records at which to report the PPV."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """The metrics of one attack.

  Intervals are [low, high] at 95%. FPRs and priors are keys as text, such as "0.001".
  Metrics at thresholds set on other models are None for one target, and if fewer than
  two targets have both members and non-members.

  Attributes:
    auc: area under the ROC curve.
    auc_ci: its interval.
    auc_trials: the number of independent trials that the AUC is worth, for which
      `auc_ci` is Clopper and Pearson's interval.
    pairs: the number of pairs of a member and a non-member without a record in common.
    balanced_accuracy: at thresholds set on other models, which the resampling holds
      fixed; or None.
    balanced_accuracy_ci: its interval, or None.
    balanced_accuracy_max: at the best threshold in hindsight.
    positive_rate: fraction classified as member at thresholds set on other models, or
      None.
    degenerate: whether that is all or none of them, or None.
    tpr: by FPR: value, ci, trials as for the AUC, resolvable (ten expected false
      positives or more), n_nonmembers, and interval, "bootstrap_records".
    ppv_fpr: the lowest resolvable FPR, otherwise the highest FPR.
    ppv: by prior ("0.01", "0.1", "0.5"), the fraction of the records classified as
      members that are members, at `ppv_fpr` and the TPR there. None if no record is
      classified as a member, because no score has so low an FPR.
    calibrated: by FPR, the rates at thresholds set on other models for that FPR: tpr,
      fpr and fpr_spread, the standard deviation over targets; or None.
    num_members: scored pairs of a model and a member.
    num_nonmembers: scored pairs of a model and a non-member.
    excluded: audited pairs whose score is NaN.
  """

  auc: float
  auc_ci: list[float]
  auc_trials: float
  pairs: int
  balanced_accuracy: float | None
  balanced_accuracy_ci: list[float] | None
  balanced_accuracy_max: float
  positive_rate: float | None
  degenerate: bool | None
  tpr: dict[str, dict[str, Any]]
  ppv_fpr: float
  ppv: dict[str, float | None]
  calibrated: dict[str, dict[str, float]] | None
  num_members: int
  num_nonmembers: int
  excluded: int

  def to_json(self) -> dict[str, Any]:
    """Return the metrics as a dictionary of plain numbers."""
    return dataclasses.asdict(self)


def summarize(
  scores: ArrayLike,
  members: ArrayLike,
  audited: ArrayLike | None = None,
  *,
  fprs: Sequence[float] = roc.FPR_GRID,
  groups: ArrayLike | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> Summary:
  """Summarize one attack's scores on one target or on many.

  Intervals are 95% and resample records, each with all its targets, so they account
  for the dependence of a record's pairs and for the choice of the threshold at an FPR;
  see `bootstrap_records` for the effect of few records. With groups they resample
  persons, each with all its records.

  Args:
    scores: [N] or [S, N]; higher means member. NaN is excluded and counted.
    members: bool of the same shape, True = member.
    audited: bool [N]; the others are dropped and not counted. Default all.
    fprs: false-positive rates, default 0.1, 0.2, 0.5, 1, 2 and 5%.
    groups: integers or text [N], the person of each record; default none.
    resamples: number of bootstrap resamples.
    seed: random seed of the bootstrap.

  Returns:
    The `Summary`.

  Raises:
    ValueError: if shapes differ or one class has no score.

  >>> summary = summarize([3., 2., 1., 0.], [True, True, False, False])
  >>> summary.auc, summary.tpr["0.05"]["value"]
  (1.0, 1.0)
  >>> summary.tpr["0.05"]["resolvable"], summary.num_members
  (False, 2)
  """
  scores, members = validate.scored(scores, members, "members")
  if audited is not None:
    audited = validate.mask(audited, scores.shape[-1:], "audited")
    scores, members = scores[..., audited], members[..., audited]
    groups = None if groups is None else np.asarray(groups)[audited]
  curve = roc.Roc.of(scores, members)
  num_members, nonmembers = int(curve.tp[-1]), int(curve.fp[-1])
  calibrated = called = threshold = None
  if len(roc.complete_targets(scores, members)) > 1:
    threshold = decisions.shadow_thresholds(scores, members)
    called = decisions.positive_rate(scores, members, threshold=threshold)
    rates = calibrated_rates(scores, members, fprs)
    calibrated = {f"{fpr:g}": rates[fpr] for fpr in fprs}
  bounds = bootstrap_records(
    scores,
    members,
    fprs=fprs,
    threshold=threshold,
    groups=groups,
    resamples=resamples,
    seed=seed,
    curve=curve,
  )
  tpr = {}
  for fpr in fprs:
    value = curve.tpr_at(fpr)
    tpr[f"{fpr:g}"] = {
      "value": value,
      "ci": list(bounds["tpr"][fpr]),
      "trials": bounds["trials"]["tpr"][fpr],
      "resolvable": roc.resolvable(nonmembers, fpr),
      "n_nonmembers": nonmembers,
      "interval": "bootstrap_records",
    }
  fpr = next((f for f in sorted(fprs) if tpr[f"{f:g}"]["resolvable"]), max(fprs))
  rate = curve.tpr_at(fpr)
  anyone = curve.fp[0] / nonmembers <= fpr  # otherwise the only threshold is +inf
  return Summary(
    auc=curve.auc,
    auc_ci=list(bounds["auc"]),
    auc_trials=bounds["trials"]["auc"],
    pairs=bounds["pairs"],
    balanced_accuracy=(
      None
      if threshold is None
      else decisions.balanced_accuracy(scores, members, threshold=threshold)
    ),
    balanced_accuracy_ci=(
      None if threshold is None else list(bounds["balanced_accuracy"])
    ),
    balanced_accuracy_max=curve.max_balanced_accuracy,
    positive_rate=called,
    degenerate=None if called is None else called in (0.0, 1.0),
    tpr=tpr,
    ppv_fpr=fpr,
    ppv={f"{p:g}": decisions.ppv(rate, fpr, p) if anyone else None for p in PRIORS},
    calibrated=calibrated,
    num_members=num_members,
    num_nonmembers=nonmembers,
    excluded=roc.excluded(scores),
  )


def strongest_first(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Return the names of attacks by decreasing AUC.

  Args:
    summaries: results of `summarize`, by the name of the attack.

  >>> strongest_first({"gap": {"auc": 0.6}, "rmia": {"auc": 0.8}})
  ['rmia', 'gap']
  """
  return sorted(summaries, key=lambda name: -(summaries[name]["auc"] or 0))

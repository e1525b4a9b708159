"""Compare the audited models with DP-SGD of matched accuracy on the same records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mixdef.metrics.intervals import paired_bootstrap
from mixdef.metrics.summary import strongest_first


class Attacked(NamedTuple):
  """Results of the attacks on one set of models.

  Attributes:
    metrics: metrics by attack.
    scores: [S, N] of records or persons by attack; higher means member, NaN means no
      score.
    members: bool [S, N], True = member.
  """

  metrics: Mapping[str, Mapping[str, Any]]
  scores: Mapping[str, np.ndarray]
  members: np.ndarray


def paired_differences(
  audited: Attacked,
  canaries: Mapping[str, Any] | None,
  dp_baseline: Mapping[str, Any],
  *,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Compare the audited models with the baseline on each kind of record.

  Args:
    audited: the audited models, on the audited records.
    canaries: result of `attack_canaries` on them, or None.
    dp_baseline: result of `attack_dp_baseline`.
    seed: random seed of the resampling.

  Returns:
    The results of `paired_difference` on the audited records and, if both sides have
    them, on canaries. Entries of an earlier report, which lack scores, are skipped.

  Raises:
    ValueError: if the two sides were not attacked on the same records.
  """
  both: list[tuple[str, Attacked | None, Attacked | None]] = [
    ("audited", audited, _attacked(dp_baseline))
  ]
  if canaries:
    theirs = _attacked(dp_baseline.get("canaries"))
    both.append((canaries["kind"], _attacked(canaries), theirs))
  found = [
    paired_difference(records, ours, theirs, seed=seed)
    for records, ours, theirs in both
    if ours and theirs
  ]
  return [row for row in found if row]


def without_scores(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Return the entry of canaries or of a baseline without the scores of records."""
  if found is None:
    return None
  kept = {
    key: value for key, value in found.items() if key not in ("scores", "members")
  }
  if kept.get("canaries"):
    kept["canaries"] = without_scores(kept["canaries"])
  return kept


def _attacked(found: Mapping[str, Any] | None) -> Attacked | None:
  if not found or "scores" not in found:
    return None
  return Attacked(found["attacks"], found["scores"], found["members"])


def paired_difference(
  records: str, audited: Attacked, baseline: Attacked, *, seed: int = 0
) -> dict[str, Any] | None:
  """Compare the strongest attack on either side, on the same records.

  On each side, the attack with the largest AUC is used, among those that were run on
  both sides. The interval is widened for that choice (Bonferroni over the attacks).

  Args:
    records: the kind of records, for the report: "audited" or a kind of canary.
    audited: the audited models.
    baseline: models of the baseline, on the same N records in the same order.
    seed: random seed of the resampling.

  Returns:
    {"records", "attack", "auc", "dp_attack", "dp_auc", "difference", "ci"}, where the
    difference is audited minus baseline; None if no attack was run on both.

  Raises:
    ValueError: if the numbers of records differ.
  """
  shared = [name for name in audited.metrics if name in baseline.metrics]
  if not shared:
    return None
  ours, theirs = (
    strongest_first({name: side.metrics[name] for name in shared})[0]
    for side in (audited, baseline)
  )
  found = paired_bootstrap(
    (audited.scores[ours], audited.members),
    (baseline.scores[theirs], baseline.members),
    seed=seed,
    confidence=1 - 0.05 / len(shared),
  )["auc"]
  return {
    "records": records,
    "attack": ours,
    "auc": audited.metrics[ours]["auc"],
    "dp_attack": theirs,
    "dp_auc": baseline.metrics[theirs]["auc"],
    "difference": found["difference"],
    "ci": list(found["ci"]),
  }


def sentence(
  row: Mapping[str, Any], baseline: Mapping[str, Any], unit: str = "record"
) -> str:
  """Say in one sentence which side leaks less, or that it is undecided.

  Args:
    row: result of `paired_difference`.
    baseline: `dp_baseline` of the report, with the accuracies of both.
    unit: what was attacked, "record" or "person".

  >>> row = {"records": "audited", "auc": 0.606, "dp_auc": 0.822, "difference": -0.216}
  >>> reached = {"test_accuracy": 0.9, "defense_test_accuracy": 0.91, "matched": True}
  >>> sentence(row | {"ci": [-0.25, -0.18]}, reached).split(" than ")[0]
  'On the audited records, this model leaks less'
  """
  low, high = row["ci"]
  name = "DP-SGD (differentially private training)"
  kind = "of matched accuracy" if baseline.get("matched", True) else "of lower accuracy"
  where = (
    f"On the audited {unit}s"
    if row["records"] == "audited"
    else f"On {row['records']} canaries"
  )
  if low > 0:
    found = f"this model leaks more than {name} {kind}"
  elif high < 0:
    found = f"this model leaks less than {name} {kind}"
  else:
    found = f"it is inconclusive whether this model leaks more than {name} {kind}"
  return (
    f"{where}, {found}: AUC {row['auc']:.3f} against {row['dp_auc']:.3f}, difference "
    f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}] on the same {unit}s; test "
    f"accuracy {baseline['defense_test_accuracy']:.3f} against "
    f"{baseline['test_accuracy']:.3f}."
  )

"""Compare saved audits: a row of metrics for each, and paired differences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdef.auditing.saved import read_report
from mixdef.core.files import path_of
from mixdef.core.reading import read_npz
from mixdef.metrics.intervals import paired_bootstrap

COLUMNS = (
  "audit",
  "defense",
  "unit",
  "accuracy",
  "accuracy_std",
  "epsilon",
  "attack",
  "auc",
  "auc_low",
  "auc_high",
  "fpr",
  "tpr",
)
"""Keys of `comparison_row`, in the order of a table."""


class Comparison(NamedTuple):
  """Audits side by side.

  Attributes:
    rows: results of `comparison_row`, one per audit.
    differences: AUC of the first audit minus that of another, by the first one's
      strongest attack: {"first", "second", "attack", "auc_difference", "ci"}. Audits of
      other records or persons, or without that attack, have no entry.
    reports: the reports, by name.
  """

  rows: list[dict[str, Any]]
  differences: list[dict[str, Any]]
  reports: dict[str, dict[str, Any]]


def compare_audits(
  folders: Mapping[str, str | pathlib.Path], *, seed: int = 0
) -> Comparison:
  """Compare the first of several audits with each of the others.

  Audits of the same records, or persons, are compared by a paired bootstrap over them.

  Args:
    folders: run folders with report.json and scores.npz, by the name of the audit.
    seed: random seed of the bootstrap.

  Raises:
    FileNotFoundError: a folder holds no report or no scores.
    ValueError: a report or its scores are damaged, or only some are of persons.
  """
  reports = {name: read_report(folder) for name, folder in folders.items()}
  _refuse_other_units(reports)
  scores = {name: read_audit_scores(folder) for name, folder in folders.items()}
  first, *others = reports
  attack = reports[first]["strongest"]["attack"]
  differences = [
    _difference(scores, first, other, attack, seed)
    for other in others
    if _comparable(scores[first], scores[other], attack)
  ]
  rows = [comparison_row(name, report) for name, report in reports.items()]
  return Comparison(rows, differences, reports)


def read_audit_scores(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Read the scores.npz of an audit.

  Args:
    folder: the run folder.

  Returns:
    Scores [S,N] of records or persons by attack, the membership matrix `keep` [S,N],
    ids and labels.

  Raises:
    FileNotFoundError: the file is missing.
    ValueError: the file is damaged.
  """
  path, fix = path_of(folder) / "scores.npz", "run mixdef audit there again"
  arrays = read_npz(path, fix=fix)
  members = arrays.get("keep")
  if members is None or members.dtype != bool or members.ndim != 2:
    raise ValueError(f"{path} has no keep, bool [S,N]; {fix}")
  for name, array in arrays.items():
    if array.dtype.kind == "f" and array.shape != members.shape:
      raise ValueError(f"{path}: the shape of {name} is not that of keep; {fix}")
  return arrays


def comparison_row(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
  """Return the accuracy and the leakage of one audit, with the keys of `COLUMNS`.

  Args:
    name: name of the audit.
    report: its report, as docs/report.schema.json describes.
  """
  setting, best = report.get("setting") or {}, report.get("strongest") or {}
  accuracy, spread = accuracy_of(report)
  low, high = best.get("auc_ci") or (None, None)
  return {
    "audit": name,
    "defense": setting.get("defense"),
    "unit": report.get("unit", "record"),
    "accuracy": accuracy,
    "accuracy_std": spread,
    "epsilon": setting.get("epsilon"),
    "attack": best.get("attack"),
    "auc": best.get("auc"),
    "auc_low": low,
    "auc_high": high,
    "fpr": best.get("fpr"),
    "tpr": best.get("tpr"),
  }


def accuracy_of(report: Mapping[str, Any]) -> tuple[float | None, float | None]:
  """Return the test accuracy of an audit and its standard deviation, None if unknown.

  For generators it is the accuracy of classifiers trained on their samples.

  >>> accuracy_of({"setting": {"test_accuracy": 0.9}})
  (0.9, None)
  """
  setting = report.get("setting") or {}
  if setting.get("test_accuracy") is not None:
    return setting["test_accuracy"], setting.get("test_accuracy_std")
  for row in (report.get("generator") or {}).get("utility", []):
    if row["name"] == "downstream_accuracy":
      return row["value"], row.get("spread")
  return None, None


def comparison_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Return the rows of a comparison as a Markdown table.

  Args:
    rows: results of `comparison_row`.
  """
  lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
  for row in rows:
    lines.append("| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |")
  return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
  shown = f"{value:.4g}" if isinstance(value, float) else str(value)
  return "" if value is None else shown.replace("|", "\\|")


def _refuse_other_units(reports: Mapping[str, Mapping[str, Any]]) -> None:
  """Reject an audit of persons next to one of records."""
  units = {name: report.get("unit", "record") for name, report in reports.items()}
  first, *others = units
  for other in others:
    if units[other] != units[first]:
      raise ValueError(
        f"{first} is an audit of {units[first]}s, {other} one of {units[other]}s, and "
        "their metrics differ in meaning: audit both with groups, or both without"
      )


def _comparable(one, other, attack) -> bool:
  """Return whether both scored the same rows, as far as ids and labels show."""
  same = all(np.array_equal(one.get(key), other.get(key)) for key in ("ids", "labels"))
  return same and attack in one and attack in other


def _difference(scores, first, other, attack, seed) -> dict[str, Any]:
  """Compare the first audit's strongest attack with the same attack of another."""
  sides = ((scores[name][attack], scores[name]["keep"]) for name in (first, other))
  found = paired_bootstrap(*sides, seed=seed)["auc"]
  return {
    "first": first,
    "second": other,
    "attack": attack,
    "auc_difference": found["difference"],
    "ci": list(found["ci"]),
  }

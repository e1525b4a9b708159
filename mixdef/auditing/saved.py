"""Read saved reports and validate the parts that other jobs use."""

import pathlib
from collections.abc import Mapping
from typing import Any

from mixdef.core import files
from mixdef.core.files import path_of
from mixdef.core.reading import Damaged, check_form, read_json

SCHEMA = 1
"""Version of the layout of report.json, described in docs/report.schema.json."""

_MAYBE = (float, type(None))
_WHAT, _FIX = f"is not a report of schema {SCHEMA}", "audit again"


def read_report(path: str | pathlib.Path) -> dict[str, Any]:
  """Read a report.json.

  Args:
    path: the file, or the run folder that holds it.

  Returns:
    The report.

  Raises:
    ValueError: if it is not a report, or has a newer layout.
    FileNotFoundError: if there is none.
  """
  path = path_of(path)
  path = path / "report.json" if path.is_dir() else path
  if not files.exists(path):
    raise FileNotFoundError(f"{path} is missing; run mixdef audit there first")
  report = read_json(path, what=_WHAT, fix=_FIX)
  if report.get("schema") != SCHEMA:
    raise Damaged(f"{path} {_WHAT}; {_FIX}")
  try:
    _check(report)
  except ValueError as error:
    raise Damaged(f"{path} {_WHAT}: {error}; {_FIX}") from None
  return report


def _check(report: Mapping[str, Any]) -> None:
  """Reject a report whose layout differs from what a comparison reads.

  Raises:
    ValueError: naming the first place that differs.
  """
  check_form(report, {"setting": dict, "strongest": {"attack": str}, "attacks": dict})
  for name in ("test_accuracy", "test_accuracy_std", "epsilon"):
    check_form(report["setting"].get(name), _MAYBE, f"setting.{name}")
  check_form(report["setting"].get("defense"), (str, type(None)), "setting.defense")
  _check_metrics(report["strongest"], "strongest")
  for name in ("fpr", "tpr"):
    check_form(report["strongest"].get(name), _MAYBE, f"strongest.{name}")
  for name, metrics in report["attacks"].items():
    place = f"attacks.{name}"
    check_form(metrics, {"tpr": dict}, place)
    _check_metrics(metrics, place)
    for rate, row in metrics["tpr"].items():
      at = f"{place}.tpr.{rate}"
      check_form(row, {"value": _MAYBE, "resolvable": bool}, at)
      _check_interval(row, "ci", at)
  baseline = report.get("dp_baseline")
  if baseline is not None:
    check_form(baseline, dict, "dp_baseline")
    for name in ("test_accuracy", "test_accuracy_std"):
      check_form(baseline.get(name), _MAYBE, f"dp_baseline.{name}")
    if baseline.get("strongest") is not None:
      _check_metrics(baseline["strongest"], "dp_baseline.strongest")
  generator = report.get("generator")
  if generator is not None:
    row = {"name": str, "value": _MAYBE}
    check_form(generator, {"utility": [row]}, "generator")
    for row in generator["utility"]:
      check_form(row.get("spread"), _MAYBE, "spread in generator.utility")


def _check_metrics(metrics: Any, place: str) -> None:
  check_form(metrics, {"auc": _MAYBE}, place)
  _check_interval(metrics, "auc_ci", place)


def _check_interval(metrics: Mapping[str, Any], name: str, place: str) -> None:
  ends = metrics.get(name)
  if ends is not None:
    check_form(ends, [_MAYBE], f"{place}.{name}")
    if len(ends) != 2:
      raise ValueError(f"{place}.{name} has {len(ends)} bounds, not 2")

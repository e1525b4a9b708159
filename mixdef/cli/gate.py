"""Pass or fail a report of an audit, for use in continuous integration.

  mixdef gate runs/release/report.json --max_tpr=0.01@0.001 --max_named=0

exits with status 1 and one line for each limit that the report exceeds. By default a
limit fails if the audit has shown more; with --strict it also fails if the audit cannot
exclude more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from etils import epy

from mixdef.cli import flags

with epy.lazy_imports():
  from mixdef.core import files, reading

TEXT = __doc__
_FIX = "pass the report.json of mixdef release or mixdef audit"
_PRECISION = "0.95"
_FORM = {"verdict": {"level": str}, "attacks": dict}
_RATE = {"value": float, "ci": [(float, type(None))], "resolvable": bool}
_COUNTS = {"prior": float, "shown": {_PRECISION: int}, "possible": {_PRECISION: int}}
_NAMES = {"unit": str, "prior": float, "priors": [_COUNTS]}
"""What the gate reads of a report."""


@dataclasses.dataclass(frozen=True)
class GateSettings:
  """The report and its limits."""

  report: str = ""
  max_tpr: str = ""
  max_named: int = -1
  strict: bool = False

  positional: ClassVar[str] = "report"

  def __post_init__(self):
    """Check the limits before the report is read."""
    for field in dataclasses.fields(self):
      flags.check(field.name, getattr(self, field.name), type(field.default))
    if not self.report:
      raise ValueError("name the report: mixdef gate report.json --max_named=0")
    if not self.max_tpr and self.max_named < 0:
      raise ValueError("pass a limit: --max_tpr=0.01@0.001, --max_named=0, or both")
    if self.max_tpr:
      self.rate  # noqa: B018  it raises for a wrong text

  @property
  def rate(self) -> tuple[float, str]:
    """The largest TPR, and the FPR as the report writes it."""
    most, fpr = flags.rate_at("max_tpr", self.max_tpr)
    return most, f"{fpr:g}"


def failures(report: Mapping[str, Any], settings: GateSettings) -> list[str]:
  """Return a line for each limit that a report exceeds.

  Args:
    report: content of report.json.
    settings: the limits.

  Raises:
    ValueError: for a limit on what the report does not contain, and if it is damaged.
  """
  _check(report, _FORM)
  if not report["attacks"]:
    raise ValueError(f"the report has no attacks: {_FIX}")
  lines = []
  if settings.max_tpr:
    lines += _rates(report, *settings.rate, strict=settings.strict)
  if settings.max_named >= 0:
    lines += _names(report, settings.max_named, strict=settings.strict)
  if alarm := report["verdict"].get("alarm"):
    lines.append(f"the stated epsilon is contradicted: {alarm}")
  if report["verdict"]["level"] == "confounded":
    lines.append("members and hold-out differ by more than membership: not graded")
  return lines


def _check(value, form, place="the report"):
  """Raise unless a part of a report has a form, with the fix."""
  try:
    reading.check_form(value, form, place)
  except ValueError as error:
    raise ValueError(f"{error}; {_FIX}") from None


def _rates(report, most, fpr, *, strict):
  lines = []
  for name, row in report["attacks"].items():
    _check(row, {"tpr": dict}, f"attacks.{name}")
    rate = row["tpr"].get(fpr)
    if rate is None:
      known = ", ".join(row["tpr"])
      raise ValueError(f"the report has no TPR at an FPR of {fpr}; it has {known}")
    _check(rate, _RATE, f"attacks.{name}.tpr.{fpr}")
    low, high = [*rate["ci"], None, None][:2]
    if rate["resolvable"] and low > most:
      lines.append(f"{name}: TPR {rate['value']:.4g} at FPR {fpr}, at least {low:.4g}")
    elif strict and not rate["resolvable"]:
      lines.append(f"{name}: the hold-out is too short for a TPR at FPR {fpr}")
    elif strict and high > most:
      lines.append(f"{name}: TPR at FPR {fpr} may be up to {high:.4g}")
  return lines


def _names(report, most, *, strict):
  if report.get("kind") != "release":
    raise ValueError("--max_named needs a report of mixdef release")
  _check(report, _NAMES)
  rows = [row for row in report["priors"] if row["prior"] == report["prior"]]
  if not rows:
    raise ValueError(f"the report has no counts at its prior; {_FIX}")
  counts = rows[0]
  shown, possible = counts["shown"][_PRECISION], counts["possible"][_PRECISION]
  if shown > most:
    return [f"{shown} {report['unit']}s can be named, with 19 of 20 names right"]
  if strict and possible > most:
    return [f"up to {possible} {report['unit']}s cannot be excluded"]
  return []


def main(argv: Sequence[str] | None = None) -> None:
  """Exit with status 0 if the report is within the limits, 1 if not, 2 on errors."""
  settings = flags.read(
    "gate", GateSettings, TEXT, sys.argv[1:] if argv is None else argv
  )
  try:
    path = files.path_of(settings.report, "report")
    lines = failures(reading.read_json(path, fix=_FIX), settings)
  except (ValueError, OSError) as error:
    flags.refuse("gate", str(error))
  for line in lines:
    print(f"gate: {line}")
  if lines:
    sys.exit(1)
  print("gate: within the limits")

"""Check that a report of a release belongs to this model, these records and this code.

  mixdef verify runs/release/report.json --run=runs/mine

recomputes the digests in the report: the model's outputs on members and hold-out, the
membership, the records, the scores next to the report, and the source of mixdef. It
prints a line for each, and exits with status 1 if one differs. The model is given by
--run, --arrays or --params, as in mixdef release; without one, only the scores and the
source are checked.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import ClassVar

from etils import epy

from mixdef.cli import flags

with epy.lazy_imports():
  from mixdef.auditing import provenance, released
  from mixdef.cli import release
  from mixdef.core import extras, files, reading

TEXT = __doc__
_FIX = "pass the report.json of mixdef release"


@dataclasses.dataclass(frozen=True)
class VerifySettings:
  """The report, and the model that it should belong to."""

  report: str = ""
  run: str = ""
  arrays: str = ""
  params: str = ""
  model: str = "mlp"
  dataset: str = ""
  data_dir: str = ""
  label: str = ""
  group: str = ""
  id: str = ""
  test: str = ""
  schema: str = ""

  positional: ClassVar[str] = "report"

  def __post_init__(self):
    """Check the flags before anything is read."""
    if not self.report:
      raise ValueError("name the report: mixdef verify report.json --run=FOLDER")
    if bool(self.run) + bool(self.arrays) + bool(self.params) > 1:
      raise ValueError("pass one of --run, --params and --arrays")


def checked(settings: VerifySettings) -> dict[str, bool]:
  """Return whether each digest of the report is that of today, by name.

  Raises:
    ValueError: for a report without digests, or a model that cannot be read.
  """
  path = files.path_of(settings.report, "report")
  report = reading.read_json(path, fix=_FIX)
  if not isinstance(report.get("made_from"), dict):
    raise ValueError(f"{path} has no digests: {_FIX}")
  kept = report["made_from"]
  found: dict[str, str | None] = {"code": provenance.code_digest()}
  scores = path.parent / "scores.npz"
  if kept.get("scores") and files.exists(scores):
    found["scores"] = reading.digest_file(scores, fix=_FIX)
  if settings.run or settings.arrays or settings.params:
    found |= provenance.made_from(_model(settings))
  apart = provenance.differences(report, found)
  return {name: name not in apart for name, value in found.items() if value}


def _model(settings):
  if settings.arrays:
    return released.read(files.path_of(settings.arrays, "--arrays"))
  given = dataclasses.asdict(settings)
  del given["report"]
  return released.read(**release.model_of(release.ReleaseSettings(**given))[0])


def main(argv: Sequence[str] | None = None) -> None:
  """Exit with status 0 if all digests agree, 1 if one differs, 2 on errors."""
  settings = flags.read(
    "verify", VerifySettings, TEXT, sys.argv[1:] if argv is None else argv
  )
  try:
    found = checked(settings)
  except (ValueError, OSError, extras.MissingPackage) as error:
    flags.refuse("verify", str(error))
  for name, same in found.items():
    print(f"verify: {name} {'agree' if same else 'DIFFER'}")
  if not (settings.run or settings.arrays or settings.params):
    print("verify: the model was not checked: pass --run, --params or --arrays")
  if not all(found.values()):
    sys.exit(1)

"""Put several audits in one table and one plot of accuracy against leakage.

  mixdef compare --audits=runs/none,runs/relaxloss --out=runs/compare

reads report.json and scores.npz of the run folders of audits, also of GANs, and writes
compare.html, compare.csv, compare.md and result.json. Each audit of the same records is
compared with the first one by a paired bootstrap over records, or over persons if the
audits are of persons; an audit of persons is not compared with one of records. The
accuracy of a GAN is that of classifiers trained on its samples.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from etils import epy

from mixdef.cli import job
from mixdef.cli.settings import JobSettings

with epy.lazy_imports():
  from mixdef import auditing
  from mixdef.auditing import side_by_side
  from mixdef.core import files, reading


@dataclasses.dataclass(frozen=True)
class CompareSettings(JobSettings):
  """The audits to compare."""

  audits: str = ""

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    if len(self.paths) < 2 or len(self.folders) < len(self.paths):
      raise ValueError(
        f"--audits={self.audits!r}: pass at least two run folders, separated by "
        "commas, whose last parts differ"
      )

  @property
  def subject(self) -> str:
    """The names of the audits."""
    return "-".join(self.folders)

  @property
  def paths(self) -> list[pathlib.Path]:
    """The run folders as given."""
    parts = (part.strip() for part in self.audits.split(","))
    return [files.path_of(part, "--audits") for part in parts if part]

  @property
  def folders(self) -> dict[str, pathlib.Path]:
    """The run folders by their names in the table: the last parts of their paths."""
    return {path.name: path for path in self.paths}

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of the report and scores of each audit."""
    found = super().inputs()
    for name, path in self.folders.items():
      report = auditing.read_report(path)
      scores = side_by_side.read_audit_scores(path)
      parts = [part for item in sorted(scores.items()) for part in item]
      words = json.dumps(report, sort_keys=True)
      found[f"content of {name}"] = reading.digest(words, *parts)
    return found


def run(settings: CompareSettings, folder: pathlib.Path) -> dict:
  """Compare the audits; returns the content of result.json."""
  found = auditing.compare_audits(settings.folders, seed=settings.seed)
  page = folder / "compare.html"
  files.write_text(page, auditing.render_comparison(found.reports, found.differences))
  files.write_csv(folder / "compare.csv", side_by_side.COLUMNS, found.rows)
  files.write_text(folder / "compare.md", side_by_side.comparison_markdown(found.rows))
  return {
    "rows": found.rows,
    "differences": found.differences,
    "report": page.name,
  }


def show(result: dict) -> None:
  """Print the table and the paired differences."""
  print(side_by_side.comparison_markdown(result["rows"]), end="")
  for row in result["differences"]:
    low, high = row["ci"]
    print(
      f"{row['attack']}: AUC of {row['first']} minus {row['second']} "
      f"{row['auc_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
  first, *others = (row["audit"] for row in result["rows"])
  rows = f"{result['rows'][0]['unit']}s"
  paired = [row["second"] for row in result["differences"]]
  for name in others:
    if name not in paired:
      print(
        f"{name}: no paired difference, because it scored different {rows} than "
        f"{first}, or does not include its strongest attack"
      )


JOB = job.Job("compare", __doc__, CompareSettings, run, show, needs=("jinja2",))

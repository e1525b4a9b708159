"""Put several audits in one table and one plot of accuracy against leakage.

  python experiments/compare.py --audits=runs/none,runs/relaxloss --out=runs/compare

reads report.json and scores.npz of each run folder of audit.py and writes compare.html,
compare.csv, compare.md and result.json. Audits of the same records are compared by a
paired bootstrap over records with the first one named.
"""

import csv
import dataclasses
import pathlib

import job
import numpy as np
from settings import JobSettings

from mixdef.auditing import paired_bootstrap, read_report, render_comparison

_COLUMNS = ("audit", "defense", "accuracy", "accuracy_std", "epsilon", "attack", "auc")
_COLUMNS += ("auc_low", "auc_high", "fpr", "tpr")


@dataclasses.dataclass(frozen=True)
class CompareSettings(JobSettings):
  """What to compare."""

  audits: str = ""

  @property
  def label(self) -> str:
    """The names of the audits."""
    return "-".join(self.named())

  def named(self) -> dict[str, pathlib.Path]:
    """Return the run folders by a name of each: the last part of its path."""
    paths = [pathlib.Path(part.strip()) for part in self.audits.split(",") if part]
    names = [path.name for path in paths]
    if len(paths) < 2 or len(set(names)) < len(names):
      raise ValueError(
        f"--audits={self.audits!r}: name two run folders or more, joined by commas, "
        f"with different last parts"
      )
    return dict(zip(names, paths, strict=True))


def run(settings: CompareSettings, folder: pathlib.Path) -> dict:
  """Compare the audits; returns what result.json holds."""
  folders = settings.named()
  reports = {name: read_report(path) for name, path in folders.items()}
  first, *others = folders
  differences = [
    row
    for other in others
    for row in _differences(folders, reports, first, other, settings.seed)
  ]
  rows = [_row(name, report) for name, report in reports.items()]
  page = folder / "compare.html"
  page.write_text(render_comparison(reports, differences), encoding="utf-8")
  with (folder / "compare.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, _COLUMNS)
    table.writeheader()
    table.writerows(rows)
  (folder / "compare.md").write_text(_markdown(rows))
  return {"rows": rows, "differences": differences, "report": str(page)}


def _differences(folders, reports, first, other, seed):
  """Compare the first audit's strongest attack with the other's same attack."""
  left, right = (np.load(folders[name] / "scores.npz") for name in (first, other))
  attack = reports[first]["strongest"]["attack"]
  same = np.array_equal(left["ids"], right["ids"])
  if not same or attack not in right or attack not in left:
    return []
  scored = ((part[attack], part["keep"]) for part in (left, right))
  found = paired_bootstrap(*scored, seed=seed)["auc"]
  return [
    {
      "first": first,
      "second": other,
      "attack": attack,
      "auc_difference": found["difference"],
      "ci": list(found["ci"]),
    }
  ]


def _row(name, report):
  setting, best = report["setting"], report["strongest"]
  values = (
    *(name, setting.get("defense"), setting.get("test_accuracy")),
    *(setting.get("test_accuracy_std"), setting.get("epsilon")),
    *(best["attack"], best["auc"], *best["auc_ci"], best["fpr"], best["tpr"]),
  )
  return dict(zip(_COLUMNS, values, strict=True))


def _markdown(rows):
  lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
  for row in rows:
    lines.append("| " + " | ".join(_cell(row[name]) for name in _COLUMNS) + " |")
  return "\n".join(lines) + "\n"


def _cell(value):
  shown = f"{value:.4g}" if isinstance(value, float) else str(value)
  return "" if value is None else shown.replace("|", "\\|")


def show(result: dict) -> None:
  """Print the table and the paired differences."""
  print(_markdown(result["rows"]), end="")
  for row in result["differences"]:
    low, high = row["ci"]
    print(
      f"{row['attack']}: AUC of {row['first']} minus {row['second']} "
      f"{row['auc_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
  print(f"page: {result['report']}")


if __name__ == "__main__":
  job.main("compare", CompareSettings, run, show)

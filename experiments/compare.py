"""Put several audits in one table and one plot of accuracy against leakage.

  python experiments/compare.py --audits=runs/none,runs/relaxloss --out=runs/compare

reads report.json and scores.npz of each run folder of audit.py or gan.py and writes
compare.html, compare.csv, compare.md and result.json. Audits of the same records are
compared by a paired bootstrap over records with the first one named. The accuracy of
a GAN is that of classifiers trained on its samples.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import job
from etils import epy
from settings import JobSettings

with epy.lazy_imports():
  import numpy as np

  from mixdef import auditing, metrics
  from mixdef.auditing.pages import compare_page
  from mixdef.core import files, reading

_COLUMNS = ("audit", "defense", "accuracy", "accuracy_std", "epsilon", "attack", "auc")
_COLUMNS += ("auc_low", "auc_high", "fpr", "tpr")


@dataclasses.dataclass(frozen=True)
class CompareSettings(JobSettings):
  """What to compare."""

  audits: str = ""

  def __post_init__(self):
    """Refuse what cannot be compared before anything is written."""
    super().__post_init__()
    if len(self.paths) < 2 or len(self.folders) < len(self.paths):
      raise ValueError(
        f"--audits={self.audits!r}: name two run folders or more, joined by commas, "
        f"with different last parts"
      )

  @property
  def label(self) -> str:
    """The names of the audits."""
    return "-".join(self.folders)

  @property
  def paths(self) -> list[pathlib.Path]:
    """The run folders as given."""
    parts = (part.strip() for part in self.audits.split(","))
    return [files.local_path(part, "--audits") for part in parts if part]

  @property
  def folders(self) -> dict[str, pathlib.Path]:
    """The run folders by what each is called in the table: its path's last part."""
    return {path.name: path for path in self.paths}

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of what each audit left."""
    found = super().inputs()
    for name, path in self.folders.items():
      report, scores = auditing.read_report(path), _read_scores(path)
      parts = [part for item in sorted(scores.items()) for part in item]
      words = json.dumps(report, sort_keys=True)
      found[f"content of {name}"] = reading.digest(words, *parts)
    return found


def run(settings: CompareSettings, folder: pathlib.Path) -> dict:
  """Compare the audits; returns what result.json holds."""
  reports = {
    name: auditing.read_report(path) for name, path in settings.folders.items()
  }
  scores = {name: _read_scores(path) for name, path in settings.folders.items()}
  first, *others = reports
  attack = reports[first]["strongest"]["attack"]
  differences = [
    _difference(scores, first, other, attack, settings.seed)
    for other in others
    if _comparable(scores[first], scores[other], attack)
  ]
  rows = [_row(name, report) for name, report in reports.items()]
  page = folder / "compare.html"
  files.write_text(page, auditing.render_comparison(reports, differences))
  files.write_csv(folder / "compare.csv", _COLUMNS, rows)
  files.write_text(folder / "compare.md", _markdown(rows))
  return {"rows": rows, "differences": differences, "report": page.name}


def _read_scores(folder):
  path, fix = folder / "scores.npz", "run experiments/audit.py there again"
  arrays = reading.read_npz(path, fix=fix)
  keep = arrays.get("keep")
  if keep is None or keep.dtype != bool or keep.ndim != 2:
    raise ValueError(f"{path} has no keep, bool [S,N]; {fix}")
  for name, array in arrays.items():
    if array.dtype.kind == "f" and array.shape != keep.shape:
      raise ValueError(f"{path}: {name} has another shape than keep; {fix}")
  return arrays


def _comparable(one, other, attack):
  """Tell whether both scored the same records, as far as ids and labels show."""
  marks = ("ids", "labels")
  same = all(np.array_equal(one.get(mark), other.get(mark)) for mark in marks)
  return same and attack in one and attack in other


def _difference(scores, first, other, attack, seed):
  """Compare the first audit's strongest attack with the other's same attack."""
  sides = ((scores[name][attack], scores[name]["keep"]) for name in (first, other))
  found = metrics.paired_bootstrap(*sides, seed=seed)["auc"]
  return {
    "first": first,
    "second": other,
    "attack": attack,
    "auc_difference": found["difference"],
    "ci": list(found["ci"]),
  }


def _row(name, report):
  setting, best = report["setting"], report["strongest"]
  values = (
    *(
      name,
      setting.get("defense"),
      *compare_page.accuracy_of(report),
      setting.get("epsilon"),
    ),
    *(best["attack"], best["auc"], *(best.get("auc_ci") or (None, None))),
    *(best.get("fpr"), best.get("tpr")),
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
  first, *others = (row["audit"] for row in result["rows"])
  paired = [row["second"] for row in result["differences"]]
  for name in others:
    if name not in paired:
      print(
        f"{name}: no paired difference, it scored other records than {first}, "
        f"or without its strongest attack"
      )


if __name__ == "__main__":
  job.main("compare", CompareSettings, run, show)

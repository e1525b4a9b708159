"""The table and the plot of a sweep: sweep.csv, sweep.md, sweep.png."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixdef.core import files
from mixdef.metrics.summary import strongest_first
from mixdef.metrics.trade_off import trade_off_plot

_LOW = "0.001"  # false-positive rate of the true-positive rates in the tables
_FACTS = (
  "dataset",
  "seed",
  "defense",
  "family",
  "num_shadows",
  "num_records",
  "epsilon",
  "train_accuracy",
  "test_accuracy",
  "test_accuracy_std",
  "gap_attack",
  "seconds",
  "not_run",
)

_CAPTION = """
Accuracies and true-positive rates (TPR) are in %, [ ] is a 95% interval, and ± is the
standard deviation between models; with several seeds a row is their mean and ± is the
standard deviation between seeds.
"""
_EPSILON = """
Epsilon is that of one training: the choice of a row by what is measured on the same
records is not covered.
"""
_PERSONS = """
Where records belong to persons, persons are attacked instead of records.
"""


def write(cells: Sequence[dict[str, Any]], folder: pathlib.Path) -> None:
  """Write the three files.

  Args:
    cells: results of `sweep_defenses`.
    folder: folder of the files.
  """
  rows = [_flat(cell) for cell in cells]
  columns = list(dict.fromkeys(name for row in rows for name in row))
  files.write_csv(folder / "sweep.csv", columns, rows)
  files.write_text(folder / "sweep.md", markdown(cells))
  drawn = []
  for cell in cells:
    for name in strongest_first(cell.get("attacks", {}))[:1]:
      best = {key: cell["attacks"][name][key] for key in ("auc", "auc_ci")}
      line = cell["seed"], cell["num_shadows"]
      drawn.append({**cell, **best, "line": line})
  if drawn:
    trade_off_plot(drawn, folder / "sweep.png")


def markdown(cells: Sequence[dict[str, Any]]) -> str:
  """Return a Markdown table with a row per data set and defense, and its caption.

  Args:
    cells: results of `sweep_defenses`.
  """
  groups: dict[tuple, list] = {}
  for cell in cells:
    key = (cell["dataset"], cell["defense"], cell.get("num_shadows"))
    groups.setdefault(key, []).append(cell)
  names = list(dict.fromkeys(n for cell in cells for n in cell.get("attacks", {})))
  header = ["data", "defense", "models", "seeds", "epsilon", "test acc.", "gap attack"]
  quoted = {name for name in names if any(_resolved(cell, name) for cell in cells)}
  for name in names:
    header.append(f"{name} AUC")
    header += [f"its TPR at {100 * float(_LOW):g}% FPR"] * (name in quoted)
  lines = [header, ["---"] * len(header)]
  for (dataset, defense, shadows), group in groups.items():
    first = [dataset, f"`{defense}`".replace("|", "\\|")]
    refusal = next((cell["not_run"] for cell in group if "not_run" in cell), None)
    if refusal:
      lines.append([*first, f"not run: {refusal}".replace("|", "\\|")])
      continue
    epsilon = group[0]["epsilon"]
    row = [*first, str(shadows), str(len(group))]
    row += ["" if epsilon is None else f"{epsilon:.3g}"]
    row += [_accuracy(group), _percent([cell["gap_attack"] for cell in group])]
    for name in names:
      auc, rate = _attack([cell["attacks"].get(name) for cell in group])
      row += [auc, rate] if name in quoted else [auc]
    lines.append(row)
  private = any(cell.get("epsilon") is not None for cell in cells)
  persons = any("num_persons" in cell for cell in cells)
  caption = _CAPTION + _EPSILON * private + _PERSONS * persons
  return "".join(f"| {' | '.join(line)} |\n" for line in lines) + caption


def _resolved(cell, name):
  metrics = cell.get("attacks", {}).get(name)
  return metrics is not None and metrics["tpr"][_LOW]["resolvable"]


def _flat(cell):
  """One row of the CSV file."""
  row = {name: cell.get(name) for name in _FACTS}
  for name, metrics in cell.get("attacks", {}).items():
    low = metrics["tpr"][_LOW]
    resolved = low["resolvable"]
    row |= {
      f"{name}_auc": metrics["auc"],
      f"{name}_auc_low": metrics["auc_ci"][0],
      f"{name}_auc_high": metrics["auc_ci"][1],
      f"{name}_balanced_accuracy": metrics["balanced_accuracy"],
      f"{name}_tpr_{_LOW}": low["value"] if resolved else None,
      f"{name}_tpr_{_LOW}_low": low["ci"][0] if resolved else None,
      f"{name}_tpr_{_LOW}_high": low["ci"][1] if resolved else None,
    }
  return row


def _accuracy(group):
  if len(group) > 1:
    return _percent([cell["test_accuracy"] for cell in group])
  (cell,) = group
  spread = cell["test_accuracy_std"]
  between = "" if spread is None else f" ± {100 * spread:.1f}"
  return f"{100 * cell['test_accuracy']:.1f}{between}"


def _percent(values):
  spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
  return f"{100 * np.mean(values):.1f}{spread}"


def _attack(found):
  """AUC and low-rate TPR of one attack over the seeds."""
  if None in found:
    return ["not run", ""]
  aucs = [metrics["auc"] for metrics in found]
  lows = [metrics["tpr"][_LOW] for metrics in found]
  rate = "not resolvable"
  if len(found) > 1:
    auc = f"{np.mean(aucs):.3f} ± {np.std(aucs, ddof=1):.3f}"
    if all(low["resolvable"] for low in lows):
      rate = _percent([low["value"] for low in lows])
    return [auc, rate]
  low, high = found[0]["auc_ci"]
  if lows[0]["resolvable"]:
    ends = [100 * end for end in lows[0]["ci"]]
    rate = f"{100 * lows[0]['value']:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"
  return [f"{aucs[0]:.3f} [{low:.3f}, {high:.3f}]", rate]

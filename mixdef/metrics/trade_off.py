"""Plot the accuracy of defenses against their remaining leakage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixdef.core import extras
from mixdef.core.files import path_of, save_figure
from mixdef.metrics import drawing

_MARKERS = "osD^vP*X<>ph"


@drawing.plainly()
def trade_off_plot(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
  """Plot accuracy against leakage: one panel per data set, one line per family.

  Args:
    rows: each with `dataset`, `family`, `test_accuracy` in [0, 1], and `auc` with
      `auc_ci` of the strongest attack; rows of a family are connected in their order.
      If a family has several lines, such as one per seed, `line` distinguishes them.
    path: output file; the suffix is .png or .svg.

  Raises:
    ValueError: for no row, or another suffix.
  """
  path = path_of(path)
  if path.suffix not in (".png", ".svg"):
    raise ValueError(f"cannot write {path.name}; end the path in .png or .svg")
  if not rows:
    raise ValueError("no row to draw; pass at least one")
  extras.require("matplotlib")
  from matplotlib.figure import Figure

  datasets = list(dict.fromkeys(row["dataset"] for row in rows))
  families = list(dict.fromkeys(row["family"] for row in rows))
  width = 6.4 * len(datasets)
  longest = max(len(family) for family in families)
  columns = min(3, max(1, int(width / (0.6 + 0.055 * longest))))  # inches
  legend_rows = -(-len(families) // columns)
  size = (width, 4.4 + 0.22 * legend_rows)
  figure = Figure(figsize=size, layout="constrained")
  panels = figure.subplots(1, len(datasets), squeeze=False)[0]
  for axes, dataset in zip(panels, datasets, strict=True):
    for number, family in enumerate(families):
      lines: dict[Any, list] = {}
      for row in rows:
        if (row["dataset"], row["family"]) == (dataset, family):
          lines.setdefault(row.get("line"), []).append(row)
      for cells in lines.values():
        axes.errorbar(
          [100 * row["test_accuracy"] for row in cells],
          [row["auc"] for row in cells],
          yerr=[
            [row["auc"] - row["auc_ci"][0] for row in cells],
            [row["auc_ci"][1] - row["auc"] for row in cells],
          ],
          color=f"C{number % 10}",
          marker=_MARKERS[number // 10 % len(_MARKERS)],
          linewidth=1,
          markersize=5,
          label=family,
        )
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
    axes.set(
      title=dataset, xlabel="test accuracy, %", ylabel="AUC of the strongest attack"
    )
    axes.grid(color="0.9", linewidth=0.6)
  handles: dict[str, Any] = {}
  for axes in panels:
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
      handles.setdefault(label, handle)
  figure.legend(
    list(handles.values()),
    list(handles),
    loc="outside lower center",
    ncols=columns,
    fontsize="x-small",
  )
  save_figure(figure, path)

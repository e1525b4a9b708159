"""ROC plots on logarithmic axes, which make low false-positive rates readable."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import extras
from mixdef.core.files import path_of, save_figure
from mixdef.metrics import drawing
from mixdef.metrics.roc import Roc

_POINTS = 800


@drawing.plainly()
def roc_plot(
  curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | Path
) -> None:
  """Draw the ROC of every attack in one log-log plot and save it.

  A curve is a step function: the TPR at an FPR is that of the best threshold allowed
  there, never interpolated. FPRs with fewer than ten expected false positives on the
  smallest set of non-members are shaded and marked "not resolvable". The legend lies
  below the axes, and identical curves remain visible through each other.

  Args:
    curves: name to (scores, member), both [N] or [S, N]; higher means member. NaN
      scores are excluded.
    path: output file; the suffix is .png or .svg.

  Raises:
    ValueError: for no curve, another suffix, or a curve with one class only.
  """
  path = path_of(path)
  if path.suffix not in (".png", ".svg"):
    raise ValueError(f"cannot write {path.name}; end the path in .png or .svg")
  if not curves:
    raise ValueError("no curve to draw; pass at least one name with its scores")
  extras.require("matplotlib")
  from matplotlib.figure import Figure

  rocs = {name: Roc.of(*pair) for name, pair in curves.items()}
  legend_rows = len(curves) // 2 + 1
  figure = Figure(figsize=(6.4, 5.2 + 0.2 * legend_rows), layout="constrained")
  axes = figure.add_subplot()
  rates = roc_rates(rocs.values(), points=_POINTS)
  for number, (name, roc) in enumerate(rocs.items()):
    axes.plot(
      rates,
      step_curve(roc, rates),
      color=f"C{number % 10}",
      # Every curve is thinner than those below it and has gaps, so identical curves
      # remain visible.
      linestyle=(0, (11 - number % 10, 4)) if number else "-",
      linewidth=max(1, 2.6 - 0.2 * number),
      drawstyle="steps-post",
      label=f"{name} (AUC {roc.auc:.3f})",
    )
  frame_roc(
    axes,
    rates[0],
    unresolved=max(unresolved(roc) for roc in rocs.values()),
    chance="0.5",
    shade="0.92",
    note="0.4",
    grid="0.9",
  )
  figure.legend(loc="outside lower center", ncols=2, fontsize="small", handlelength=4)
  save_figure(figure, path)


def roc_rates(rocs: Iterable[Roc], *, points: int) -> np.ndarray:
  """Return the FPRs [points] to draw: from one false positive, or 10%, up to 1."""
  most = max(int(roc.fp[-1]) for roc in rocs)
  return np.geomspace(min(0.1, 1 / most), 1, points)


def step_curve(roc: Roc, rates: np.ndarray) -> np.ndarray:
  """Return the TPR [P] of the best allowed threshold at each FPR [P]."""
  return roc.tpr_at(rates)


def unresolved(roc: Roc) -> float:
  """Return the FPR below which fewer than ten false positives are expected."""
  return min(1.0, 10 / int(roc.fp[-1]))


def frame_roc(
  axes: Any,
  left: float,
  *,
  unresolved: float,
  chance: str,
  shade: str,
  note: str,
  grid: str,
) -> None:
  """Add log-log axes, the chance line and the region that is not resolvable.

  Args:
    axes: matplotlib axes that hold the curves.
    left: the lowest FPR, where the axes begin.
    unresolved: the FPR up to which rates are not resolvable.
    chance: colour of the chance line.
    shade: colour of the region up to `unresolved`.
    note: colour of the text in that region.
    grid: colour of the grid.
  """
  axes.plot(
    [left, 1], [left, 1], color=chance, linewidth=1, linestyle=":", label="chance"
  )
  axes.axvspan(left, unresolved, color=shade, zorder=0)
  axes.text(
    np.sqrt(left * unresolved),
    1.01,
    "not resolvable",
    transform=axes.get_xaxis_transform(),
    ha="center",
    va="bottom",
    color=note,
    fontsize="small",
  )
  axes.set(
    xscale="log",
    yscale="log",
    xlim=(left, 1),
    ylim=(left, 1.2),
    xlabel="false-positive rate",
    ylabel="true-positive rate",
  )
  axes.grid(color=grid, linewidth=0.6)

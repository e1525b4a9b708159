"""ROC plots on logarithmic axes, which make low false-positive rates readable."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import extras
from mixdef.core.files import path_of, save_figure
from mixdef.metrics import drawing
from mixdef.metrics.roc import Roc, scored_pairs

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

  outside = [nonmembers(*pair) for pair in curves.values()]
  legend_rows = len(curves) // 2 + 1
  figure = Figure(figsize=(6.4, 5.2 + 0.2 * legend_rows), layout="constrained")
  axes = figure.add_subplot()
  rates = roc_rates(outside, points=_POINTS)
  for number, (name, pair) in enumerate(curves.items()):
    roc = Roc.of(*pair)  # of one curve at a time: it may be as large as the scores
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
    unresolved=max(map(unresolved, outside)),
    chance="0.5",
    shade="0.92",
    note="0.4",
    grid="0.9",
  )
  figure.legend(loc="outside lower center", ncols=2, fontsize="small", handlelength=4)
  save_figure(figure, path)


def nonmembers(scores: ArrayLike, members: ArrayLike) -> int:
  """Count the pairs of a target and a non-member that have a score.

  Raises:
    ValueError: if one class has no score.
  """
  return int((~scored_pairs(scores, members)[1]).sum())


def roc_rates(nonmembers: Iterable[int], *, points: int) -> np.ndarray:
  """Return the FPRs [points] to draw: from one false positive, or 10%, up to 1."""
  return np.geomspace(min(0.1, 1 / max(nonmembers)), 1, points)


def step_curve(roc: Roc, rates: np.ndarray) -> np.ndarray:
  """Return the TPR [P] of the best allowed threshold at each FPR [P]."""
  return roc.tpr_at(rates)


def unresolved(nonmembers: int) -> float:
  """Return the FPR below which fewer than ten false positives are expected."""
  return min(1.0, 10 / nonmembers)


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

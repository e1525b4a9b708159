"""Scatter plots of tables: real against synthetic, one point per column."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixdef.core import extras
from mixdef.core.files import local_path, save_figure
from mixdef.metrics import drawing


def dwp_plot(result: Mapping[str, Any], path: str | Path) -> None:
  """Plot the fraction of ones of every column and save the plot.

  Args:
    result: result of `dwp`.
    path: output file; the suffix is .png or .svg.

  Raises:
    ValueError: for another suffix.
  """
  _scatter(result, path, "Pr(x = 1)")


def dwpre_plot(result: Mapping[str, Any], path: str | Path) -> None:
  """Plot the F1 of every column and save the plot; constant columns lie on an axis.

  Args:
    result: result of `dwpre`.
    path: output file; the suffix is .png or .svg.

  Raises:
    ValueError: for another suffix.
  """
  _scatter(result, path, "F1 of predictions")


@drawing.plainly()
def _scatter(result: Mapping[str, Any], path: str | Path, what: str) -> None:
  path = local_path(path)
  if path.suffix not in (".png", ".svg"):
    raise ValueError(f"cannot write {path.name}; end the path in .png or .svg")
  extras.require("matplotlib")
  from matplotlib.figure import Figure

  real, synthetic = (np.asarray(result[side]) for side in ("real", "synthetic"))
  figure = Figure(figsize=(4.8, 5.0), layout="constrained")
  axes = figure.add_subplot()
  axes.axline((0, 0), slope=1, color="0.5", linewidth=1, linestyle=":")
  axes.scatter(real, synthetic, s=14, color="C0", alpha=0.5, linewidths=0)
  axes.set(
    title=f"correlation {result['correlation']:.3f}, RMSE {result['rmse']:.3f}",
    xlabel=f"{what}, real",
    ylabel=f"{what}, synthetic",
    xlim=(-0.02, 1.02),
    ylim=(-0.02, 1.02),
    aspect="equal",
  )
  axes.grid(color="0.9", linewidth=0.6)
  save_figure(figure, path)

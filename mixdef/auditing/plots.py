"""ROC figures on logarithmic axes, where low false-positive rates can be read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import ranking
from mixdef.auditing.figures import area, scored_pairs

_POINTS = 800


def roc_plot(
  curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | Path
) -> None:
  """Draw the ROC of every attack on one log-log figure and save it.

  A curve is a step function: the TPR at an FPR is that of the best threshold allowed
  there, never interpolated. Shaded: FPRs with fewer than ten expected false positives
  on the smallest set of non-members, marked "not resolvable".
  The legend lies below the axes, and identical curves show through each other.

  Args:
    curves: name to (scores, member), both [N] or [S, N], larger = member. NaN scores
      are left out.
    path: where to write; the suffix is .png or .svg.

  Raises:
    ValueError: for no curve, another suffix, or a curve with one class only.
  """
  path = Path(path)
  if path.suffix not in (".png", ".svg"):
    raise ValueError(f"cannot write {path.name}; end the path in .png or .svg")
  if not curves:
    raise ValueError("no curve to draw; pass at least one name with its scores")
  from matplotlib.figure import Figure

  rocs = {name: ranking.roc(*scored_pairs(*pair)) for name, pair in curves.items()}
  nonmembers = [int(roc.fp[-1]) for roc in rocs.values()]
  left = min(0.1, 1 / max(nonmembers))
  legend_rows = len(curves) // 2 + 1
  figure = Figure(figsize=(6.4, 5.2 + 0.2 * legend_rows), layout="constrained")
  axes = figure.add_subplot()
  rates = np.geomspace(left, 1, _POINTS)
  for number, (name, roc) in enumerate(rocs.items()):
    axes.plot(
      rates,
      [ranking.highest_tpr(roc.tp, roc.fp, rate) for rate in rates],
      color=f"C{number % 10}",
      # Every curve is thinner than those below it, and its gaps show them where they
      # are identical.
      linestyle=(0, (11 - number % 10, 4)) if number else "-",
      linewidth=max(1, 2.6 - 0.2 * number),
      drawstyle="steps-post",
      label=f"{name} (AUC {area(roc.tp, roc.fp):.3f})",
    )
  axes.plot(
    [left, 1], [left, 1], color="0.5", linewidth=1, linestyle=":", label="chance"
  )
  unresolved = min(1.0, 10 / min(nonmembers))
  axes.axvspan(left, unresolved, color="0.92", zorder=0)
  axes.text(
    np.sqrt(left * unresolved),
    0.02,
    "not resolvable",
    transform=axes.get_xaxis_transform(),
    ha="center",
    va="bottom",
    color="0.4",
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
  axes.grid(color="0.9", linewidth=0.6)
  figure.legend(loc="outside lower center", ncols=2, fontsize="small", handlelength=4)
  figure.savefig(path, dpi=150)

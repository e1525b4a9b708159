"""The report section on generators: sample quality and attacks on generators."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.auditing.pages import formatting, svg
from mixdef.auditing.pages.pictures import data_uri, mosaic_png

_QUERIES = {"single": "the record", "mixed": "mixtures of two records"}
_REFERENCES = {
  "natural": "undefended",
  "mixup": "trained with the target's defense",
}
_SCATTERS = {
  "dwp": ("share of ones", "Each dot is a column, by its share of ones."),
  "dwpre": (
    "F1 score of a regression",
    "Each dot is a column, by the F1 score of a logistic regression that predicts it "
    "from the others, trained on real or on synthetic rows and tested on held-out "
    "real rows.",
  ),
}


def generator_section(
  part: Mapping[str, Any] | None, pictures: Sequence[Any]
) -> dict[str, Any] | None:
  """Return the template's values for a generator; None without one.

  Args:
    part: `generator` of the report.
    pictures: images, each with title, x [H,W] or [H,W,C] in [0,1], scale and caption.
  """
  if not part:
    return None
  shown = {
    "pictures": [
      {
        "title": one.title,
        "caption": one.caption,
        "uri": data_uri(mosaic_png(one.x, one.scale)),
      }
      for one in pictures
    ],
    "utility": [_utility(row) for row in part.get("utility") or []],
    "columns": [
      _scatter(name, points) for name, points in (part.get("columns") or {}).items()
    ],
  }
  return shown | {
    "made": any(shown.values()),
    "adaptive": [_cell(row) for row in part.get("adaptive") or []],
    "theory": _theory(part.get("theory")),
  }


def _utility(row):
  spread = row.get("spread")
  return {
    "name": row["name"].replace("_", " "),
    "value": _rounded(row["value"], 4),
    "spread": "" if spread is None else f"±{_rounded(spread, 2)}",
    "real": _rounded(row.get("real"), 4),
    "note": row.get("note") or "",
  }


def _rounded(value, digits):
  return formatting.plain(None if value is None else float(f"{value:.{digits}g}"))


def _cell(row):
  return {
    "query": _QUERIES[row["query"]],
    "references": _REFERENCES[row["references"]],
    "auc": formatting.measured(row["auc"], row["auc_ci"]),
    "tpr": [formatting.rate_at(row["tpr"], fpr) for fpr in ("0.001", "0.01")],
    "queries": f"{row['num_members']:,} / {row['num_nonmembers']:,}",
    "targets": formatting.plain(row["num_targets"]),
  }


def _theory(theory):
  if not theory:
    return None
  moved = theory["proposition_1"]
  sides = []
  for title, key in (("Without the defense", "natural"), ("With the defense", "mixup")):
    one = theory[key]
    sides.append(
      {
        "title": title,
        "members": formatting.fixed(one["members"]["mean"], 2),
        "nonmembers": formatting.fixed(one["nonmembers"]["mean"], 2),
        "distance": formatting.fixed(one["total_variation"]["threshold"]),
        "bound": formatting.fixed(one["auc_bound"]["threshold"]),
        "auc": formatting.measured(one["auc"], one["auc_ci"]),
      }
    )
  return {
    "falls": formatting.measured(
      moved["members"]["share"], moved["members"]["ci"], formatting.percent
    ),
    "falls_of_others": formatting.percent(moved["nonmembers"]["share"]),
    "sides": sides,
  }


def _scatter(name, points):
  axis, caption = _SCATTERS[name]
  chart = scatter_chart(points["real"], points["synthetic"], axis=axis, name=name)
  return {
    "chart": chart,
    "caption": caption,
    "correlation": formatting.fixed(points["correlation"]),
    "rmse": formatting.fixed(points["rmse"]),
  }


def scatter_chart(
  real: Sequence[float], synthetic: Sequence[float], *, axis: str, name: str
) -> str:
  """Plot a point for each column, real against synthetic, with the diagonal.

  Args:
    real: [D], in [0,1].
    synthetic: [D], in [0,1].
    axis: label of the measured quantity.
    name: prefix of the ids in the SVG.

  Returns:
    An `<svg>` element.
  """

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=svg.MUTED, linewidth=1, linestyle=":")
    axes.scatter(real, synthetic, s=12, color=svg.SERIES[0], alpha=0.5, linewidths=0)
    largest = max(float(np.max(real)), float(np.max(synthetic)), 0.05)
    axes.set(
      xlabel=f"real: {axis}",
      ylabel=f"synthetic: {axis}",
      xlim=(-0.02 * largest, 1.05 * largest),
      ylim=(-0.02 * largest, 1.05 * largest),
      aspect="equal",
    )
    axes.grid()
    axes.set_axisbelow(True)

  alt = f"{axis} of {len(real)} columns, synthetic against real."
  return svg.draw(paint, size=(4.2, 4.0), name=name, alt=alt)

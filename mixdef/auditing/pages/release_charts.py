"""The chart of the named ROC curves of a release, with the bound of an epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.auditing.pages import charts, formatting, svg

_SIZE = (4.7, 4.2)
_BOUND = 3  # its series; the curves have 0, 1 and 2


def named_curves(
  curves: Mapping[str, Mapping[str, Any]],
  rules: Sequence[Mapping[str, Any]],
  bound: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Draw the curves of a report on logarithmic axes.

  Args:
    curves: as `release_curves.curves` returns them; "release" first.
    rules: of the attack of the first curve. Each is a line from the lower to the upper
      bound on its FPR, at its TPR.
    bound: as `release_bound.bound_of` returns it. The TPR that it excludes is shaded.

  Returns:
    {"chart", "legend"}, for `parts.drawing`.
  """
  left = min(curve["points"]["fpr"][0] for curve in curves.values())
  allowed = None if bound is None else bound["points"]

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    for number, curve in reversed(list(enumerate(curves.values()))):
      axes.step(
        curve["points"]["fpr"],
        np.maximum(curve["points"]["tpr"], left / 10),
        where="post",
        color=svg.SERIES[number],
        linewidth=2.0 if number == 0 else 1.4,
        linestyle=svg.dash(number),
      )
    named = [rule for rule in rules if rule["named"]]
    axes.hlines(
      [rule["tpr"] for rule in named],
      [max(rule["fpr_low"], left) for rule in named],
      [rule["fpr_high"] for rule in named],
      color=svg.SERIES[0],
      linewidth=1.2,
      alpha=0.6,
    )
    if allowed is not None:
      fpr, tpr = allowed["fpr"], allowed["tpr"]
      style = {"color": svg.SERIES[_BOUND], "linestyle": svg.dash(_BOUND)}
      axes.plot(fpr, tpr, linewidth=1.6, **style)
      axes.fill_between(fpr, tpr, 1.2, color=svg.SERIES[_BOUND], alpha=0.1, linewidth=0)
    unresolved = min(1.0, 10 / curves["release"]["nonmembers"])
    charts.frame(axes, left, unresolved=unresolved)

  names = ", ".join(curve["title"] for curve in curves.values())
  alt = f"True-positive rate against false-positive rate: {names}."
  legend = [
    {
      "name": curve["title"],
      "number": number,
      "value": f"AUC {formatting.measured(curve['auc'], curve['auc_ci'])['value']}",
    }
    for number, curve in enumerate(curves.values())
  ]
  if bound is not None and allowed is not None:
    stated = f"δ = {formatting.plain(bound['delta'])}"
    name = f"most that ε = {bound['epsilon']:.3g} allows"
    legend.append({"name": name, "number": _BOUND, "value": stated})
  return {
    "chart": svg.draw(paint, size=_SIZE, name="named", alt=alt),
    "legend": legend,
  }

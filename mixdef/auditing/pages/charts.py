"""The charts of an audit report, as inline SVG; the page provides the legend."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.auditing.pages import formatting, svg
from mixdef.auditing.pages.roc_bands import roc_band
from mixdef.metrics.plots import (
  frame_roc,
  nonmembers,
  roc_rates,
  step_curve,
  unresolved,
)
from mixdef.metrics.roc import Roc, scored_pairs

_WIDTH = 4.7
_BANDS = 3
_POINTS = 240
_BINS = 60
MOST_CLASSES = 24
"""Maximum number of classes in a chart; the table of the page lists all of them."""


def frame(axes: Any, left: float, *, unresolved: float) -> None:
  """Draw axes, chance and the range of an ROC in the style of the pages.

  Args:
    axes: of Matplotlib.
    left: smallest FPR shown.
    unresolved: FPR below which fewer than ten false positives are expected.
  """
  style = {"chance": svg.MUTED, "shade": svg.SHADE, "note": svg.MUTED, "grid": svg.GRID}
  frame_roc(axes, left, unresolved=unresolved, **style)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(lambda rate, _: formatting.percent(rate))
  axes.minorticks_off()
  axes.set_axisbelow(True)


def roc_chart(
  scores: Mapping[str, np.ndarray],
  members: np.ndarray,
  styles: Mapping[str, int],
  *,
  name: str = "roc",
  resamples: int = 200,
) -> str:
  """Draw the log-log ROC of every attack, the strongest with 95% bands.

  Args:
    scores: by attack, [S, N]; higher means member. NaN pairs are excluded.
    members: bool [S, N].
    styles: attack to the index of its series, 0 to 5, the strongest first: the first
      three have bands. Others are drawn thin and grey, and every curve is faint where
      its own non-members do not resolve the FPR.
    name: prefix of the ids in the SVG.
    resamples: number of resamples of records for the bands.

  Returns:
    An `<svg>` element.

  Raises:
    ValueError: if an attack has no score of one class.
  """
  outside = {name: nonmembers(rows, members) for name, rows in scores.items()}
  rates = roc_rates(outside.values(), points=_POINTS)
  floor = rates[0] / 10  # a logarithmic axis cannot show a TPR of 0

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    for attack in sorted(scores, key=lambda name: -styles.get(name, len(svg.SERIES))):
      roc = Roc.of(scores[attack], members)  # one at a time: as large as the scores
      tpr = np.maximum(step_curve(roc, rates), floor)
      first = int(np.searchsorted(rates, unresolved(outside[attack])))
      line = {"color": svg.MUTED, "linewidth": 0.7, "alpha": 0.5}
      if attack in styles:
        number = styles[attack]
        line = {"color": svg.SERIES[number], "linewidth": 1.7}
        if number < _BANDS:
          low, high = roc_band(scores[attack], members, rates, resamples=resamples)
          axes.fill_between(
            rates[first:],
            np.maximum(low, floor)[first:],
            np.maximum(high, floor)[first:],
            step="post",
            color=svg.SERIES[number],
            alpha=0.16,
            linewidth=0,
          )
        line["linestyle"] = svg.dash(number)
      axes.step(rates[first:], tpr[first:], where="post", **line)
      faint = line | {"alpha": 0.3, "linewidth": 0.7, "linestyle": "-"}
      axes.step(rates[: first + 1], tpr[: first + 1], where="post", **faint)
    frame(axes, rates[0], unresolved=min(map(unresolved, outside.values())))

  alt = (
    f"True-positive rate against false-positive rate of {len(scores)} attacks on "
    "logarithmic axes; the table of attacks lists the values."
  )
  return svg.draw(paint, size=(_WIDTH, 4.2), name=name, alt=alt)


def budget_chart(
  budget: Mapping[str, Sequence[Mapping[str, Any]]],
  styles: Mapping[str, int],
  *,
  name: str = "budget",
) -> str:
  """Draw AUC and TPR, with intervals, against the number of models.

  Args:
    budget: by attack, points of num_models, auc, auc_ci, tpr, tpr_ci, resolvable, fpr.
    styles: attack to the index of its series, 0 to 5.
    name: prefix of the ids in the SVG.

  Returns:
    An `<svg>` element. A rate that is not resolvable has a hollow mark.
  """
  models = sorted(
    {point["num_models"] for points in budget.values() for point in points}
  )
  fpr = next(point["fpr"] for points in budget.values() for point in points)

  def paint(figure: Any) -> None:
    panels = figure.subplots(2, sharex=True)
    for place, (attack, points) in enumerate(budget.items()):
      # Adjacent points are moved apart a little, so that no interval hides another.
      shift = 1.04 ** (place - (len(budget) - 1) / 2)
      at = np.array([point["num_models"] for point in points]) * shift
      for axes, figure_name in zip(panels, ("auc", "tpr"), strict=True):
        solid = [figure_name == "auc" or point["resolvable"] for point in points]
        _intervals(axes, at, points, figure_name, styles[attack], solid)
    panels[0].set(ylabel="AUC")
    panels[0].axhline(0.5, color=svg.MUTED, linewidth=1, linestyle=":")
    panels[1].set(
      ylabel=f"TPR at FPR {formatting.percent(fpr)}",
      xlabel="number of models",
      xscale="log",
      ylim=(0, None),
    )
    panels[1].axhline(fpr, color=svg.MUTED, linewidth=1, linestyle=":")
    panels[1].yaxis.set_major_formatter(lambda rate, _: formatting.percent(rate))
    panels[1].set_xticks(models, [str(count) for count in models])
    for axes in panels:
      axes.minorticks_off()
      axes.grid(axis="y")
      axes.set_axisbelow(True)

  alt = (
    f"AUC and true-positive rate of {', '.join(budget)} with {models[0]} to"
    f" {models[-1]} models."
  )
  return svg.draw(paint, size=(_WIDTH, 4.6), name=name, alt=alt)


def _intervals(
  axes: Any,
  at: np.ndarray,
  points: Sequence[Mapping[str, Any]],
  figure_name: str,
  number: int,
  solid: Sequence[bool],
) -> None:
  """Draw one line of points with their intervals."""
  color = svg.SERIES[number]
  values = np.array([point[figure_name] for point in points], dtype=np.float64)
  nothing = (None, None)
  low, high = np.array(
    [point[f"{figure_name}_ci"] or nothing for point in points], dtype=np.float64
  ).T
  axes.vlines(at, low, high, color=color, linewidth=1.2, alpha=0.6)
  axes.plot(at, values, color=color, linestyle=svg.dash(number), linewidth=1.5)
  axes.scatter(
    at,
    values,
    s=26,
    edgecolors=color,
    linewidths=1.3,
    facecolors=[color if filled else svg.PAPER for filled in solid],
    zorder=3,
  )


def histogram_chart(scores: np.ndarray, members: np.ndarray, *, name: str) -> str:
  """Draw the densities of the scores of members and of non-members.

  Scores beyond the central 99% are counted in the outermost bins, because likelihood
  ratios have tails that would put the rest into one bin.

  Args:
    scores: [S, N]; higher means member. NaN pairs are excluded.
    members: bool [S, N].
    name: prefix of the ids in the SVG.

  Returns:
    An `<svg>` element.

  Raises:
    ValueError: if there is no score of one class.
  """
  values, truth = scored_pairs(scores, members)
  finite = values[np.isfinite(values)]
  low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0.0, 0.0)
  if low == high:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, _BINS + 1)

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    for chosen, number in ((~truth, 1), (truth, 0)):
      axes.hist(
        np.clip(values[chosen], low, high),
        edges,
        density=True,
        histtype="stepfilled",
        facecolor=svg.SERIES[number],
        alpha=0.22,
      )
      axes.hist(
        np.clip(values[chosen], low, high),
        edges,
        density=True,
        histtype="step",
        edgecolor=svg.SERIES[number],
        linestyle=svg.dash(number),
        linewidth=1.4,
      )
    axes.set(xlabel="score (larger: more likely a member)", ylabel="density")
    axes.set(xlim=(low, high), yticks=[])
    axes.spines["left"].set_visible(False)

  alt = "Densities of the attack's scores for members and for non-members."
  return svg.draw(paint, size=(_WIDTH, 2.9), name=name, alt=alt)


def class_chart(classes: Sequence[Mapping[str, Any]], *, name: str = "classes") -> str:
  """Draw the AUC of every class with its interval, the most exposed first.

  Args:
    classes: label, num_records, auc and auc_ci of each; drawn in this order.
    name: prefix of the ids in the SVG.

  Returns:
    An `<svg>` element with the first `MOST_CLASSES` classes.
  """
  shown = classes[:MOST_CLASSES]

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    auc = np.array([row["auc"] for row in shown], dtype=np.float64)
    nothing = (None, None)
    low, high = np.array(
      [row["auc_ci"] or nothing for row in shown], dtype=np.float64
    ).T
    axes.hlines(places, low, high, color=svg.SERIES[0], linewidth=1.6, alpha=0.6)
    axes.scatter(auc, places, s=26, color=svg.SERIES[0], zorder=3)
    axes.axvline(0.5, color=svg.MUTED, linewidth=1, linestyle=":")
    axes.set_yticks(places, [shorten(row["label"]) for row in shown])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(
      xlabel="AUC within the class (dotted: chance)", ylim=(len(shown) - 0.4, -0.6)
    )
    axes.grid(axis="x")
    axes.set_axisbelow(True)

  alt = f"AUC of {len(shown)} classes with intervals, the most exposed first."
  size = (_WIDTH, 1.0 + 0.24 * len(shown))
  return svg.draw(paint, size=size, name=name, alt=alt)


def shorten(label: Any, most: int = 24) -> str:
  """Return a label on one line, truncated to the space in a chart.

  >>> shorten("a rather long label of a class")
  'a rather long label of …'
  """
  text = " ".join(str(label).split())
  return text if len(text) <= most else text[: most - 1] + "…"

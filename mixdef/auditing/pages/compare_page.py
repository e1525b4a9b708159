"""Several audits on one page: accuracy and leakage of each defense."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.auditing.facts import epsilon_remark
from mixdef.auditing.pages import formatting, svg
from mixdef.auditing.pages.audit_page import environment
from mixdef.auditing.pages.charts import shorten
from mixdef.auditing.side_by_side import comparison_row

_HEADLINES = ("lira_online", "lira_gan_discriminator")


def render_comparison(
  reports: Mapping[str, Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]
) -> str:
  """Write one self-contained HTML page that compares audits.

  Args:
    reports: by name, as docs/report.schema.json describes, all of records or all of
      persons; the name labels the row and the point.
    differences: results of a paired bootstrap, each with first and second (names of
      reports), attack, auc_difference = AUC(first) - AUC(second) and ci [lo, hi].

  Returns:
    The text of an HTML document.

  Raises:
    ValueError: for no report.
  """
  if not reports:
    raise ValueError("no report to compare; pass at least one by name")
  points = _points(reports)
  return (
    environment()
    .get_template("compare.html.jinja")
    .render(
      unit=next(iter(reports.values())).get("unit", "record"),
      rows=[_row(name, report) for name, report in reports.items()],
      chart={"chart": trade_off_chart(points)} if points else None,
      differences=[
        {
          "first": row["first"],
          "second": row["second"],
          "attack": row["attack"],
          "auc": formatting.measured(
            row["auc_difference"], row["ci"], formatting.signed
          ),
          "reading": _reading(row),
        }
        for row in differences
      ],
    )
  )


def trade_off_chart(points: Sequence[Mapping[str, Any]]) -> str:
  """Plot accuracy against leakage with error bars in both directions and names.

  Args:
    points: name, accuracy, spread (or None), auc and auc_ci of each audit.

  Returns:
    An `<svg>` element.
  """

  def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    accuracy = np.array([point["accuracy"] for point in points])
    auc = np.array([point["auc"] for point in points])
    spread = np.array([point["spread"] or 0 for point in points])
    low, high = np.array([point["auc_ci"] for point in points]).T
    bars = {"color": svg.SERIES[0], "linewidth": 1.2, "alpha": 0.55}
    axes.hlines(auc, accuracy - spread, accuracy + spread, **bars)
    axes.vlines(accuracy, low, high, **bars)
    axes.scatter(accuracy, auc, s=30, color=svg.SERIES[0], zorder=3)
    axes.axhline(0.5, color=svg.MUTED, linewidth=1, linestyle=":")
    axes.margins(0.12, 0.12)
    axes.set(xlabel="test accuracy", ylabel="AUC of the strongest attack")
    axes.xaxis.set_major_formatter(lambda rate, _: formatting.percent(rate))
    axes.locator_params(axis="x", nbins=5)
    axes.grid()
    axes.set_axisbelow(True)
    _name(
      axes,
      [
        (x, y, point["name"]) for x, y, point in zip(accuracy, auc, points, strict=True)
      ],
    )

  alt = f"AUC of the strongest attack against test accuracy of {len(points)} audits."
  return svg.draw(paint, size=(4.7, 4.0), name="trade-off", alt=alt)


def _name(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
  """Write every name next to its point, where it covers no other name or point."""
  figure = axes.figure
  figure.draw_without_rendering()  # the layout must be final before text is measured
  frame = axes.bbox
  dots = [axes.transData.transform((x, y)) for x, y, _ in points]
  taken: list[Any] = []
  for x, y, name in points:
    candidates = []
    for up in (8, -8, 17, -17, 26, -26):  # clear of the error bars
      for across, side in ((4, "left"), (-4, "right")):
        label = axes.annotate(
          shorten(name),
          (x, y),
          xytext=(across, up),
          textcoords="offset points",
          ha=side,
          va="center",
          fontsize=9,
        )
        box = label.get_window_extent()
        outside = max(0, frame.x0 - box.x0) + max(0, box.x1 - frame.x1)
        hidden = sum(box.overlaps(other) for other in taken)
        hidden += sum(box.contains(*dot) for dot in dots)
        candidates.append((hidden, outside, len(candidates), label, box))
    best = min(candidates, key=lambda candidate: candidate[:3])
    taken.append(best[4])
    for candidate in candidates:
      if candidate is not best:
        candidate[3].remove()


def _points(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return the audits, and the DP baseline of each that has one."""
  found = []
  for name, report in reports.items():
    baseline = report.get("dp_baseline") or {}
    reached = {"setting": baseline, "strongest": baseline.get("strongest")}
    for label, source in ((name, report), ("DP-SGD", reached)):
      row = comparison_row(label, source)
      if row["accuracy"] is None or row["auc"] is None:
        continue
      ends = row["auc_low"], row["auc_high"]
      found.append(
        {
          "name": label,
          "accuracy": row["accuracy"],
          "spread": row["accuracy_std"],
          "auc": row["auc"],
          "auc_ci": [math.nan if end is None else end for end in ends],
        }
      )
  return found


def _row(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
  row, attacks = comparison_row(name, report), report["attacks"]
  tpr = attacks[row["attack"]]["tpr"] if row["attack"] in attacks else {}
  lira = next((attacks[name] for name in _HEADLINES if name in attacks), {})
  spread = row["accuracy_std"]
  return {
    "name": name,
    "defense": formatting.plain(row["defense"]),
    "accuracy": formatting.percent(row["accuracy"]),
    "spread": "" if spread is None else formatting.percent(spread),
    "attack": row["attack"],
    "strongest": formatting.measured(row["auc"], (row["auc_low"], row["auc_high"])),
    "lira": formatting.measured(lira.get("auc"), lira.get("auc_ci")),
    "tpr": formatting.rate_at(tpr, "0.001"),
    "epsilon": formatting.fixed(row["epsilon"], 2)
    + epsilon_remark(report.get("setting") or {}),
  }


def _reading(row: Mapping[str, Any]) -> str:
  low, high = row["ci"]
  if low is None or high is None or low <= 0 <= high:
    return "no clear difference"
  return f"“{row['first'] if low > 0 else row['second']}” leaks more"

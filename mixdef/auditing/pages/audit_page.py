"""The audit report as a self-contained HTML page."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.auditing.facts import epsilon_remark
from mixdef.auditing.levels import lowest_resolvable
from mixdef.auditing.pages import charts, formatting, svg, tables
from mixdef.auditing.pages.generator_section import generator_section
from mixdef.auditing.pages.pictures import record_pictures
from mixdef.core import extras, validate
from mixdef.data.schema import Schema
from mixdef.metrics.summary import strongest_first

_LEVELS = {
  "high": ("High", 3),
  "moderate": ("Moderate", 2),
  "low": ("Low", 1),
  "too_few_records": ("Not graded, too few records", 0),
  "none_found": ("None found", 0),
}
_HIGHLIGHTED = 5


def render(
  report: Mapping[str, Any],
  *,
  scores: Mapping[str, ArrayLike],
  members: ArrayLike,
  audited: ArrayLike | None = None,
  x: Any = None,
  schema: Schema | None = None,
  pictures: Sequence[Any] = (),
) -> str:
  """Write the report as one self-contained HTML page.

  The page loads nothing: charts are inline SVG, images are data URIs, and the page's
  content policy forbids scripts and network access. All text of the report is escaped.
  Sections without content are omitted.

  Args:
    report: as docs/report.schema.json describes.
    scores: by attack, [S, N]; higher means member, NaN means no score. Drawn as curves.
      Only attacks of the report with a score of both classes are drawn.
    members: bool [S, N], True = member.
    audited: bool [N], the records to include; default all.
    x: [N, ...], to show the most exposed records; default none are shown.
    schema: how the columns of a table became x, to show their content.
    pictures: images from a generator, see `generator_section`.

  Returns:
    The text of an HTML document.

  Raises:
    ValueError: if shapes differ or the level of the verdict is unknown.
  """
  members = np.asarray(members)
  chosen = slice(None)
  if audited is not None:
    chosen = validate.mask(audited, members.shape[1:], "audited")
  drawn = {}
  for name in report["attacks"]:
    if name in scores:
      given = np.asarray(scores[name], dtype=np.float64)
      validate.mask(members, given.shape, f"members of {name}")
      truth = members[:, chosen][~np.isnan(given[:, chosen])]
      if truth.any() and not truth.all():
        drawn[name] = given[:, chosen]
  level, unit = report["verdict"]["level"], report.get("unit", "record")
  if level not in _LEVELS:
    raise ValueError(f"verdict.level={level!r}; use one of {', '.join(_LEVELS)}")

  attacks = {name: report["attacks"][name] for name in drawn}
  styles = number_series(_highlights(attacks))
  return (
    environment()
    .get_template("report.html.jinja")
    .render(
      report=report,
      unit=unit,
      level=_LEVELS[level],
      metrics=tables.key_metrics(report),
      table=tables.attack_table(report["attacks"]),
      roc=_roc(drawn, members[:, chosen], styles, report["attacks"]),
      generator=generator_section(report.get("generator"), pictures),
      budget=_budget(report.get("budget") or {}, styles),
      histogram=_histogram(report.get("strongest"), drawn, members[:, chosen]),
      records=_records(report.get("records"), x, schema, unit),
      classes=_classes(report.get("classes") or []),
      canaries=_canaries(report.get("canaries")),
      baseline=_baseline(report.get("dp_baseline"), report["attacks"]),
      audited=tables.self_audit_rows(report.get("self_audit")),
      setting=tables.setting_rows(report.get("setting") or {}, unit),
      added=tuple(
        (f"added-{one['name']}", one["title"], True)
        for one in report.get("sections") or ()
      ),
    )
  )


@functools.cache
def environment() -> Any:
  """Return the jinja environment, which escapes text and raises on missing values."""
  extras.require("jinja2")
  import jinja2

  made = jinja2.Environment(
    loader=jinja2.PackageLoader("mixdef.auditing.pages", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  made.filters["dashes"] = svg.dash_array
  made.filters["percent"] = formatting.percent
  made.filters["plain"] = formatting.plain
  return made


def number_series(
  names: Sequence[str], *, taken: Mapping[str, int] | None = None
) -> dict[str, int]:
  """Assign every attack a colour and dash pattern, as in `taken` where possible.

  Args:
    names: attacks of one chart; those beyond six series are omitted.
    taken: attack to the index of its series in another chart.

  Returns:
    Attack to the index of its series.

  >>> number_series(["rmia", "loss"], taken={"loss": 0})
  {'rmia': 1, 'loss': 0}
  """
  names = names[: len(svg.SERIES)]
  taken = taken or {}
  kept = {name: taken[name] for name in names if name in taken}
  free = (place for place in range(len(svg.SERIES)) if place not in kept.values())
  return {name: kept[name] if name in kept else next(free) for name in names}


def _highlights(attacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Select the best attack of each family, then the next best, strongest first."""
  ranked = strongest_first(attacks)
  best: dict[str, str] = {}
  for name in ranked:
    best.setdefault(attacks[name]["family"], name)
  first = [name for name in ranked if name in best.values()]
  chosen = [*first, *(name for name in ranked if name not in first)][:_HIGHLIGHTED]
  return [name for name in ranked if name in chosen]


def _roc(drawn, members, styles, attacks) -> dict[str, Any] | None:
  if not drawn:
    return None
  legend = []
  for name, number in styles.items():
    auc = formatting.measured(attacks[name]["auc"], attacks[name]["auc_ci"])
    legend.append({"name": name, "number": number, "value": f"AUC {auc['value']}"})
  return {
    "chart": charts.roc_chart(drawn, members, styles),
    "legend": legend,
    "others": len(drawn) - len(styles),
  }


def _budget(budget, styles) -> dict[str, Any] | None:
  budget = {name: points for name, points in budget.items() if points}
  if not budget:
    return None
  numbers = number_series(list(budget), taken=styles)
  legend = [{"name": name, "number": numbers[name], "value": ""} for name in numbers]
  chart = charts.budget_chart({name: budget[name] for name in numbers}, numbers)
  table = [
    {
      "attack": name,
      "models": point["num_models"],
      "auc": formatting.measured(point["auc"], point["auc_ci"]),
      "tpr": formatting.rate_at(
        {"": point | {"value": point["tpr"], "ci": point["tpr_ci"]}}, ""
      ),
    }
    for name, points in budget.items()
    for point in points
  ]
  fpr = formatting.percent(next(iter(budget.values()))[0]["fpr"])
  return {"chart": chart, "legend": legend, "table": table, "fpr": fpr}


def _histogram(strongest, drawn, members) -> dict[str, Any] | None:
  if not strongest or strongest["attack"] not in drawn:
    return None
  name = strongest["attack"]
  chart = charts.histogram_chart(drawn[name], members, name="histogram")
  legend = [
    {"name": "members", "number": 0, "value": ""},
    {"name": "non-members", "number": 1, "value": ""},
  ]
  return {"chart": chart, "legend": legend, "attack": name}


def _records(records, x, schema, unit) -> dict[str, Any] | None:
  if not records:
    return None
  pictures = None
  if x is not None:
    pictures = record_pictures(x, records["exposed"], schema)
  return {
    "attack": records["attack"],
    "note": records.get("note") or "",
    "fpr": formatting.percent(records["fpr"]),
    "quantiles": tables.quantile_rows(records["quantiles"], unit),
    "exposed": tables.exposed_rows(records["exposed"], pictures),
    "gallery": bool(pictures) and pictures[0]["uri"] is not None,
    "contents": bool(pictures) and pictures[0]["uri"] is None,
  }


def _classes(classes) -> dict[str, Any] | None:
  if not classes:
    return None
  ranked = sorted(classes, key=lambda row: -(row["auc"] or 0))
  return {
    "chart": charts.class_chart(ranked),
    "rows": tables.class_rows(ranked),
    "shown": min(len(ranked), charts.MOST_CLASSES),
  }


def _canaries(canaries) -> dict[str, Any] | None:
  if not canaries:
    return None
  strongest = canaries.get("strongest")
  return {
    "kind": canaries["kind"],
    "person": canaries.get("unit") == "person",
    "count": canaries["count"],
    "always": canaries.get("num_always") or 0,
    "table": tables.attack_table(canaries["attacks"]),
    "strongest": strongest
    and {
      "attack": strongest["attack"],
      **formatting.measured(strongest["auc"], strongest["auc_ci"]),
    },
    "quantiles": tables.quantile_rows(
      canaries.get("exposed_quantiles") or {}, canaries.get("unit") or "record"
    ),
    "fpr": formatting.percent(canaries.get("exposed_fpr")),
    "epsilon": _epsilon(canaries.get("epsilon")),
  }


def _epsilon(proved) -> dict[str, Any] | None:
  if not proved:
    return None
  bound, ceiling = (
    formatting.fixed(proved[name], 2) for name in ("lower_bound", "ceiling")
  )
  return {**proved, "bound": bound, "ceiling": ceiling}


def _baseline(baseline, attacks) -> dict[str, Any] | None:
  if not baseline:
    return None
  shared = [name for name in strongest_first(attacks) if name in baseline["attacks"]]
  both_sides = [(attacks[name], baseline["attacks"][name]) for name in shared]
  every = [row for both in both_sides for row in both]
  fpr = lowest_resolvable(dict(enumerate(every)))
  return {
    "given": baseline,
    "recipe": _recipe(baseline),
    "fpr": fpr and formatting.percent(float(fpr)),
    "epsilon": formatting.fixed(baseline["epsilon"], 2),
    "remark": epsilon_remark(baseline),
    "pairs": [
      {
        "attack": name,
        "auc": [formatting.measured(row["auc"], row["auc_ci"]) for row in both],
        "tpr": fpr and [formatting.rate_at(row["tpr"], fpr) for row in both],
      }
      for name, both in zip(shared, both_sides, strict=True)
    ],
    "candidates": [
      row | {"epsilon": formatting.fixed(row["epsilon"], 2), "recipe": _recipe(row)}
      for row in baseline.get("candidates") or []
    ],
    "canaries": _canaries(baseline.get("canaries")),
  }


def _recipe(found) -> str:
  """Return the recipe of a baseline in words; earlier reports knew only SGD."""
  return str(found.get("recipe", "sgd")).replace("_", " ")

"""The report on one released model as a self-contained HTML page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.auditing.pages import charts, formatting, tables
from mixdef.auditing.pages.audit_page import environment, number_series
from mixdef.auditing.pages.release_charts import named_curves
from mixdef.metrics.summary import strongest_first

_LEVELS = {
  "confounded": ("Not graded, hold-out differs", 0),
  "high": ("High", 3),
  "moderate": ("Moderate", 2),
  "low": ("Low", 1),
  "none_found": ("None found", 0),
}
_CURVES = 5
_SIDES = ("before", "after")
_TITLES = {
  "who": "Who can be found",
  "how_sure": "How certain this is",
  "compared": "Compared with what",
  "what_to_do": "What to do",
  "not_tried": "What was not tried",
}


def render_release(
  report: Mapping[str, Any], *, scores: Mapping[str, ArrayLike], members: ArrayLike
) -> str:
  """Write the report of `audit_release` as one self-contained HTML page.

  Args:
    report: the report.
    scores: by attack, [N], members and hold-out; drawn as curves.
    members: bool [N], True = member.

  Returns:
    The text of an HTML document.

  Raises:
    ValueError: if the level of the verdict is unknown.
  """
  level = report["verdict"]["level"]
  if level not in _LEVELS:
    raise ValueError(f"verdict.level={level!r}; use one of {', '.join(_LEVELS)}")
  drawn = {name: np.asarray(rows, np.float64)[None] for name, rows in scores.items()}
  ranked = strongest_first({name: report["attacks"][name] for name in drawn})
  styles = number_series(ranked[:_CURVES])
  return (
    environment()
    .get_template("release.html.jinja")
    .render(
      report=report,
      level=_LEVELS[level],
      titles=_TITLES,
      metrics=_metrics(report),
      priors=[_prior(row) for row in report["priors"]],
      named=named_curves(
        report["curves"],
        report["attacks"][report["primary"]]["rules"],
        report["bound"],
      ),
      curves=[_curve(curve) for curve in report["curves"].values()],
      roc={
        "chart": charts.roc_chart(drawn, np.asarray(members)[None], styles),
        "legend": [_entry(name, styles, report["attacks"]) for name in styles],
      },
      rules=[_rule(report, row) for row in report["attacks"][ranked[0]]["rules"]],
      strongest=ranked[0],
      attacks=[_attack(report, name) for name in ranked],
      exposed=[_exposed(row) for row in report["exposed"]],
      traced=any("trace_rank" in row for row in report["exposed"]),
      own=any(row["own_p"] is not None for row in report["exposed"]),
      naming=_naming(report),
      stable=_stable(report["stability"]),
      again=_again(report),
      audited=tables.self_audit_rows(report.get("self_audit")),
      setting=tables.setting_rows(report["setting"]),
    )
  )


def _metrics(report):
  counts = next(row for row in report["priors"] if row["prior"] == report["prior"])
  facts, price = report["setting"], report["price"]
  found = [
    (
      "Named, 19 of 20 right",
      f"{counts['shown']['0.95']:,}",
      f"up to {counts['possible']['0.95']:,} not excluded",
    ),
    (
      "Named, half right",
      f"{counts['shown']['0.5']:,}",
      f"up to {counts['possible']['0.5']:,} not excluded",
    ),
    (
      f"Training {report['unit']}s",
      f"{facts['members']:,}",
      f"{facts['holdout']:,} held out",
    ),
    (
      "Price",
      "no training" if not price["models"] else _models(price),
      _times(price),
    ),
  ]
  if "test_accuracy" in facts:
    found.append(
      (
        "Test accuracy",
        formatting.percent(facts["test_accuracy"]),
        f"{formatting.percent(facts['train_accuracy'])} on members",
      )
    )
  return found


def _models(price):
  imitators = price.get("imitators")
  return f"{price['models']} models" + (f", {imitators} imitators" if imitators else "")


def _times(price):
  if not price["models"]:
    return "the model's outputs alone"
  took = formatting.duration(price["seconds"])
  times = price.get("times")
  return took if times is None else f"{took}, {times:.3g} times the model's training"


def _entry(name, styles, attacks):
  auc = formatting.measured(attacks[name]["auc"], attacks[name]["auc_ci"])
  return {"name": name, "number": styles[name], "value": f"AUC {auc['value']}"}


def _prior(row):
  return {
    "prior": formatting.percent(row["prior"]),
    "cells": [
      {
        "value": f"{row['shown'][key]:,}",
        "interval": f"up to {row['possible'][key]:,}",
        "least": _share(row["certifiable"][key]),
      }
      for key in ("0.95", "0.5")
    ],
  }


def _share(value):
  return "none" if value > 1 else formatting.percent(value)


def _rule(report, row):
  return {
    "rank": row["rank"],
    "fpr": {
      "value": formatting.percent(row["rank"] / report["setting"]["holdout"]),
      "interval": (
        f"{formatting.percent(row['fpr_low'])} to {formatting.percent(row['fpr_high'])}"
      ),
    },
    "named": f"{row['named']:,}",
    "tpr": formatting.percent(row["tpr"]),
  }


def _attack(report, name):
  row = report["attacks"][name]
  return {
    "name": name,
    "about": row["about"],
    "note": row["note"],
    "auc": formatting.measured(row["auc"], row["auc_ci"]),
    "tpr": [formatting.rate_at(row["tpr"], fpr) for fpr in ("0.001", "0.01")],
    "named": f"{report['agreement']['named'][name]:,}",
    "seconds": formatting.duration(row["seconds"]),
  }


def _curve(curve):
  nominal = curve.get("nominal")
  return {
    "title": curve["title"],
    "meaning": curve["meaning"],
    "attack": curve["attack"],
    "targets": curve["targets"],
    "auc": formatting.measured(curve["auc"], curve["auc_ci"]),
    "tpr": formatting.rate_at(curve["tpr"], "0.01"),
    "nominal": nominal
    and {name: formatting.percent(rate) for name, rate in nominal["0.01"].items()},
  }


def _naming(report):
  """Return the attacks that name an exposed member, the most frequent first."""
  lists = [row["named_by"] for row in report["exposed"]]
  votes = {name: sum(name in row for row in lists) for name in report["attacks"]}
  return sorted((name for name in votes if votes[name]), key=lambda name: -votes[name])


def _stable(found):
  """Return the rows of the table of lists that were made again."""
  return [
    {
      "attack": row["attack"],
      "over": over,
      "named": ", ".join(f"{count:,}" for count in row["named"]),
      "in_all": f"{row['in_all']:,} of {row['in_any']:,}",
      "jaccard": formatting.percent(row["jaccard"]),
    }
    for row, over in (
      *(
        (row, f"{row['lists']} sets of {row['models']} reference models")
        for row in found["sets"]
      ),
      *((row, f"{row['lists']} seeds") for row in found["seeds"]),
    )
  ]


def _again(report):
  """Return the rows that compare the model with one without the most exposed."""
  again = report["without_exposed"]
  if again is None:
    return None
  rest = again["remaining"]
  rows = [
    ("Leakage", *(_LEVELS[again[side]["level"]][0] for side in _SIDES)),
    ("Named, 19 of 20 right", *(f"{again[s]['shown']['0.95']:,}" for s in _SIDES)),
    ("Named, half right", *(f"{again[s]['shown']['0.5']:,}" for s in _SIDES)),
    (
      f"Named of the {rest['members']:,} that remain",
      *(f"{rest[side]:,}" for side in _SIDES),
    ),
    ("AUC of the attack", *(formatting.fixed(again[side]["auc"]) for side in _SIDES)),
    (
      "Test accuracy",
      *(formatting.percent(again[side]["test_accuracy"]) for side in _SIDES),
    ),
  ]
  return {**again, "share": formatting.percent(again["share"]), "rows": rows}


def _exposed(row):
  return {
    **row,
    "p": f"{row['p']:.2g}",
    "own_p": formatting.MISSING if row["own_p"] is None else f"{row['own_p']:.2g}",
    "score": f"{row['score']:.3g}",
    "label": formatting.MISSING if row["label"] is None else row["label"],
  }

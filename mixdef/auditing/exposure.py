"""Describe the models of a report and the exposure of their records."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixdef.attacks import Catalogue, Signals
from mixdef.auditing.records import class_name
from mixdef.auditing.running import Findings
from mixdef.metrics.risk import RecordRisk, class_risk, exposure_fpr, record_risk
from mixdef.metrics.summary import strongest_first

_LISTED = 24


def describe(signals: Signals) -> dict[str, Any]:
  """Describe which model, or how many models, a report covers.

  Args:
    signals: signals of S models, with or without a target.

  Returns:
    {"model": index or None, "num_members", "num_nonmembers", "num_references", "text"}.
    The numbers count audited records of that model and are None for several models.
    num_references is 0 if no model is a reference for another.
  """
  models, target = len(signals.members), signals.target
  references = (~signals.related).sum(1) - 1
  if target is None and models > 1:
    counts = dict.fromkeys(("model", "num_members", "num_nonmembers", "num_references"))
    if not references.any():
      counts["num_references"] = 0
      text = f"{models} models pooled, none of which is a reference for another"
      return {**counts, "text": text}
    text = (
      f"the recipe, all {models} models pooled, each attacked with the others as "
      "references, not a single model"
    )
    return {**counts, "text": text}
  members = signals.members[target or 0, signals.audited]
  num_members, others = int(members.sum()), int((~members).sum())
  released = "" if target is None else ", the released model"
  count = int(references[target or 0])
  persons = " (persons)" if signals.unit == "person" else ""
  return {
    "model": target or 0,
    "num_members": num_members,
    "num_nonmembers": others,
    "num_references": count,
    "text": f"model {target or 0}{released}, {num_members:,} members / {others:,} "
    f"non-members{persons}, {count} reference model{'' if count == 1 else 's'}",
  }


def exposure(
  findings: Findings,
  signals: Signals,
  ids: np.ndarray,
  *,
  catalogue: Catalogue,
  seed: int,
  classes: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Measure the risk of records, or persons, and classes under the best attack.

  Args:
    findings: result of `run_attacks`.
    signals: the attacked signals. If they name a target, only those of its members that
      are found are listed; for one model without references, none are listed.
    ids: names of the records, or persons, [N].
    catalogue: the catalogue of the attacks; the best is among those that score all.
    seed: random seed of the bootstraps.
    classes: K names of the classes, which then replace the labels.

  Returns:
    The {"records", "classes"} of a report.
  """
  targets = range(len(signals.members)) if signals.target is None else [signals.target]
  most = max(row["num_targets"] for row in findings.metrics.values())
  whole = {
    name: row for name, row in findings.metrics.items() if row["num_targets"] == most
  }
  # An attack that queries the models scores only some of the records.
  partial = {
    name for name in whole if catalogue.reads(catalogue.plain_name(name)) == "models"
  }
  every = {name: row for name, row in whole.items() if name not in partial} or whole
  name, *_ = strongest_first(every)
  scores, members = findings.scores[name][targets], signals.members[targets]
  by_class = []
  if signals.labels is not None:
    by_class = [
      {**row, "label": class_name(row["label"], classes)}
      for row in class_risk(scores, members, signals.labels, seed=seed)
    ]
  if describe(signals)["num_references"] == 0:
    return {"records": None, "classes": by_class}
  fpr = exposure_fpr(every[name]["num_nonmembers"])
  risk = record_risk(scores, members, fpr=fpr)
  records = {
    "attack": name,
    "fpr": fpr,
    "note": _note(risk, fpr, signals),
    "quantiles": risk.quantiles(),
    "exposed": _exposed(risk, signals, ids, classes),
  }
  return {"records": records, "classes": by_class}


def _note(risk: RecordRisk, fpr: float, signals: Signals) -> str:
  """Describe which records the list names."""
  if signals.target is None:
    return (
      f"This describes the recipe, all {len(signals.members)} models pooled: the "
      f"model that you release may not have been trained on a listed {signals.unit}."
    )
  num_members, found = int((risk.times > 0).sum()), int(np.nansum(risk.found))
  return (
    f"Members of model {signals.target} only: {found} of its {num_members:,} members "
    f"score above the threshold that {100 * fpr:g}% of its non-members exceed; by "
    f"chance alone, about {fpr * num_members:.3g} would."
  )


def _exposed(
  risk: RecordRisk, signals: Signals, ids: np.ndarray, classes: Sequence[str] | None
) -> list[dict[str, Any]]:
  labels, ranked = signals.labels, risk.ranked()
  if signals.target is not None:
    ranked = ranked[risk.found[ranked] > 0]
  return [
    {
      "rank": rank,
      "index": int(i),
      "id": ids[i].item(),
      "label": None if labels is None else class_name(labels[i], classes),
      "rate": float(risk.found[i]),
      "score": float(risk.score[i]),
      "times": int(risk.times[i]),
    }
    for rank, i in enumerate(ranked[:_LISTED], 1)
  ]

"""The verdict of an audit in plain language: risk, confidence and recommendation."""

from typing import Any

from scipy.special import bdtrc

from mixdef.auditing.comparison import sentence
from mixdef.auditing.facts import epsilon_remark
from mixdef.auditing.levels import (
  LEVELS,
  level_of,
  pairs_needed,
  strongest,
  widened,
)
from mixdef.auditing.self_audit import contradiction

_HEADLINES = {
  "high": "Members can be distinguished from non-members. Treat membership as public.",
  "moderate": "A strong attacker can infer the membership of some training {rows}.",
  "low": "The attacks distinguish members from non-members only slightly.",
  "too_few_records": "There are too few {rows} to measure the leakage.",
  "none_found": "None of the attacks distinguished members from non-members.",
}

_UNUSUAL = {
  "high": "Unusual members can be distinguished from non-members, most others less so.",
  "moderate": "A strong attacker can infer the membership of some unusual {rows}.",
  "low": "Only unusual {rows} are exposed, and only slightly.",
}
"""Headlines for planted canaries that are more exposed than the audited records."""


_ON_AVERAGE = {
  "high": "On average the model treats its training {rows} very differently.",
  "moderate": "On average the model treats its training {rows} differently.",
  "low": "On average the model treats its training {rows} slightly differently.",
  "too_few_records": _HEADLINES["too_few_records"],
  "none_found": "On average the model treats its training {rows} like non-members.",
}
"""Headlines for one model without references, where no single record can be judged."""


def verdict(report: dict[str, Any]) -> dict[str, Any]:
  """Explain what the metrics of a report mean for a decision-maker.

  Args:
    report: a report with attacks, strongest, records, classes, canaries, dp_baseline,
      setting, target, and unit, if it is "person"; for GANs also generator, whose
      adaptive attacks are graded, too; for a run that audits itself also self_audit.

  Returns:
    {"level", "headline", "alarm", "compared", "who", "how_sure", "what_to_do"}; `alarm`
    is a sentence if the canaries of a run contradict its epsilon, and "" otherwise; the
    last four are lists of sentences. The level is the worst of the audited records',
    the adaptive attacks' on them and the canaries'. A report on one model excludes the
    canaries' level, because they were planted in other models.
  """
  best, canaries = report["strongest"], report["canaries"]
  baseline = report["dp_baseline"]
  graded = [min(map(level_of, (best, _adaptive(report))), key=LEVELS.index)]
  if canaries and report["target"]["model"] is None:
    planted = level_of(canaries["strongest"])
    graded += [] if planted == "too_few_records" else [planted]
  level = min(graded, key=LEVELS.index)
  if _alone(report):
    headline = (
      f"{_ON_AVERAGE[level]} Without reference models, no single {_unit(report)} can "
      "be judged."
    )
  else:
    headline = _HEADLINES[level] if level == graded[0] else _UNUSUAL[level]
  return {
    "level": level,
    "headline": headline.format(rows=_rows(report)),
    "alarm": contradiction(report.get("self_audit")),
    "compared": [sentence(row, baseline, _unit(report)) for row in _paired(report)],
    "who": _who(report, best),
    "how_sure": _how_sure(report, best),
    "what_to_do": _what_to_do(report, level),
  }


def _unit(report: dict[str, Any]) -> str:
  """Return what was audited, "record" or "person"; earlier reports do not say it."""
  return report.get("unit", "record")


def _rows(report: dict[str, Any]) -> str:
  return f"{_unit(report)}s"


def _alone(report: dict[str, Any]) -> bool:
  """Return whether no model has a reference."""
  return report["target"]["num_references"] == 0


def _adaptive(report: dict[str, Any]) -> dict[str, Any] | None:
  """Return the strongest adaptive attack on a GAN, or None."""
  rows = (report.get("generator") or {}).get("adaptive") or []
  return strongest({f"{r['query']}/{r['references']}": r for r in rows})


def _who(report: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
  lines, setting, target = [], report["setting"], report["target"]
  rows = _rows(report)
  if _alone(report):
    if "train_accuracy" in setting:
      lines.append(
        f"Only an average gap was measured: accuracy {setting['train_accuracy']:.3f} "
        f"on members, {setting['test_accuracy']:.3f} on non-members."
      )
    lines.append(
      f"Without reference models, memorized {rows} cannot be distinguished "
      "from easy ones."
    )
  elif best and best["tpr"] is not None:
    lines.append(
      f"At {_false_alarms(best['fpr'])}, the attack {best['tpr_attack']} identifies "
      f"{_share(best['tpr'])} of the members; random guessing would identify "
      f"{_share(best['fpr'])}."
    )
  records = report["records"]
  if target["model"] is None and records and not _by_chance(report):
    most, tenth = records["exposed"][0], records["quantiles"]["0.9"]
    share = "all of them" if tenth == 1 else f"{_share(tenth)} of them or more"
    others = f", and one {_unit(report)} in ten in {share}" if tenth else ""
    lines.append(
      f"The risk differs between {rows}: the most exposed one is identified in "
      f"{_hits(most)} of the {_models(most['times'])} trained on it{others} (at "
      f"{_false_alarms(records['fpr'])})."
    )
  classes = report["classes"]
  if len(classes) > 1 and classes[0]["auc_ci"][0] > classes[-1]["auc_ci"][1]:
    lines.append(
      f"Class {classes[0]['label']} is the most exposed (AUC "
      f"{classes[0]['auc']:.2f}), class {classes[-1]['label']} the least "
      f"({classes[-1]['auc']:.2f})."
    )
  canaries = report["canaries"]
  if canaries:
    found = canaries["strongest"]
    where = "" if target["model"] is None else " in other models of the recipe"
    rate = f"{found['attack']} has AUC {found['auc']:.3f}"
    if found["tpr"] is not None:
      rate = f"{_share(found['tpr'])} are identified at {_false_alarms(found['fpr'])}"
    what = "persons as canaries" if canaries.get("unit") == "person" else "canaries"
    lines.append(
      f"In the worst case that was measured, {canaries['kind']} {what} "
      f"planted{where} for the audit, {rate}."
    )
  return lines


def _by_chance(report: dict[str, Any]) -> bool:
  """Return whether false positives explain the list of exposed records.

  With several models, the most exposed record must be found more often than chance
  would find any record (Bonferroni). In one model, no single record can be
  distinguished from a false positive, but more of its members must be found than false
  positives explain.
  """
  records = report["records"]
  if not records or not records["exposed"]:
    return True
  if report["target"]["model"] is not None:
    attacks = report["attacks"]
    rate = attacks[records["attack"]]["tpr"][f"{records['fpr']:g}"]
    low, _ = widened(rate["value"], rate["trials"], len(attacks))
    return low <= records["fpr"]
  most = records["exposed"][0]
  as_often = bdtrc(_hits(most) - 1, most["times"], records["fpr"])
  return bool(report["setting"]["num_audited"] * as_often >= 0.05)


def _hits(record: dict[str, Any]) -> int:
  return round(record["rate"] * record["times"])


_LEAVE_OUT = "Consider excluding the most exposed {rows}, which the report lists."
_PLANT = "Plant canaries before relying on this result: averages hide the worst case."


def _how_sure(report: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
  setting, target, rows = report["setting"], report["target"], _rows(report)
  lines = [f"This describes {target['text']}."]
  if _unit(report) == "person":
    lines.append(
      f"{setting['num_audited']:,} persons are graded, not their records: an attack "
      "combines the records of each. Members and non-members are persons."
    )
  if best:
    low, high = best["auc_ci"]
    row = report["attacks"][best["attack"]]
    models = _models(row["num_targets"])
    if row["num_targets"] == 1:
      models = "model 0" if target["model"] is None else f"model {target['model']}"
    lines.append(
      f"The strongest of {best['num_attacks']} attacks, {best['attack']}, has AUC "
      f"{best['auc']:.3f} [{low:.3f}, {high:.3f}] over {row['num_members']:,} members "
      f"and {row['num_nonmembers']:,} non-members of {models}. AUC is the probability "
      "that a member scores above a non-member; 0.5 is random guessing. The interval "
      "is widened to account for selecting the strongest attack."
    )
  if adaptive := _adaptive(report):
    low, high = adaptive["auc_ci"]
    query, references = adaptive["attack"].split("/")
    kind = {"natural": "undefended", "mixup": "defended"}[references]
    lines.append(
      f"The strongest of {adaptive['num_attacks']} adaptive attacks, with {query} "
      f"queries and {kind} references, has AUC {adaptive['auc']:.3f} "
      f"[{low:.3f}, {high:.3f}]."
    )
  if setting.get("references"):
    lines.append(f"Reference models: {setting['references']}.")
  if not report["canaries"]:
    lines.append(
      f"No canaries were planted: the audit covers these {rows}, but not the "
      "worst case."
    )
  if setting.get("epsilon") is not None:
    delta = setting.get("delta")
    at = "" if delta is None else f" at delta {delta:.1g}"
    covered = "every attack, including those that were not tried"
    if _unit(report) == "person" and setting.get("unit") == "record":
      covered = "attacks on a single record, but not these attacks on persons"
    lines.append(
      "Training was differentially private: epsilon "
      f"{setting['epsilon']:.3g}{at}{epsilon_remark(setting)} bounds {covered}."
    )
    canaries = report["canaries"] or {}
    proved = canaries.get("epsilon")
    alike = canaries.get("unit", "record") == setting.get("unit", "record")
    if proved and alike and _disproves(proved, setting["epsilon"], delta):
      lines.append(
        f"The canaries prove that epsilon is at least {proved['lower_bound']:.3g} at "
        f"{proved['confidence']:.0%} confidence: the guarantee does not hold as "
        "stated."
      )
  elif "defense" in setting or "epsilon" in setting:
    lines.append(
      "There is no formal guarantee: an attack that was not tried may find more."
    )
  return lines


def _disproves(proved: dict[str, Any], epsilon: float, delta: float | None) -> bool:
  """Return whether a lower bound contradicts a guarantee with no larger delta."""
  return proved["lower_bound"] > epsilon and (delta or 0.0) <= proved["delta"]


def _what_to_do(report: dict[str, Any], level: str) -> list[str]:
  by_chance, alone = _by_chance(report), _alone(report)
  canaries, rows = report["canaries"], _rows(report)
  lines = {
    "high": [
      "Do not release this model if membership in its training set is confidential.",
      "Train with a defense or strengthen it, and audit again; dp_sgd (differentially "
      "private training) is the only one with a formal guarantee.",
      *([] if by_chance else [_LEAVE_OUT.format(rows=rows)]),
    ],
    "moderate": [
      "Decide with the data owners whether this level of leakage is acceptable.",
      "Audit a stronger defense in the same way, at the accuracy that you need.",
    ],
    "low": [
      "Release is defensible if this small leakage is acceptable."
      if by_chance
      else (
        f"Release is defensible if the exposure of the {rows} that the report "
        "lists is acceptable."
      ),
      *([] if canaries else [_PLANT]),
    ],
    "too_few_records": [
      f"Audit more {rows}, {pairs_needed(report['strongest']['num_attacks'])} "
      "members and as many non-members at least: with fewer, the interval would be "
      "wide even for a perfect attack."
    ],
    "none_found": [
      "The audit found no reason against release, which does not prove that nothing "
      "leaks.",
      "Check the resolution in the table: a small number of pairs cannot show small "
      "leakage.",
    ],
  }[level]
  if alone:
    lines.append(
      f"Train reference models on random subsets of the {rows} and audit again "
      f"with them: an average hides the few {rows} that are memorized."
    )
  elif canaries and report["target"]["model"] is not None:
    worst = level_of(canaries["strongest"])
    if LEVELS.index(worst) < LEVELS.index(level):
      lines.append(
        f"Note the risk of unusual {rows}: canaries planted in other models of the "
        f"recipe are graded {worst}, while the level above describes this model's own "
        f"{rows}."
      )
  if any(row["ci"][0] > 0 for row in _paired(report)):
    lines.append("Prefer the DP-SGD baseline, or a defense that leaks less than it.")
  return lines


def _paired(report: dict[str, Any]) -> list[dict[str, Any]]:
  """Return the comparisons with DP-SGD on the same records; empty if there is none."""
  return (report["dp_baseline"] or {}).get("paired") or []


def _models(count: int) -> str:
  return "1 model" if count == 1 else f"{count} models"


def _false_alarms(fpr: float) -> str:
  return f"one false positive per {round(1 / fpr):,} non-members"


def _share(rate: float) -> str:
  return f"{100 * rate:.1f}%"

"""The audit in plain words: who is at risk, how sure, what to do."""

import math
from collections.abc import Mapping
from typing import Any

from scipy.special import bdtrc

from mixdef.auditing.comparison import sentence
from mixdef.auditing.figures import clopper_pearson
from mixdef.training.ensemble import epsilon_remark

LEVELS = ("high", "moderate", "low", "too_few_records", "none_found")
"""From the most leakage to the least; without enough records there is no grade."""

_HIGH, _MODERATE = 0.7, 0.55


def widened(value: float, trials: float, comparisons: int) -> list[float]:
  """Return a 95 % interval that is valid for the best of several (Bonferroni).

  Args:
    value: the rate.
    trials: how many independent trials it is worth, see `intervals`.
    comparisons: m >= 1, how many rates it was picked from.

  Returns:
    Clopper and Pearson's interval [lo, hi] at confidence 1 - .05/m.

  >>> [round(bound, 3) for bound in widened(0.6, 2400, 20)]
  [0.569, 0.63]
  """
  confidence = 1 - 0.05 / comparisons
  return list(clopper_pearson(value * trials, trials, confidence=confidence))


def pairs_needed(comparisons: int) -> int:
  """Return from how many independent pairs on an audit can be graded at all.

  Perfect separation by the best of m attacks must have an interval above the bound of
  "high", (.025/m)^(1/pairs) > 0.7. Below, an attack that names everyone would not be
  told from a weaker one, and one that finds nothing would say nothing.

  >>> pairs_needed(1), pairs_needed(30)
  (11, 20)
  """
  return math.floor(math.log(0.025 / comparisons) / math.log(_HIGH)) + 1


def strongest(figures: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
  """Pick the attack with the largest AUC and widen its interval for the choice.

  Args:
    figures: {attack: summary}.

  Returns:
    {"attack", "auc", "auc_ci", "num_attacks", "pairs", "fpr", "tpr", "tpr_ci",
    "tpr_attack", "note"}; pairs are the attack's independent ones; the TPR is the
    largest any attack has at the lowest FPR that its pairs resolve, None if there is
    none. None without attacks.
  """
  if not figures:
    return None
  count = len(figures)
  name = max(figures, key=lambda key: figures[key]["auc"])
  best = figures[name]
  choice = f"the best of {count}: its interval is widened for that choice"
  found: dict[str, Any] = {
    "attack": name,
    "auc": best["auc"],
    "auc_ci": widened(best["auc"], best["auc_trials"], count),
    "num_attacks": count,
    "pairs": best["pairs"],
    "fpr": None,
    "tpr": None,
    "tpr_ci": None,
    "tpr_attack": None,
    "note": choice if count > 1 else "the only one",
  }
  fpr = lowest_resolvable(figures)
  if fpr is not None:
    rates = {
      key: row["tpr"][fpr]
      for key, row in figures.items()
      if row["tpr"][fpr]["resolvable"]
    }
    top = max(rates, key=lambda key: rates[key]["value"])
    rate = rates[top]
    found |= {
      "fpr": float(fpr),
      "tpr": rate["value"],
      "tpr_ci": widened(rate["value"], rate["trials"], count),
      "tpr_attack": top,
    }
  return found


def lowest_resolvable(figures: Mapping[Any, dict[str, Any]]) -> str | None:
  """Return the lowest FPR, as text, that some attack's pairs resolve."""
  known = [
    str(fpr)
    for row in figures.values()
    for fpr, rate in row["tpr"].items()
    if rate["resolvable"]
  ]
  return min(known, key=float) if known else None


def level_of(best: dict[str, Any] | None) -> str:
  """Grade a finding.

  high: the interval of the AUC lies above 0.7, or that of the TPR above ten times its
  FPR. moderate: above 0.55, or above three times. low: above 0.5, or above the FPR.
  none_found: neither interval excludes chance. The TPR's interval counts only from a
  TPR of one percent on. too_few_records: fewer pairs than `pairs_needed`.

  Deviation: these bounds are a convention of this library, for reading at a glance.

  >>> rest = {"pairs": 500, "num_attacks": 30}
  >>> level_of({"auc_ci": [0.69, 0.8], "tpr_ci": [0.02, 0.04], "fpr": 0.001, **rest})
  'high'
  >>> level_of({"auc_ci": [0.49, 0.52], "tpr_ci": None, "fpr": None, **rest})
  'none_found'
  """
  if best is None:
    return "none_found"
  if best["pairs"] < pairs_needed(best["num_attacks"]):
    return "too_few_records"
  low = best["auc_ci"][0]
  times = 0.0
  if best["tpr_ci"] is not None and best["tpr_ci"][0] >= 0.01:
    times = best["tpr_ci"][0] / best["fpr"]
  for level, area, factor in (("high", _HIGH, 10), ("moderate", _MODERATE, 3)):
    if low > area or times > factor:
      return level
  return "low" if low > 0.5 or times > 1 else "none_found"


_HEADLINES = {
  "high": "Training records can be told from others. Treat membership as public.",
  "moderate": "A strong attacker learns something about who was in the training set.",
  "low": "The attacks tell training records from others only slightly.",
  "too_few_records": "There are too few records to say how much leaks.",
  "none_found": "None of the attacks told training records from others.",
}

_UNUSUAL = {
  "high": "Unusual records can be told from others, most records much less.",
  "moderate": "A strong attacker learns something about unusual records.",
  "low": "Only unusual records stand out, and only slightly.",
}
"""Headlines where planted canaries are worse off than the audited records."""


def verdict(report: dict[str, Any]) -> dict[str, Any]:
  """Say what the figures of a report mean for someone who must decide.

  Args:
    report: with attacks, strongest, records, classes, canaries, dp_baseline, setting;
      of GANs with generator, whose adaptive attacks are graded, too.

  Returns:
    {"level", "headline", "compared", "who", "how_sure", "what_to_do"}; the last four
    are lists of sentences. The level is the worst of the audited records', the adaptive
    attacks' on them and the canaries'.
  """
  best, canaries = report["strongest"], report["canaries"]
  baseline = report["dp_baseline"]
  graded = [min(map(level_of, (best, _adaptive(report))), key=LEVELS.index)]
  if canaries:
    graded.append(level_of(canaries["strongest"]))
  level = min(graded, key=LEVELS.index)
  headline = _HEADLINES[level] if level == graded[0] else _UNUSUAL[level]
  return {
    "level": level,
    "headline": headline,
    "compared": [sentence(row, baseline) for row in _paired(report)],
    "who": _who(report, best),
    "how_sure": _how_sure(report, best),
    "what_to_do": _what_to_do(report, level),
  }


def _adaptive(report: dict[str, Any]) -> dict[str, Any] | None:
  """Return the strongest adaptive attack on a GAN, None without any."""
  rows = (report.get("generator") or {}).get("adaptive") or []
  return strongest({f"{r['query']}/{r['references']}": r for r in rows})


def _who(report: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
  lines = []
  if best and best["tpr"] is not None:
    lines.append(
      f"At {_false_alarms(best['fpr'])}, {best['tpr_attack']} names "
      f"{_share(best['tpr'])} of the training records; guessing names "
      f"{_share(best['fpr'])}."
    )
  records = report["records"]
  if records and not _by_chance(records, report["setting"]):
    most, tenth = records["exposed"][0], records["quantiles"]["0.9"]
    share = "every one" if tenth == 1 else f"{_share(tenth)} of them or more"
    others = f", and one record in ten in {share}" if tenth else ""
    lines.append(
      f"Records differ: the most exposed one is found in {_hits(most)} of the "
      f"{most['times']} models trained on it{others} (at "
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
  if canaries and canaries["strongest"]["tpr"] is not None:
    found = canaries["strongest"]
    lines.append(
      f"In the worst case looked at, {canaries['kind']} records planted for the audit, "
      f"{_share(found['tpr'])} are named at {_false_alarms(found['fpr'])}."
    )
  return lines


def _by_chance(records: dict[str, Any], setting: dict[str, Any]) -> bool:
  """Tell whether false alarms explain the most exposed of all records (Bonferroni)."""
  most = records["exposed"][0]
  as_often = bdtrc(_hits(most) - 1, most["times"], records["fpr"])
  return bool(setting["num_audited"] * as_often >= 0.05)


def _hits(record: dict[str, Any]) -> int:
  return round(record["rate"] * record["times"])


def _how_sure(report: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
  setting, lines = report["setting"], []
  if best:
    low, high = best["auc_ci"]
    row = report["attacks"][best["attack"]]
    lines.append(
      f"The strongest of {best['num_attacks']} attacks, {best['attack']}, has AUC "
      f"{best['auc']:.3f} [{low:.3f}, {high:.3f}] over {row['num_members']:,} members "
      f"and {row['num_nonmembers']:,} non-members of {row['num_targets']} models; 0.5 "
      f"is guessing."
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
    lines.append(f"The attacker's own models: {setting['references']}.")
  if not report["canaries"]:
    lines.append(
      "No canaries were planted: the worst case is not measured, only these records."
    )
  if setting.get("epsilon") is not None:
    delta = setting.get("delta")
    at = "" if delta is None else f" at delta {delta:.1g}"
    lines.append(
      f"Training was differentially private: epsilon {setting['epsilon']:.3g}{at}"
      f"{epsilon_remark(setting)} bounds every attack, also those not tried."
    )
    proved = (report["canaries"] or {}).get("epsilon")
    if proved and _disproves(proved, setting["epsilon"], delta):
      lines.append(
        f"The canaries prove an epsilon of {proved['lower_bound']:.3g} or more at "
        f"{proved['confidence']:.0%} confidence: the guarantee does not hold as stated."
      )
  elif "defense" in setting:
    lines.append(
      "There is no guarantee: an attack that was not tried may find more than these."
    )
  return lines


def _disproves(proved: dict[str, Any], epsilon: float, delta: float | None) -> bool:
  """Tell whether a lower bound contradicts a guarantee of no larger delta."""
  return proved["lower_bound"] > epsilon and (delta or 0.0) <= proved["delta"]


def _what_to_do(report: dict[str, Any], level: str) -> list[str]:
  lines = {
    "high": [
      "Do not release this model if being in its training set is a secret.",
      "Train with a defense, or with more of it, and audit again; "
      "dp_sgd is the only one with a guarantee.",
      "Consider leaving out the most exposed records listed below.",
    ],
    "moderate": [
      "Decide with the owners of the data whether this much may be learned.",
      "Compare a stronger defense at the accuracy you need, by the same audit.",
    ],
    "low": [
      "Release is defensible if the exposed records listed below are acceptable.",
      "Plant canaries before relying on it: averages hide the worst case.",
    ],
    "too_few_records": [
      "Audit more records: on so few, the interval of an attack would be wide even if "
      "it made no mistake.",
    ],
    "none_found": [
      "Nothing here speaks against release; it is no proof that nothing leaks.",
      "Read the resolution of the table: few pairs cannot show a small leak.",
    ],
  }[level]
  if level == "low" and report["canaries"]:
    lines = lines[:1]
  if any(row["ci"][0] > 0 for row in _paired(report)):
    lines.append("Prefer the DP-SGD baseline, or a defense that leaks less than it.")
  return lines


def _paired(report: dict[str, Any]) -> list[dict[str, Any]]:
  """Return the comparisons with DP-SGD on the same records, none without a baseline."""
  return (report["dp_baseline"] or {}).get("paired") or []


def _false_alarms(fpr: float) -> str:
  return f"one false alarm in {round(1 / fpr):,} non-members"


def _share(rate: float) -> str:
  return f"{100 * rate:.1f} %"

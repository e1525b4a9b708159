"""The level of a finding, and the interval of the strongest attack behind it."""

import math
from collections.abc import Mapping
from typing import Any

from mixdef.metrics.intervals import clopper_pearson
from mixdef.metrics.summary import strongest_first

LEVELS = ("high", "moderate", "low", "too_few_records", "none_found")
"""The levels from most to least leakage; with too few records there is no grade."""

_HIGH, _MODERATE = 0.7, 0.55


def widened(value: float, trials: float, comparisons: int) -> list[float]:
  """Return a 95% interval that is valid for the best of several (Bonferroni).

  Args:
    value: the rate.
    trials: number of independent trials that it is worth, see `intervals`.
    comparisons: m >= 1, the number of rates that it was picked from.

  Returns:
    Clopper and Pearson's interval [lo, hi] at confidence 1 - .05/m.

  >>> [round(bound, 3) for bound in widened(0.6, 2400, 20)]
  [0.569, 0.63]
  """
  confidence = 1 - 0.05 / comparisons
  return list(clopper_pearson(value * trials, trials, confidence=confidence))


def pairs_needed(comparisons: int) -> int:
  """Return the least number of independent pairs with which an audit can be graded.

  The interval of perfect separation by the best of m attacks must lie above the bound
  of "high", (.025/m)^(1/pairs) > 0.7. With fewer pairs, an attack that finds all
  members could not be distinguished from a weaker one, and one that finds none would
  not be informative.

  >>> pairs_needed(1), pairs_needed(30)
  (11, 20)
  """
  return math.floor(math.log(0.025 / comparisons) / math.log(_HIGH)) + 1


def strongest(metrics: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
  """Select the attack with the largest AUC and widen its interval for the choice.

  An attack with fewer pairs than `pairs_needed`, because it does not score many
  records, is skipped if others are available: by chance, such an attack often has the
  largest AUC.

  Args:
    metrics: {attack: summary}.

  Returns:
    {"attack", "auc", "auc_ci", "num_attacks", "pairs", "fpr", "tpr", "tpr_ci",
    "tpr_attack", "note"}, where pairs are the attack's independent ones, and the TPR is
    the largest of any attack at the lowest FPR that its pairs resolve, None if there is
    none. Returns None without attacks.
  """
  if not metrics:
    return None
  count = len(metrics)
  needed = pairs_needed(count)
  able = {key: row for key, row in metrics.items() if row["pairs"] >= needed}
  metrics = able or metrics
  name, *_ = strongest_first(metrics)
  best = metrics[name]
  choice = f"the best of {count}; its interval is widened to account for the selection"
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
    "note": choice if count > 1 else "the only attack",
  }
  fpr = lowest_resolvable(metrics)
  if fpr is not None:
    rates = {
      key: row["tpr"][fpr]
      for key, row in metrics.items()
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


def lowest_resolvable(metrics: Mapping[Any, dict[str, Any]]) -> str | None:
  """Return the lowest FPR, as text, that some attack's pairs resolve."""
  known = [
    str(fpr)
    for row in metrics.values()
    for fpr, rate in row["tpr"].items()
    if rate["resolvable"]
  ]
  return min(known, key=float) if known else None


def level_of(best: dict[str, Any] | None) -> str:
  """Grade a finding.

  high: the interval of the AUC lies above 0.7, or that of the TPR above ten times its
  FPR. moderate: above 0.55, or above three times. low: above 0.5, or above the FPR.
  none_found: neither interval excludes chance. The TPR's interval is used only for a
  TPR of at least one percent. too_few_records: fewer pairs than `pairs_needed`.

  Deviation: these bounds are a convention of this library for a quick overview.

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

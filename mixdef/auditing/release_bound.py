"""The largest share of members that a stated epsilon allows, and what exceeds it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.defenses import accounting
from mixdef.metrics.holdout import RANKS, dp_tpr
from mixdef.metrics.intervals import clopper_pearson

CONFIDENCE = 0.95
"""Confidence of the bounds on the FPR, for all rules and attacks together."""

_POINTS = 120


def bound_of(report: dict[str, Any]) -> dict[str, Any] | None:
  """Compare the rules of every attack with the stated epsilon.

  The FPR of a rule is at most `fpr_high`, and differential privacy allows at most a
  certain TPR there: that of `accounting.largest_tpr` if the model's guarantee says how
  epsilon was computed, and otherwise the larger `dp_tpr`. That is a probability, so the
  fraction of the members that are named is compared by its lower bound (Clopper and
  Pearson), at the same confidence for all rules and attacks together.

  Args:
    report: the report of `audit_release`, with its attacks, confounding and setting.

  Returns:
    None without an epsilon. Otherwise epsilon, delta and confidence; `why_not`, the
    reason why the rules are not compared, or ""; `points`, fpr and tpr of the curve,
    None if they are not compared; and `exceeded`, for each attack that names more than
    is allowed, the rule that exceeds it most: attack, rank, tpr, fpr_high, allowed.

  Deviation: the bound holds for records drawn at random; that the sizes of members and
    hold-out are fixed, and that members depend on each other through the model, is
    neglected [ours].
  """
  facts = report["setting"]
  epsilon, delta = facts.get("epsilon"), facts.get("delta") or 0.0
  if epsilon is None:
    return None
  stated = {"epsilon": epsilon, "delta": delta, "confidence": CONFIDENCE}
  allowed = _allowed(facts, epsilon, delta)
  if why_not := _why_not(report):
    return {**stated, "why_not": why_not, "points": None, "exceeded": []}
  fpr = np.geomspace(min(0.1, 1 / facts["holdout"]), 1, _POINTS)
  points = {"fpr": fpr.tolist(), "tpr": allowed(fpr).tolist()}
  attacks = report["attacks"]
  least = functools.partial(
    clopper_pearson,
    trials=facts["members"],
    confidence=1 - 2 * (1 - CONFIDENCE) / (len(RANKS) * len(attacks)),
  )
  over = (_most_over(name, row, allowed, least) for name, row in attacks.items())
  exceeded = [row for row in over if row is not None]
  return {**stated, "why_not": "", "points": points, "exceeded": exceeded}


def alarm(bound: dict[str, Any] | None) -> str:
  """Return what contradicts the stated epsilon most, or "" if nothing does."""
  if bound is None or not bound["exceeded"]:
    return ""
  worst = max(bound["exceeded"], key=lambda row: row["tpr"] - row["allowed"])
  return (
    f"{worst['attack']} names {worst['tpr']:.1%} of the members at a false-positive "
    f"rate of at most {worst['fpr_high']:.2%} ({bound['confidence']:.0%} confidence, "
    f"for all attacks together), but epsilon {bound['epsilon']:.3g} allows at most "
    f"{worst['allowed']:.1%}: it names more members than this epsilon allows. The "
    "guarantee does not hold as stated, or the hold-out differs from the members."
  )


def _why_not(report):
  if (report["confounding"] or {}).get("confounded"):
    return "the hold-out differs from the members by more than membership"
  if report["unit"] == "person" and report["setting"].get("unit") == "record":
    return "the epsilon is that of a record, and persons are scored"
  return ""


def _allowed(facts, epsilon, delta) -> Callable[[ArrayLike], np.ndarray]:
  """Return the function from FPR to the largest TPR."""
  known = facts.get("accounting")
  if not known:
    return lambda fpr: dp_tpr(fpr, epsilon, delta)
  names = ("noise_multiplier", "sampling_probability")
  counts = {"steps": int(known["steps"]), "bands": int(known.get("bands", 1))}
  training = {**counts, **{name: known[name] for name in names}}
  return lambda fpr: accounting.largest_tpr(fpr, **training)


def _most_over(name, row, allowed, least):
  """Return the rule of an attack that exceeds the bound most, or None.

  `least` returns the interval of a rate from the number of successes.
  """
  rates = allowed([rule["fpr_high"] for rule in row["rules"]]).tolist()
  found = [
    {**_of(rule), "allowed": rate}
    for rule, rate in zip(row["rules"], rates, strict=True)
  ]
  over = [
    rule
    for rule, kept in zip(found, row["rules"], strict=True)
    if least(kept["named"])[0] > rule["allowed"]
  ]
  if not over:
    return None
  return {"attack": name, **max(over, key=lambda rule: rule["tpr"] - rule["allowed"])}


def _of(rule):
  return {key: rule[key] for key in ("rank", "tpr", "fpr_high")}

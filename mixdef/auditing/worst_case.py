"""Attacks on planted canaries and on the DP-SGD baseline, for the same report."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mixdef.attacks import by_person
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.dp_baseline import POINT, MatchedDP
from mixdef.auditing.facts import of_one_run
from mixdef.auditing.levels import strongest
from mixdef.auditing.running import run_attacks
from mixdef.data import Dataset
from mixdef.metrics.one_run import epsilon_one_run, one_run_bound
from mixdef.metrics.risk import exposure_fpr, record_risk
from mixdef.training import Ensemble

_DELTA = 1e-5
_ENOUGH = 32  # references from which on a variance per record is worth estimating

_MATCHED = (
  "It is the candidate with the most noise whose accuracy is within one percentage "
  "point of the audited model's."
)
_MISSED = (
  "The candidate came within one percentage point of the audited model's accuracy "
  "when it was chosen, but the models trained with it afterwards do not."
)
_UNMATCHED = (
  "No candidate came within one percentage point of the audited model's accuracy; the "
  "most accurate one is shown, which is less accurate than the audited model."
)


def attack_canaries(
  ensemble: Ensemble,
  *,
  kind: str,
  views: Callable[[np.ndarray], np.ndarray] | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Attack the planted canaries with the customary variants of LiRA and label-only.

  These are LiRA with {all views, the record alone} x {phi, hinge}, and the label-only
  logistic regression on the correctness of the views. The best of them is a selection,
  and `strongest` widens its interval for that. Where records belong to groups, a canary
  is a person, whose records are combined before an attack is fitted (`by_group`), and
  the label-only attack, which asks about single records, is left out.

  Args:
    ensemble: models trained on `canaries.plant(...)`; members varies for canaries only.
    kind: the kind of canaries, for the report.
    views: views of each record.
    seed: random seed of the bootstraps.

  Returns:
    {"kind", "unit", "count", "num_always", "num_models", "attacks", "scores",
    "members", "strongest", "exposed_fpr", "exposed_quantiles", "epsilon"}. The scores
    [S, N] by attack and members [S, N] are for paired comparisons. epsilon holds the
    bound that the first model's canaries prove by a one-run audit with the first
    attack, a tenth of them guessed on either side, and the ceiling that perfect guesses
    would reach; it is missing unless canaries were drawn independently. The last three
    are missing if no attack could be run.

  Deviation: Aerni et al. fit one variance per record with 64 models; below 33 models
    the pooled variance is used, as LiRA's authors advise for few models.

  Reference: Aerni, Zhang, Tramer, "Evaluations of Machine Learning Privacy Defenses are
    Misleading", 2024, arXiv 2404.17399.
  """
  rows = np.flatnonzero(ensemble.data.audited)
  signals = by_person(_only(ensemble, rows).signals(views=views))
  attack = "lira_online" if len(ensemble) > _ENOUGH else "lira_online_fixed"
  names = [attack, f"{attack}(score='hinge')"]
  rounds = {"": (signals, [*names, "label_only_logreg"])}
  if signals.phi.shape[2] > 1:
    rounds = {
      ", all views": rounds[""],
      ", record alone": (signals.first_view(), names),
    }
  metrics, scores = {}, {}
  for suffix, (part, chosen) in rounds.items():
    findings = run_attacks(chosen, part, seed=seed)
    metrics |= {f"{name}{suffix}": row for name, row in findings.metrics.items()}
    scores |= {f"{name}{suffix}": row for name, row in findings.scores.items()}
  best = strongest(metrics)
  found: dict[str, Any] = {}
  if best:
    fpr = exposure_fpr(metrics[best["attack"]]["num_nonmembers"])
    risk = record_risk(scores[best["attack"]], signals.members, fpr=fpr)
    found |= {"exposed_fpr": fpr, "exposed_quantiles": risk.quantiles()}
    first = next(iter(scores))
    if signals.design == "bernoulli":  # a one-run bound needs independent draws
      found["epsilon"] = {
        "attack": first,
        **_one_run(scores[first][0], signals.members[0]),
      }
  return {
    "kind": kind,
    "unit": signals.unit,
    "count": int(signals.audited.sum()),
    "num_always": int(ensemble.data.always_member.sum()),
    "num_models": len(ensemble),
    "attacks": metrics,
    "scores": scores,
    "members": signals.members,
    "strongest": best,
    **found,
  }


def _one_run(scores: np.ndarray, members: np.ndarray) -> dict[str, float]:
  """Bound epsilon from one model; the attack and the guesses are fixed beforehand."""
  canaries = len(scores)
  side = max(1, int((~np.isnan(scores)).sum()) // 10)
  bound = epsilon_one_run(
    scores, members, guesses_in=side, guesses_out=side, delta=_DELTA
  )
  most = one_run_bound(canaries, guesses=2 * side, correct=2 * side, delta=_DELTA)
  return {
    "lower_bound": bound,
    "ceiling": most,
    "guesses": 2 * side,
    "delta": _DELTA,
    "confidence": 0.95,
  }


def _only(ensemble: Ensemble, rows: np.ndarray) -> Ensemble:
  """Return the same models with a subset of the records, to save queries."""
  part = ensemble.data.select(rows)
  return dataclasses.replace(ensemble, data=part, members=ensemble.members[:, rows])


def attack_dp_baseline(
  matched: MatchedDP,
  ensemble: Ensemble,
  attacks: Sequence[str],
  *,
  views: Callable[[np.ndarray], np.ndarray] | None = None,
  population: Dataset | None = None,
  canaries: dict[str, Any] | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Attack DP-SGD models of matched accuracy in the same way as the defended ones.

  Args:
    matched: the chosen candidate.
    ensemble: its models, on the same subsets as the defended ones.
    attacks: names of attacks; those that query the models are skipped.
    views: views of each record.
    population: records that no model trained on.
    canaries: result of `attack_canaries` on the baseline.
    seed: random seed of the bootstraps.

  Returns:
    The entry `dp_baseline` of a report, with "scores" [S, N] by attack and "members"
    [S, N] for paired comparisons; of persons, if the records have groups.
  """
  records = ensemble.signals(views=views, population=population)
  signals = by_person(records)
  findings = run_attacks(attacks, signals, seed=seed)
  reached = accuracies(records)
  kept = reached["test_accuracy"] >= matched.target_accuracy - POINT
  note = _MATCHED if kept else _MISSED
  return {
    "recipe": matched.recipe,
    "noise_multiplier": matched.noise_multiplier,
    "learning_rate": matched.learning_rate,
    "matched": matched.matched and kept,
    "defense_test_accuracy": matched.target_accuracy,
    "candidates": matched.candidates,
    **{name: reached[name] for name in ("test_accuracy", "test_accuracy_std")},
    **of_one_run(ensemble.guarantee),
    "attacks": findings.metrics,
    "scores": findings.scores,
    "members": signals.members,
    "strongest": strongest(findings.metrics),
    "canaries": canaries,
    "note": note if matched.matched else _UNMATCHED,
  }

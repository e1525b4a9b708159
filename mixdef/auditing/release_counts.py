"""The report of a release audit: counts, bounds and lists from the scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdef.attacks import Signals, agreement, log_loss_ratio, lt_iqr, tail_tnr
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.released import Released
from mixdef.core.learner import Learner
from mixdef.metrics.false_discoveries import conformal_p, fdr_list
from mixdef.metrics.holdout import Rules
from mixdef.models import adapt

SCHEMA = 1
PRIORS = (0.5, 0.1, 0.01)
"""Priors at which a report counts, besides the one that was asked for."""

PRECISIONS = (0.95, 0.5)
"""Precisions of the lists whose lengths set the level."""

FDR = 0.05
_EXPOSED = 20  # members in the table
_PRIMARY = (
  *("cmia", "bavaria", "lira_online"),
  *("quantile_network", "attack_p", "loss_threshold"),
)
_FNR = 0.01  # of the forecast from losses


def counted(
  scores: Mapping[str, np.ndarray],
  metrics: Mapping[str, dict[str, Any]],
  signals: Signals,
  *,
  prior: float,
  seed: int,
  own_p: np.ndarray | None = None,
) -> dict[str, Any]:
  """Count and bound what the attacks found.

  Args:
    scores: [N] by attack, of members and hold-out.
    metrics: by attack, as `run_attacks` returns them.
    signals: of the released model, which is model 0, and of its references.
    prior: fraction of members among an attacker's candidates.
    seed: random seed of the simulated pools.
    own_p: [N] p-value of each record against its own law; see `release_curves.own_p`.

  Returns:
    The parts of the report that follow from the scores.
  """
  member = signals.members[0]
  rules = {
    name: Rules.of(values[member], values[~member], num_attacks=len(scores))
    for name, values in scores.items()
  }
  primary = next((name for name in _PRIMARY if name in scores), next(iter(scores)))
  own = scores[primary]
  method = "by" if primary == "cmia" else "bh"  # its scores depend on each other
  listed = fdr_list(
    own[member], own[~member], prior=prior, q=FDR, method=method, seed=seed
  )
  agreed, rank = _agreement(scores, rules, member)
  named = dict(zip(scores, agreed.named, strict=True))
  return {
    "schema": SCHEMA,
    "kind": "release",
    "prior": prior,
    "attacks": {
      name: {**metrics[name], "rules": _rows(rules[name])} for name in scores
    },
    "primary": primary,
    "priors": [
      _counts(rules, value) for value in sorted({prior, *PRIORS}, reverse=True)
    ],
    "list": {"attack": primary, "q": FDR, "method": method, **listed.to_json()},
    "exposed": _exposed(own, signals, own_p, named),
    "agreement": {
      "rank": rank,
      "named": dict(zip(scores, agreed.sizes.tolist(), strict=True)),
      "by_any": agreed.union,
      "by_half": int((agreed.votes >= max(1, len(scores) / 2)).sum()),
      "by_all": agreed.intersection,
      "jaccard": _jaccard(agreed.jaccard),
    },
    "forecast": _forecast(signals, member),
    "redacted": False,
  }


def ids_of(signals: Signals) -> np.ndarray:
  """Return the names of the records, or of the persons, [N]."""
  return np.arange(signals.phi.shape[1]) if signals.ids is None else signals.ids


def facts_of(
  signals: Signals, model: Released, learner: Learner | None
) -> dict[str, Any]:
  """Return facts of the model and the records for the report.

  Args:
    signals: of the released model, which is model 0; records or persons.
    model: the released model.
    learner: its recipe, or None for that of the `Run`.
  """
  member, others, run = signals.members[0], signals.population, model.run
  recipe = run.learner if learner is None and run is not None else learner
  return {
    **({} if run is None else {"dataset": run.data.name}),
    **({} if recipe is None else _named(recipe)),
    "members": int(member.sum()),
    "holdout": int((~member).sum()),
    "population": 0 if others is None else others.phi.shape[1],
    "queries": f"{signals.phi.shape[2]} views per record",
    **({} if signals.correct is None else _accuracies(signals)),
    **({} if run is None else run.guarantee),
  }


def _named(learner):
  """Return the network and the defense of a learner as text."""
  if learner.model is None:
    return {"model": learner.text}
  network = adapt(learner.model).text
  return {"model": network, "defense": learner.text.removeprefix(f"{network}|")}


def _forecast(signals, member):
  """Estimate from losses whether reference models would find more."""
  loss = signals.loss[0, :, 0]
  tnr = tail_tnr(loss[member], loss[~member], fnr=_FNR)
  means = loss[member].mean(), loss[~member].mean()
  return {
    "fnr": _FNR,
    "tnr": None if np.isnan(tnr) else tnr,
    "log_loss_ratio": log_loss_ratio(loss[member], loss[~member])
    if min(means) > 0
    else None,
  }


def _jaccard(pairs):
  """Return the median overlap of the lists of two attacks, None for empty lists."""
  values = pairs[np.triu_indices(len(pairs), 1)]
  values = values[~np.isnan(values)]
  return float(np.median(values)) if values.size else None


def rank_by_trace(exposed: list[dict[str, Any]], model: Released) -> None:
  """Add each member's rank by the loss trace of the run, the most exposed first."""
  run = model.run
  if run is None or run.trace is None or model.groups is not None:
    return
  rows = np.flatnonzero(run.members & ~run.data.auxiliary)
  order = np.argsort(-lt_iqr(run.trace.losses[:, rows]), kind="stable")
  ranks = {
    run.data.ids[row].item(): rank for rank, row in enumerate(rows[order].tolist(), 1)
  }
  for row in exposed:
    row["trace_rank"] = ranks.get(row["id"])


def _accuracies(signals):
  found = accuracies(signals.only_models([0]))
  return {name: value for name, value in found.items() if value is not None}


def _rows(rules):
  """Return the rules of an attack as JSON values."""
  columns = {
    "rank": rules.rank,
    "fpr_low": rules.low,
    "fpr_high": rules.high,
    "named": rules.named,
    "tpr": rules.tpr,
  }
  return [
    dict(zip(columns, row, strict=True))
    for row in zip(*(column.tolist() for column in columns.values()), strict=True)
  ]


def _counts(rules, prior):
  """Return the members on lists of each precision, by the best attack."""
  first = next(iter(rules.values()))
  return {
    "prior": prior,
    **{
      kind: {
        f"{precision:g}": max(
          getattr(rule, kind)(precision, prior) for rule in rules.values()
        )
        for precision in PRECISIONS
      }
      for kind in ("shown", "possible")
    },
    "certifiable": {
      f"{precision:g}": first.certifiable(precision, prior) for precision in PRECISIONS
    },
    "beats_guessing": any(rule.beats_guessing for rule in rules.values()),
  }


def _exposed(values, signals, own_p, named):
  """Return the members with the largest scores, and which attacks name each."""
  member, labels, ids = signals.members[0], signals.labels, ids_of(signals)
  p = conformal_p(values, values[~member])
  places = np.flatnonzero(member & ~np.isnan(values))
  best = places[np.argsort(-values[places], kind="stable")][:_EXPOSED]
  place_of = np.cumsum(member) - 1
  rows = []
  for place in best:
    by = [name for name, found in named.items() if found[place_of[place]]]
    known = own_p is not None and not np.isnan(own_p[place])
    rows.append(
      {
        "id": np.asarray(ids)[place].item(),
        "label": None if labels is None else int(labels[place]),
        "p": float(p[place]),
        "own_p": float(own_p[place]) if known else None,
        "score": float(values[place]),
        "attacks": len(by),
        "named_by": by,
      }
    )
  return rows


def _agreement(scores, rules, member):
  """Compare the lists of all attacks at an FPR of about one percent."""
  shortest = min(rules.values(), key=lambda rule: len(rule.rank))
  wanted = max(1, round(0.01 * shortest.num_holdout))
  rank = int(shortest.rank[shortest.rank <= wanted][-1])
  table = np.stack(list(scores.values()))
  return agreement(table[:, member], table[:, ~member], rank), rank

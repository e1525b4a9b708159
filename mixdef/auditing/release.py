"""Audit one trained model before its release."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Signals
from mixdef.auditing import released
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.confounding import blind_test
from mixdef.auditing.facts import plain_facts
from mixdef.auditing.prices import Price, with_references
from mixdef.auditing.release_verdict import release_verdict
from mixdef.auditing.running import Findings, run_attacks
from mixdef.core import validate
from mixdef.core.files import path_of, whole_file, write_json, write_text
from mixdef.core.learner import Learner
from mixdef.core.randomness import check_seed
from mixdef.metrics.false_discoveries import conformal_p, fdr_list
from mixdef.metrics.holdout import Rules

SCHEMA = 1
PRIORS = (0.5, 0.1, 0.01)
"""Priors at which a report counts, besides the one that was asked for."""

PRECISIONS = (0.95, 0.5)
"""Precisions of the lists whose lengths set the level."""

FDR = 0.05
_EXPOSED = 20  # members in the table
_PRIMARY = ("lira_online", "lira_offline_fixed", "attack_p", "loss_threshold")
_FAMILIES = ("threshold", "reference")


@dataclasses.dataclass(frozen=True)
class ReleaseAudit:
  """The result of `audit_release`.

  Attributes:
    report: content of report.json.
    scores: [N1 + n0] by attack, members first; NaN where a record was not scored. With
      groups, one score per person.
    members: bool [N1 + n0].
    ids: names of the records, or of the persons.
    out: the folder that the audit was given, if any; `save` writes there by default.
  """

  report: dict[str, Any]
  scores: dict[str, np.ndarray]
  members: np.ndarray
  ids: np.ndarray
  out: pathlib.Path | None = None

  def to_json(self) -> dict[str, Any]:
    """Return the content of report.json."""
    return self.report

  def html(self) -> str:
    """Return the report as one self-contained page."""
    from mixdef.auditing.pages.release_page import render_release

    return render_release(self.report, scores=self.scores, members=self.members)

  def save(
    self, folder: str | pathlib.Path | None = None, *, redact: bool = False
  ) -> pathlib.Path:
    """Write report.html, report.json and scores.npz; return the page's path.

    Args:
      folder: where; by default the `out` of the audit.
      redact: leave out everything about single records: the table of exposed members,
        and scores.npz.

    Raises:
      ValueError: if no folder is given, and the audit was given none.
    """
    folder = self.out if folder is None else path_of(folder, "folder")
    if folder is None:
      raise ValueError("the audit was given no out: name a folder, save('runs/mine')")
    shown = self.redacted() if redact else self
    if not redact:
      with whole_file(folder / "scores.npz") as file:
        np.savez_compressed(
          file, ids=self.ids, member=self.members, allow_pickle=False, **self.scores
        )
    write_json(folder / "report.json", shown.report)
    page = folder / "report.html"
    write_text(page, shown.html())
    return page

  def redacted(self) -> "ReleaseAudit":
    """Return the audit without anything about single records."""
    report = {**self.report, "exposed": [], "redacted": True}
    return dataclasses.replace(self, report=report)


def audit_release(
  source: Any,
  *,
  members: Any = None,
  holdout: Any = None,
  population: Any = None,
  groups: Any = None,
  learner: Learner | None = None,
  training: Mapping[str, Any] | None = None,
  budget: str = "free",
  prior: float = 0.1,
  attacks: Any = None,
  views: Callable[[np.ndarray], np.ndarray] | None = None,
  setting: Mapping[str, Any] | None = None,
  seed: int = 0,
  out: str | pathlib.Path | None = None,
  progress: bool = False,
) -> ReleaseAudit:
  """Attack one trained model, and report which of its training records can be found.

  All members are scored, so how many an attack names is a count. How many non-members
  it would name is bounded by the hold-out, which must come from the same source and
  must not have been used for training, tuning or early stopping.

  Args:
    source: the model: a `Run`; a function x [B,...] -> logits or log-probabilities
      [B,K]; or only its outputs, as an npz file or a mapping with the arrays
      `member_logits` [N1,K] (or [N1,Q,K] of Q views), `member_labels` [N1],
      `holdout_logits`, `holdout_labels`, and optionally those of a population, groups,
      ids, and the records x for the test of the hold-out.
    members: the training records, a `Dataset` or (x, y); default those of the `Run`.
    holdout: the hold-out, likewise; default the test records of the `Run`.
    population: further non-members, disjoint from the hold-out, on which attacks are
      fitted.
    groups: [N1 + n0] the person that each record belongs to, members first; default
      those of the data sets. Persons are then scored, instead of records.
    learner: recipe of the reference models; default that of the `Run`.
    training: `epochs` and `batch_size` of the released model, as in `fit`; default
      those of the `Run`.
    budget: what may be trained, see `Price`: "free" or "shadows:64".
    prior: fraction of members among the candidates of an attacker, in (0, 1).
    attacks: names of attacks, as in `audit`; default all that threshold the model's own
      confidence or compare it with references.
    views: views of each record, see `attacks.VIEWS`.
    setting: facts for the report; see `plain_facts`.
    seed: random seed.
    out: folder of the reference models and of finished attacks, from which a killed
      audit resumes.
    progress: whether to show the progress of trainings and queries.

  Returns:
    The `ReleaseAudit`; `audit_release(...).save(folder)` writes the report.

  Raises:
    ValueError: for a missing input, records of the two sides that differ in shape or
      were scored with different numbers of references, or no attack that could be run.

  Guarantee: a lower bound on what an attacker with these means finds, at 95 %
    confidence over the choice of the hold-out. It is not a proof of safety; only
    differentially private training bounds attacks that were not tried.
  """
  seed, price = check_seed(seed), Price.parse(budget)
  if not 0 < validate.real(prior, "prior") < 1:
    raise ValueError(f"prior={prior}; pass a fraction in (0, 1), not a percentage")
  given = plain_facts(setting)
  out = None if out is None else path_of(out, "out")
  if isinstance(source, Signals):
    raise ValueError("audit outputs of several models with mixdef.audit(target=)")
  model = released.read(
    source,
    members=members,
    holdout=holdout,
    population=population,
    groups=groups,
    views=views,
  )
  blind = None
  if model.x is not None:
    labels = model.signals.labels
    blind = blind_test(model.x, labels, model.members, groups=model.groups, seed=seed)
  signals, references = with_references(
    price,
    model,
    learner=learner,
    training=training,
    views=views,
    seed=seed,
    out=out,
    progress=progress,
  )
  if model.groups is not None:
    signals = signals.by_group(model.groups)
  findings = run_attacks(
    _names(attacks),
    signals,
    seed=seed,
    out=None if out is None else out / "attacks",
  )
  if not findings.metrics:
    reasons = [f"{name}: {why}" for name, why in findings.not_run.items()]
    raise ValueError(f"no attack could be run; {'; '.join(reasons)}")
  return _reported(
    findings,
    signals,
    price=price,
    prior=prior,
    unit="record" if model.groups is None else "person",
    confounding=blind,
    references=references,
    setting=given,
    run=model.run,
    seed=seed,
    out=out,
  )


def _names(attacks):
  if attacks is not None:
    return ATTACKS.names(attacks)
  return [
    attack.__name__ for family in _FAMILIES for attack in ATTACKS.families[family]
  ]


def _reported(
  findings: Findings,
  signals,
  *,
  price,
  prior,
  unit,
  confounding,
  references,
  setting,
  run,
  seed,
  out,
) -> ReleaseAudit:
  """Count, bound and explain what the attacks found."""
  member = signals.members[0]
  scores = {name: rows[0] for name, rows in findings.scores.items()}
  rules = {
    name: Rules.of(values[member], values[~member], num_attacks=len(scores))
    for name, values in scores.items()
  }
  priors = sorted({prior, *PRIORS}, reverse=True)
  primary = next((name for name in _PRIMARY if name in scores), next(iter(scores)))
  ids = np.arange(len(member)) if signals.ids is None else signals.ids
  listed = fdr_list(
    scores[primary][member], scores[primary][~member], prior=prior, q=FDR, seed=seed
  )
  report: dict[str, Any] = {
    "schema": SCHEMA,
    "kind": "release",
    "title": str(setting.get("model", "released model")),
    "unit": unit,
    "price": {"name": str(price), **references},
    "prior": prior,
    "attacks": {
      name: {**findings.metrics[name], "rules": _rows(rules[name])} for name in scores
    },
    "primary": primary,
    "priors": [_counts(rules, value) for value in priors],
    "list": {"attack": primary, "q": FDR, **listed.to_json()},
    "exposed": _exposed(scores, rules, primary, member, ids, signals.labels),
    "agreement": _agreement(scores, rules, member),
    "confounding": confounding,
    "setting": {
      "num_members": int(member.sum()),
      "num_holdout": int((~member).sum()),
      "num_population": 0
      if signals.population is None
      else signals.population.phi.shape[1],
      "queries": f"{signals.phi.shape[2]} views per record",
      **({} if signals.correct is None else _accuracies(signals)),
      **({} if run is None else run.guarantee),
      **setting,
    },
    "not_run": findings.not_run,
    "redacted": False,
  }
  report["verdict"] = release_verdict(report)
  return ReleaseAudit(report, scores, member, np.asarray(ids), out)


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


def _exposed(scores, rules, primary, member, ids, labels):
  """Return the members with the smallest p-values of the primary attack."""
  values = scores[primary]
  p = conformal_p(values, values[~member])
  places = np.flatnonzero(member & ~np.isnan(values))
  best = places[np.argsort(-values[places], kind="stable")][:_EXPOSED]
  named = _named(scores, rules, member)
  return [
    {
      "id": np.asarray(ids)[place].item(),
      "label": None if labels is None else int(labels[place]),
      "p": float(p[place]),
      "score": float(values[place]),
      "attacks": int(sum(mask[place] for mask in named.values())),
    }
    for place in best
  ]


def _named(scores, rules, member):
  """Return which members each attack names by one rule, the same for all attacks."""
  place = _common_rule(rules)
  return {
    name: member & (values > rules[name].threshold[place])
    for name, values in scores.items()
  }


def _common_rule(rules):
  """Return the rule at an FPR of about one percent, the last one if there is none."""
  shortest = min(rules.values(), key=lambda rule: len(rule.rank))
  wanted = max(1, round(0.01 * shortest.num_holdout))
  return int(np.flatnonzero(shortest.rank <= wanted)[-1])


def _agreement(scores, rules, member):
  """Return how far the lists of the attacks overlap."""
  place, named = _common_rule(rules), _named(scores, rules, member)
  counts = np.sum(list(named.values()), 0)[member]
  return {
    "rank": int(next(iter(rules.values())).rank[place]),
    "named": {name: int(mask.sum()) for name, mask in named.items()},
    "by_any": int((counts > 0).sum()),
    "by_half": int((counts >= max(1, len(named) / 2)).sum()),
    "by_all": int((counts == len(named)).sum()),
  }

"""Audit one trained model before its release."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Signals, quantile_network
from mixdef.auditing import dropping, released
from mixdef.auditing.confounding import blind_test
from mixdef.auditing.facts import plain_facts
from mixdef.auditing.prices import Price, train_references
from mixdef.auditing.provenance import made_from
from mixdef.auditing.release_bound import bound_of
from mixdef.auditing.release_counts import counted, facts_of, ids_of, rank_by_trace
from mixdef.auditing.release_curves import curves, own_p
from mixdef.auditing.release_verdict import release_verdict, title_of
from mixdef.auditing.released import Released
from mixdef.auditing.running import metrics_of, run_attacks
from mixdef.auditing.self_audit import self_audit_facts
from mixdef.auditing.stability import random_attacks, repeatable, stability
from mixdef.core import validate
from mixdef.core.files import path_of, whole_file, write_json, write_text
from mixdef.core.learner import Learner
from mixdef.core.randomness import check_seed
from mixdef.core.reading import digest_file
from mixdef.training import Run

AFTER = "without_exposed"
"""Subfolder of the audit without the most exposed members."""

_FAMILIES = ("threshold", "reference")
_ABOUT = {
  "cmia": "LiRA with models in rounds, trained with what earlier rounds made certain",
  "imia": "Models that imitate the released one, against ordinary models",
  "glira": "A one-sided test against models that imitate the released one",
  "quantile_network": "Excess over what a network expects of a non-member",
}
_NOTES = {"cmia": "the other attacks read the models of the first round only"}


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
    after: the audit of the model that was trained without the most exposed members, if
      `drop_exposed` asked for it.
    run: that model, as a `Run`, in `after`; None in an audit of the given model.
  """

  report: dict[str, Any]
  scores: dict[str, np.ndarray]
  members: np.ndarray
  ids: np.ndarray
  out: pathlib.Path | None = None
  after: "ReleaseAudit | None" = None
  run: Run | None = None

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

    The audit without the most exposed members, if there is one, is written into the
    subfolder `without_exposed`.

    Args:
      folder: where; by default the `out` of the audit.
      redact: leave out everything about single records, the table of exposed members
        and scores.npz, and the self-audit, which is not private.

    Raises:
      ValueError: if no folder is given, and the audit was given none.
    """
    folder = self.out if folder is None else path_of(folder, "folder")
    if folder is None:
      raise ValueError("the audit was given no out: name a folder, save('runs/mine')")
    shown = self.redacted() if redact else self
    report = shown.report
    if not redact:
      path = folder / "scores.npz"
      with whole_file(path) as file:
        np.savez_compressed(
          file, ids=self.ids, member=self.members, allow_pickle=False, **self.scores
        )
      kept = {**report["made_from"], "scores": digest_file(path, fix="save it again")}
      report = {**report, "made_from": kept}
    write_json(folder / "report.json", report)
    page = folder / "report.html"
    write_text(page, shown.html())
    if shown.after is not None:
      shown.after.save(folder / AFTER, redact=redact)
    return page

  def redacted(self) -> "ReleaseAudit":
    """Return the audit without anything about single records."""
    report = {**self.report, "exposed": [], "self_audit": None, "redacted": True}
    if again := self.report["without_exposed"]:
      report["without_exposed"] = {**again, "ids": [], "newly_ids": []}
    after = None if self.after is None else self.after.redacted()
    return dataclasses.replace(self, report=report, after=after)


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
  drop_exposed: float | None = None,
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
    budget: what may be trained, see `Price`: "free", "imitate" (20 reference models and
      10 imitators), "shadows:64" or "cascade:3x32" (3 rounds of 32 models).
    prior: fraction of members among the candidates of an attacker, in (0, 1).
    attacks: names of attacks, as in `audit`; default all that threshold the model's own
      confidence or compare it with references.
    views: views of each record, see `attacks.VIEWS`.
    drop_exposed: fraction of the members, the most exposed ones, without which the
      recipe is trained and audited once more, with the same hold-out and references.
    setting: facts for the report; see `plain_facts`.
    seed: random seed.
    out: folder of the reference models and of finished attacks, from which a killed
      audit resumes.
    progress: whether to show the progress of trainings and queries.

  Returns:
    The `ReleaseAudit`; `audit_release(...).save(folder)` writes the report.

  Raises:
    ValueError: for a missing input, records of the two sides that differ in shape, or
      no attack that could be run.

  Guarantee: a lower bound on what an attacker with these means finds, at 95%
    confidence over the choice of the hold-out. It is not a proof of safety; only
    differentially private training bounds attacks that were not tried.
  """
  seed, price = check_seed(seed), Price.parse(budget)
  if not 0 < validate.real(prior, "prior") < 1:
    raise ValueError(f"prior={prior}; pass a fraction in (0, 1), not a percentage")
  share = None if drop_exposed is None else dropping.check_share(drop_exposed)
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
  how = {"learner": learner, "training": training, "views": views, "seed": seed}
  if share is not None:
    dropping.recipe(model, learner, training)  # refused before anything is trained
  blind = None
  if model.x is not None:
    labels = model.signals.labels
    blind = blind_test(model.x, labels, model.members, groups=model.groups, seed=seed)
  references = train_references(price, model, **how, out=out, progress=progress)
  work = _Work(_names(attacks), attacks is None, learner, prior, seed, given, blind)
  signals, facts = references.signals, {"name": str(price), **references.facts}
  found = work.audit(model, signals, references.scores, references.missing, facts, out)
  if share is None:
    return found
  folder = None if out is None else out / f"{AFTER}_{share:g}"
  ranking = found.scores[found.report["primary"]]
  again = dropping.retrain(
    model, signals, ranking, share, **how, out=folder, progress=progress
  )
  missing = references.missing | dict.fromkeys(
    references.scores, "its models were made for the first model, not this one"
  )
  others = dropping.with_target(signals, again.kept, again.model)
  after = work.audit(again.model, others, {}, missing, facts, folder)
  after.report["title"] += f", without the {share:.3g} most exposed"
  found.report["without_exposed"] = dropping.compared(
    *(found.report, after.report, found.scores, after.scores),
    *(again, signals, share),
  )
  found.report["verdict"] = release_verdict(found.report)
  return dataclasses.replace(found, after=dataclasses.replace(after, run=again.run))


@dataclasses.dataclass(frozen=True)
class _Work:
  """What is the same for the audit of every model."""

  names: list[str]
  every: bool
  learner: Learner | None
  prior: float
  seed: int
  given: dict[str, Any]
  blind: dict[str, Any] | None

  def audit(
    self,
    model: Released,
    signals: Signals,
    more: Mapping[str, np.ndarray],
    missing: Mapping[str, str],
    price: Mapping[str, Any],
    out: pathlib.Path | None,
  ) -> ReleaseAudit:
    """Run the attacks on one model, and describe what they found."""
    seed, member = self.seed, signals.members[:1]
    findings = run_attacks(
      self.names, signals, seed=seed, out=None if out is None else out / "attacks"
    )
    scores = {name: rows[0] for name, rows in findings.scores.items()}
    metrics, not_run = dict(findings.metrics), {**findings.not_run, **missing}
    repeats, more = random_attacks(list(scores), signals), dict(more)
    if self.every and model.population is not None and model.groups is None:
      repeats["quantile_network"] = functools.partial(_expected, model)
      more["quantile_network"] = _expected(model, seed)
    for name, values in more.items():
      scores[name] = values
      note, about = _NOTES.get(name, ""), {"family": "reference", "about": _ABOUT[name]}
      metrics[name] = metrics_of(
        values[None], member, seed=seed, seconds=None, note=note, **about
      )
    if not scores:
      reasons = [f"{name}: {why}" for name, why in not_run.items()]
      raise ValueError(f"no attack could be run; {'; '.join(reasons)}")
    unit, p = "record" if model.groups is None else "person", own_p(signals)
    report = counted(scores, metrics, signals, prior=self.prior, seed=seed, own_p=p)
    facts = facts_of(signals, model, self.learner) | self.given
    primary, rank = report["primary"], report["agreement"]["rank"]
    again = repeatable(primary, scores)
    drawn = curves(
      scores[primary],
      signals,
      attack=primary,
      pooled=again,
      metrics=metrics[primary],
      p=p,
      unit=unit,
      seed=seed,
    )
    report |= {
      "title": title_of(self.given, facts),
      "unit": unit,
      "price": dict(price),
      "confounding": self.blind,
      "setting": facts,
      "curves": drawn,
      "stability": stability(again, signals, rank, repeats),
      "not_run": not_run,
      "made_from": made_from(model),
      "without_exposed": None,
      "self_audit": self_audit_facts(model.run),
    }
    report["bound"] = bound_of(report)
    rank_by_trace(report["exposed"], model)
    report["verdict"] = release_verdict(report)
    return ReleaseAudit(report, scores, member[0], ids_of(signals), out)


def _expected(model, seed):
  """Return the scores of a network that predicts the outputs of non-members."""
  signals, others = model.signals, model.population
  unseen = signals.population.hinge[0, :, 0]
  return quantile_network(
    model.data.x,
    model.data.y,
    signals.hinge[0, :, 0],
    population=(others.x, others.y, unseen),
    seed=seed,
  )


def _names(attacks):
  if attacks is not None:
    return ATTACKS.names(attacks)
  return [
    attack.__name__ for family in _FAMILIES for attack in ATTACKS.families[family]
  ]

"""Run attacks on an ensemble or on signals and build the audit report."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Catalogue, Signals, by_person
from mixdef.attacks._targets import check_model, check_source
from mixdef.attacks.gan import ATTACKS as GAN_ATTACKS
from mixdef.attacks.gan import GanSignals, with_reconstructions
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.additions import added
from mixdef.auditing.budget import budget_curve
from mixdef.auditing.comparison import Attacked, paired_differences, without_scores
from mixdef.auditing.exposure import describe, exposure
from mixdef.auditing.facts import plain_facts, recipe_facts
from mixdef.auditing.generators import Generated
from mixdef.auditing.judged import judged
from mixdef.auditing.levels import strongest
from mixdef.auditing.limits import audit_limits
from mixdef.auditing.persons import person_limits, records_of
from mixdef.auditing.records import record_facts
from mixdef.auditing.running import Budget, Findings, drawn_records, run_attacks
from mixdef.auditing.saved import SCHEMA
from mixdef.auditing.sections import added_sections
from mixdef.auditing.self_audit import self_audit_facts
from mixdef.auditing.verdict import verdict
from mixdef.core.files import path_of, whole_file, write_json, write_text
from mixdef.core.randomness import check_seed
from mixdef.data import Dataset
from mixdef.training import Ensemble

_BUDGET_ATTACKS = (
  "lira_online",
  "lira_online_fixed",
  "lira_offline_fixed",
  "rmia",
  "base",
  "bavaria",
  "lira_gan_discriminator",
)
_ON_RECONSTRUCTIONS = ("lira_gan_reconstruction",)


@dataclasses.dataclass(frozen=True)
class Audit:
  """The result of `audit`.

  Attributes:
    report: content of report.json.
    scores: [S, N] by attack, NaN where a pair was not attacked. With groups, one score
      per person.
    signals: the signals that the attacks read: of persons, if the records have groups.
    data: the records, or None if only outputs were audited.
    generated: the description of generators, if there is one.
    out: the folder that the audit was given, if any; `save` writes there by default.
  """

  report: dict[str, Any]
  scores: dict[str, np.ndarray]
  signals: Signals
  data: Dataset | None
  generated: Generated | None = None
  out: pathlib.Path | None = None

  def to_json(self) -> dict[str, Any]:
    """Return the content of report.json."""
    return self.report

  def html(self) -> str:
    """Return the report as one self-contained page."""
    from mixdef.auditing.pages.audit_page import render

    return render(
      self.report,
      scores=self.scores,
      members=self.signals.members,
      audited=self.signals.audited,
      x=None if self.data is None or self.signals.unit == "person" else self.data.x,
      schema=None if self.data is None else self.data.schema,
      pictures=() if self.generated is None else self.generated.pictures,
    )

  def save(self, folder: str | pathlib.Path | None = None) -> pathlib.Path:
    """Write report.html, report.json, scores.npz and images; return the page's path.

    Raises:
      ValueError: if no folder is given, and the audit was given none.
    """
    from mixdef.auditing.pages.pictures import mosaic_png

    folder = self.out if folder is None else path_of(folder, "folder")
    if folder is None:
      raise ValueError("the audit was given no out: name a folder, save('runs/mine')")
    signals = self.signals
    arrays: dict[str, Any] = {
      "ids": _ids(signals),
      "keep": signals.members,
      "audited": signals.audited,
      **self.scores,
    }
    if signals.labels is not None:
      arrays["labels"] = signals.labels
    with whole_file(folder / "scores.npz") as file:
      np.savez_compressed(file, **arrays)
    write_json(folder / "report.json", self.report)
    for picture in self.generated.pictures if self.generated else ():
      png = mosaic_png(picture.x, picture.scale)
      with whole_file(folder / f"{picture.name}.png") as file:
        file.write(png)
    page = folder / "report.html"
    write_text(page, self.html())
    return page


def audit(
  source: Ensemble | Signals,
  *,
  target: int | None = None,
  attacks: Any = None,
  views: Callable[[np.ndarray], np.ndarray] | None = None,
  population: Dataset | None = None,
  budget: Budget | None = None,
  options: Mapping[str, Mapping[str, Any]] | None = None,
  canaries: str | dict[str, Any] | None = None,
  dp_baseline: bool | dict[str, Any] | None = None,
  generated: Generated | None = None,
  setting: Mapping[str, Any] | None = None,
  seed: int = 0,
  out: str | pathlib.Path | None = None,
  progress: bool = False,
) -> Audit:
  """Attack every model with the others as references, and report who is at risk.

  Without a target, the report describes the training recipe: the models are pooled,
  each attacked with the others as its references. With a target, it describes that
  model alone, such as the one to be released: its members and non-members, with the
  others as references only. Results that need attacks on several models are omitted:
  thresholds set on other models, and the accuracy at those. Canaries and the baseline
  are other models of the recipe: they are shown, but do not contribute to the level.
  One model without references can be judged on average only, and no record is listed.

  If records belong to persons (`groups`), persons are attacked instead of records: the
  records of each are combined by `by_group` before an attack is fitted, and the level,
  the metrics, the intervals and the list of the most exposed are those of persons. An
  attack that queries the models scores a person by the mean score of the records.

  Args:
    source: trained models, classifiers or GANs, or `Signals` of models trained
      anywhere. Attacks that query the models need the models.
    target: the model to audit, 0 to S-1; default the one that the signals name, or all
      models if they name none.
    attacks: names with or without arguments, such as ["gap",
      "lira_online(score='hinge')"], one comma-separated text, or functions of the
      catalogue; default the whole catalogue for classifiers or for GANs. Attacks that
      cannot be run are listed with the reason.
    views: views of each record for the reference attacks, see `attacks.VIEWS`.
    population: records that no model trained on; default the held-out records of the
      ensemble's data. Ignored for `Signals`, which have their own.
    budget: budget of attacks that train a model or make many queries.
    options: further arguments by the attack's plain name.
    canaries: kind and count of canaries, as "mislabelled:200", on which as many models
      are trained and attacked; or the result of `attack_canaries`.
    dp_baseline: True to train and attack DP-SGD models of the same accuracy; or the
      result of `attack_dp_baseline`.
    generated: result of `describe_generators`.
    setting: facts for the report, shown with those known from the models; see
      `plain_facts` for the supported values.
    seed: random seed of the drawn records and of the bootstraps.
    out: folder for the scores of finished attacks and for the models that the audit
      trains, so that a killed audit can resume.
    progress: whether to show the progress of the queries and trainings.

  Returns:
    The `Audit`; `audit(...).save(folder)` writes the report.

  Raises:
    ValueError: for canaries or a baseline to train without classifiers of one recipe, a
      person whose records are not all in the same training sets,
      an unknown attack, facts that cannot be written, a target that is not a model or
      not the one that the signals name, a population of another shape or type than the
      records, a model that outputs NaN, subsets that leave no membership to infer, no
      attack that could be run, or released outputs that a defense changes judged
      without any label-only attack.

  Guarantee: none. An audit shows what these attacks find; only differentially private
    training bounds those that were not tried.
  """
  catalogue = _catalogue_for(source)
  seed = check_seed(seed)
  names, given = catalogue.names(attacks), plain_facts(setting)
  ensemble, data = None, None
  out = None if out is None else path_of(out, "out")
  how = {"views": views, "seed": seed, "out": out, "progress": progress}
  on_canaries, baseline = added(source, canaries, dp_baseline, names, **how)
  target = _chosen_target(source, target)
  if isinstance(source, Signals):
    signals = source
  else:
    ensemble, data = source, source.data
    population = data.test if population is None else population
    _refuse_scores_alone(ensemble, names, catalogue)
    signals = ensemble.signals(population=population, views=views, progress=progress)
    if any(catalogue.plain_name(name) in _ON_RECONSTRUCTIONS for name in names):
      count = (budget or Budget()).records
      drawn = drawn_records(by_person(signals), count, seed)
      drawn = drawn if signals.groups is None else drawn[data.units]
      signals = with_reconstructions(signals, ensemble, np.flatnonzero(drawn))
  records = signals
  signals, remarks = judged(dataclasses.replace(by_person(records), target=target))
  records = records_of(signals, records)
  findings = run_attacks(
    names,
    signals,
    ensemble,
    catalogue=catalogue,
    budget=budget,
    options=options,
    seed=seed,
    out=out,
  )
  if not findings.metrics:
    reasons = [f"{name}: {why}" for name, why in findings.not_run.items()]
    raise ValueError(f"no attack could be run; {'; '.join(reasons)}")
  if ensemble is not None:
    _refuse_scores_alone(ensemble, list(findings.metrics), catalogue)
  report: dict[str, Any] = {
    "schema": SCHEMA,
    "title": "",
    "verdict": {},
    "unit": signals.unit,
    "target": describe(signals),
    "setting": _setting(signals, records, ensemble, findings) | given,
    "attacks": findings.metrics,
    "strongest": strongest(findings.metrics),
    "not_run": findings.not_run,
    "budget": _budget(findings, signals, catalogue, seed),
    **exposure(
      findings,
      signals,
      _ids(signals),
      catalogue=catalogue,
      seed=seed,
      classes=None if data is None else data.classes,
    ),
    "canaries": without_scores(on_canaries),
    "dp_baseline": without_scores(baseline),
    "self_audit": None if ensemble is None else self_audit_facts(ensemble[target or 0]),
    "generator": None if generated is None else generated.metrics,
    "sections": added_sections(findings, signals),
    "limits": [
      *remarks,
      *person_limits(findings, signals, records, catalogue),
      *audit_limits(findings, signals, ensemble, population),
    ],
  }
  facts = report["setting"]
  if baseline:
    audited = Attacked(findings.metrics, findings.scores, signals.members)
    report["dp_baseline"] |= {
      "defense_test_accuracy": facts.get(
        "test_accuracy", baseline["defense_test_accuracy"]
      ),
      "paired": paired_differences(audited, on_canaries, baseline, seed=seed),
    }
  defense = "no defense" if facts.get("defense") == "none" else facts.get("defense")
  title = [str(part) for part in (facts.get("dataset"), defense) if part]
  report["title"] = ", ".join(title) or "outputs"
  report["verdict"] = verdict(report)
  return Audit(_plain(report), findings.scores, signals, data, generated, out)


def _chosen_target(source: Ensemble | Signals, target: int | None) -> int | None:
  """Return the model to audit, as named by the caller or by the signals."""
  named = source.target if isinstance(source, Signals) else None
  if target is None:
    return named
  target = check_model("target", target, len(source.members))
  if named not in (None, target):
    raise ValueError(
      f"target={target}, but the outputs name model {named} as the one to audit: drop "
      "one of the two"
    )
  return target


def _catalogue_for(source: Ensemble | Signals) -> Catalogue:
  """Return the catalogue of attacks for this kind of source."""
  if isinstance(source, Signals):
    gan = isinstance(source, GanSignals)
  else:
    check_source(source)
    gan = source.learner.kind == "generators"
  return GAN_ATTACKS if gan else ATTACKS


def _refuse_scores_alone(
  ensemble: Ensemble, names: Sequence[str], catalogue: Catalogue
) -> None:
  """Require a label-only attack if a defense changes the released outputs."""
  families = {catalogue.family(catalogue.plain_name(name)) for name in names}
  if "label_only" in families:
    return
  x = ensemble.data.x[:64]
  if not np.array_equal(ensemble[0].log_probs(x), ensemble[0].log_probs(x, raw=True)):
    raise ValueError(
      "the defense changes the released outputs, which score-based attacks alone "
      "cannot evaluate: add a label-only attack, for example label_only_noise"
    )


def _setting(
  signals: Signals, records: Signals, ensemble: Ensemble | None, findings: Findings
) -> dict[str, Any]:
  models, rows = signals.members.shape
  others = signals.population
  persons = {} if signals.sizes is None else {"num_groups": rows}
  facts: dict[str, Any] = {
    "num_models": models,
    "num_records": rows if signals.sizes is None else int(signals.sizes.sum()),
    **persons,
    "num_audited": int(signals.audited.sum()),
    "num_population": 0 if others is None else others.phi.shape[1],
    "design": signals.design,
    "queries": f"{signals.phi.shape[2]} views per record",
    "attack_seconds": round(sum(f["seconds"] for f in findings.metrics.values()), 1),
  }
  target = signals.target
  if records.correct is not None:
    part = records if target is None else records.only_models([target])
    facts |= accuracies(part)
  if ensemble is not None:
    facts |= {
      "dataset": ensemble.data.name,
      **recipe_facts(ensemble.learner),
      **record_facts(ensemble.data),
      "references": "trained with the target's own defense",
      "weights": (
        "as released, with weight averaging, rollback and output defenses, if any"
      ),
      "epochs": ensemble.plan.epochs,
      "batch_size": ensemble.plan.batch_size,
      "strategy": ensemble.strategy,
      "training_seconds": round(ensemble.seconds, 1),
      "shadows_per_minute": round(60 * models / max(ensemble.seconds, 1e-9), 1),
      **ensemble[target or 0].guarantee,
    }
  return facts


def _budget(
  findings: Findings, signals: Signals, catalogue: Catalogue, seed: int
) -> dict[str, Any]:
  return {
    name: budget_curve(catalogue.resolve(name), signals, seed=seed)
    for name in findings.metrics
    if name in _BUDGET_ATTACKS and len(signals.members) > 4
  }


def _ids(signals: Signals) -> np.ndarray:
  return np.arange(signals.members.shape[1]) if signals.ids is None else signals.ids


def _plain(value: Any) -> Any:
  """Convert a value to JSON types: no NaN, no infinity, no numpy."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, np.ndarray)):
    return [_plain(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value

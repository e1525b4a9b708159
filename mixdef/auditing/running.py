"""Run attacks by name and collect the results of each."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from mixdef.attacks import (
  ATTACKS,
  Catalogue,
  Signals,
  Unavailable,
  leave_one_out,
  mean_by_group,
)
from mixdef.attacks._designs import first_targets
from mixdef.auditing.kept_scores import (
  file_name,
  mark_of_models,
  marks_of,
  read_scores,
  write_scores,
)
from mixdef.core import validate
from mixdef.core.randomness import check_seed, generator
from mixdef.core.reading import digest
from mixdef.metrics.roc import complete_targets
from mixdef.metrics.summary import summarize
from mixdef.training import Ensemble
from mixdef.training.signature import same_or_refuse

_FIX = (
  "Choose another out folder. If models were trained again, pass out= to fit_many, "
  "so that they are kept."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """Limits for the costly attacks.

  Attributes:
    targets: number of attacked models, the first ones with different subsets.
    records: number of records that attacks on models query, drawn by the seed; of
      whole persons where persons are attacked.
  """

  targets: int = 4
  records: int = 500

  def __post_init__(self) -> None:
    """Reject values that are not a number of models or records."""
    validate.integer(self.targets, "budget: targets", least=1)
    validate.integer(self.records, "budget: records", least=1)


@dataclasses.dataclass(frozen=True)
class Findings:
  """Scores [S,N] and metrics by attack, and why the others were not run."""

  scores: dict[str, np.ndarray]
  metrics: dict[str, dict[str, Any]]
  not_run: dict[str, str]


def run_attacks(
  names: Any,
  signals: Signals,
  ensemble: Ensemble | None = None,
  *,
  catalogue: Catalogue = ATTACKS,
  budget: Budget | None = None,
  options: Mapping[str, Mapping[str, Any]] | None = None,
  seed: int = 0,
  out: pathlib.Path | None = None,
) -> Findings:
  """Run attacks on every model, or on the first few for costly ones.

  Args:
    names: names of attacks, with or without arguments: "lira_online(score='hinge')";
      see `Catalogue.names`.
    signals: signals of S models; if they name a `target`, only that model is attacked.
      Of persons (`by_group`), attacks on signals score persons, and those that query
      the models score a person by the mean score of the records.
    ensemble: the models themselves, for attacks that query them. Where the signals are
      of persons, its data have their groups.
    catalogue: the catalogue of the names; default the attacks on classifiers.
    budget: budget of the costly attacks; default `Budget()`.
    options: further keyword arguments by the attack's plain name.
    seed: random seed of the drawn records and of the bootstraps.
    out: folder where the scores of every finished attack are saved and loaded again.

  Returns:
    The `Findings`. An attack whose input is missing is in `not_run` with the reason,
    and so is one that finds no model with both a member and a non-member that it can
    score.

  Raises:
    ValueError: for an unknown attack or argument, or a folder that holds other
      models' scores.
  """
  chosen = {name: catalogue.resolve(name) for name in catalogue.names(names)}
  budget, seed = budget or Budget(), check_seed(seed)
  marks: dict[str, Any] = {}
  models = None
  if out is not None:
    marks = marks_of(
      signals,
      options or {},
      seed=seed,
      target=signals.target,
      **dataclasses.asdict(budget),
    )
    made = getattr(signals, "reconstruction", None)
    if ensemble is None and made is not None:  # else budget and seed identify them
      marks["reconstruction"] = digest(made)
    same_or_refuse(out / "signature.json", marks, fix=_FIX)
    queries = "models" in [
      catalogue.reads(catalogue.plain_name(name)) for name in chosen
    ]
    if queries and ensemble is not None:
      models = mark_of_models(ensemble)
  findings = Findings({}, {}, {})
  for name, attack in chosen.items():
    plain = catalogue.plain_name(name)
    if catalogue.costly(plain):
      logging.info("running %s, which trains or queries models", name)
    extra = dict((options or {}).get(plain, {}))
    kind = catalogue.costly(plain), catalogue.reads(plain) == "models"
    run = _Run(*kind, attack, signals, ensemble, budget, extra, seed)
    try:
      made_from = {
        **marks,
        "attack": name,
        "models": models if run.queries_models else None,
      }
      if source := catalogue.source(plain):
        made_from["source"] = source
      scores, seconds = run.kept(out, name, made_from)
    except Unavailable as error:
      findings.not_run[name] = str(error)
      continue
    targets = complete_targets(scores, signals.members)
    if not len(targets):
      findings.not_run[name] = run.why_unscored()
      continue
    found = metrics_of(
      scores[targets],
      signals.members[targets],
      run.queried_records(),
      family=catalogue.family(plain),
      about=catalogue.about(plain),
      seconds=round(seconds, 2),
      note=catalogue.note(plain),
      groups=signals.groups,
      seed=seed,
    )
    findings.scores[name], findings.metrics[name] = scores, found
    logging.info("%s: AUC %.4f (%.1f s)", name, found["auc"], seconds)
  return findings


def metrics_of(
  scores: np.ndarray,
  members: np.ndarray,
  audited: np.ndarray | None = None,
  *,
  family: str,
  about: str,
  seconds: float | None,
  note: str,
  groups: np.ndarray | None = None,
  seed: int,
) -> dict[str, Any]:
  """Return the metrics of one attack and the facts that a report shows beside them.

  Args:
    scores: [T, N] of T targets.
    members: bool [T, N].
    audited: bool [N], the records that were scored; default all.
    family: family of the attack.
    about: its description in one line.
    seconds: how long it took, or None.
    note: remark on its numbers, or "".
    groups: [N], the person of each record, if intervals resample persons.
    seed: random seed of the bootstrap.
  """
  found = summarize(scores, members, audited, groups=groups, seed=seed)
  return {
    "family": family,
    "about": about,
    **found.to_json(),
    "degenerate": bool(found.degenerate),  # undetectable with one target
    "num_targets": len(scores),
    "seconds": seconds,
    "note": note,
  }


@dataclasses.dataclass(frozen=True)
class _Run:
  """One attack with all of its inputs."""

  costly: bool
  queries_models: bool
  attack: Callable[..., np.ndarray]
  signals: Signals
  ensemble: Ensemble | None
  budget: Budget
  extra: dict[str, Any]
  seed: int

  def __call__(self) -> np.ndarray:
    """Return the scores [S,N]."""
    targets = None
    if self.signals.target is not None:
      targets = [self.signals.target]
    elif self.costly:
      kept = self.signals.members[:, self.signals.audited]
      targets = first_targets(kept, self.budget.targets)
    if not self.queries_models:
      source: Any = self.signals
      return leave_one_out(self.attack, source, targets=targets, **self.extra)
    if self.ensemble is None:
      raise Unavailable("it queries the models itself; pass the ensemble")
    rows, data = self.queried_records(), self.ensemble.data
    persons = self.signals.unit == "person"
    if persons:
      rows = rows[data.units]
    scores = leave_one_out(
      self.attack,
      self.ensemble,
      targets=targets,
      records=np.flatnonzero(rows),
      **self.extra,
    )
    return mean_by_group(scores, data.groups) if persons else scores

  def kept(
    self, folder: pathlib.Path | None, name: str, made_from: Mapping[str, Any]
  ) -> tuple[np.ndarray, float]:
    """Load the scores saved under a name, or compute and save them, with the time."""
    if folder is None:
      return self._timed()
    path = folder / file_name(name)
    kept = read_scores(path, made_from, self.signals.members.shape)
    if kept is None:
      kept = self._timed()
      write_scores(path, made_from, *kept)
    return kept

  def _timed(self):
    started = time.monotonic()
    scores = self()
    return scores, time.monotonic() - started

  def why_unscored(self) -> str:
    """Explain why no model has both a member and a non-member with a score."""
    target, queried = self.signals.target, self.queried_records()
    rows = f"{self.signals.unit}s"
    members = self.signals.members[:, queried]
    subject = "no model has"
    if target is not None:
      members, subject = members[target : target + 1], f"model {target} does not have"
    if not np.logical_and(members.any(1), ~members.all(1)).any():
      return (
        f"{subject} both a member and a non-member among the {queried.sum()} selected "
        f"{rows}: select {rows} of both kinds"
      )
    return (
      f"{subject} both a member and a non-member with a score: it needs reference "
      f"models; train more models, or select more {rows}"
    )

  def queried_records(self) -> np.ndarray:
    """Return which records, or persons, are scored, bool [N]."""
    if not self.queries_models:
      return self.signals.audited
    return drawn_records(self.signals, self.budget.records, self.seed)


def drawn_records(signals: Signals, count: int, seed: int) -> np.ndarray:
  """Draw the audited records that costly queries use, bool [N].

  Of persons, as many are drawn as have this number of records, and at least one.
  """
  rows = np.flatnonzero(signals.audited)
  drawn = generator(seed).choice(rows, min(count, len(rows)), replace=False)
  if signals.sizes is not None:
    within = np.cumsum(signals.sizes[drawn]) <= count
    drawn = drawn[: max(1, within.sum())]
  return np.isin(np.arange(len(signals.audited)), drawn)

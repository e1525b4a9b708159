"""Train the models that an audit adds: on planted canaries, and with DP-SGD."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from mixdef.attacks import ATTACKS, Signals
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.canaries import parse_canaries, plant
from mixdef.auditing.dp_baseline import matched_dp
from mixdef.auditing.worst_case import attack_canaries, attack_dp_baseline
from mixdef.core.learner import Learner
from mixdef.core.traits import Traits
from mixdef.data import Dataset, subsets
from mixdef.training import Ensemble, fit_many
from mixdef.training.sampling import first_records

Views = Callable[[np.ndarray], np.ndarray] | None

_COMPARED = ("threshold", "reference")  # families that attack the baseline


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the models of an audit are trained: S of them, each on random halves.

  Attributes:
    num_models: S.
    training: `epochs`, `batch_size`, `seed` and the like, as in `fit_many`.
    out: folder, with one subfolder per ensemble; None keeps no files.
    begin: called with the name of an ensemble before it is trained.
  """

  num_models: int
  training: dict[str, Any]
  out: pathlib.Path | None = None
  begin: Callable[[str], None] = lambda name: logging.info("training %s", name)

  @classmethod
  def of(cls, ensemble: Ensemble, **training: Any) -> Recipe:
    """Return the recipe of an ensemble; `training` adds `seed`, `out` and `progress`.

    Raises:
      ValueError: for GANs, and for models with different hyper-parameters.
    """
    if ensemble.learner.kind != "classifiers" or ensemble.values:
      raise ValueError(
        "canaries and the DP-SGD baseline can be trained only for classifiers of one "
        "recipe: pass the results of attack_canaries and attack_dp_baseline, or drop "
        "them"
      )
    sizes = {name: getattr(ensemble.plan, name) for name in ("epochs", "batch_size")}
    out = training.pop("out")
    return cls(len(ensemble), {**sizes, "strategy": ensemble.strategy, **training}, out)

  def train(
    self, learner: Learner, data: Dataset, name: str, **signals: Any
  ) -> Ensemble:
    """Train S models and return those that did not diverge.

    Args:
      learner: what to train.
      data: the records.
      name: name of the ensemble.
      **signals: `population` and `views`, if every record will be queried; with a
        folder, each chunk of models is queried as soon as it is trained.
    """
    self.begin(name)
    kept = signals if signals and self.out is not None else None
    return fit_many(
      learner,
      data,
      subsets(data, self.num_models, seed=self.training["seed"]),
      num_members=public_size(data, learner.traits),
      out=self.folder(name),
      signals=kept,
      **self.training,
    ).converged()

  def folder(self, name: str) -> pathlib.Path | None:
    """Return the folder of an ensemble."""
    return None if self.out is None else self.out / name


def public_size(data: Dataset, traits: Traits | None = None) -> int:
  """Return the expected number of members of a model: half of the audited records.

  Args:
    data: the records.
    traits: those of the learner; persons are counted if its steps draw persons.
  """
  drawn = first_records(traits or Traits(), data)
  return int(data.always_member[drawn].sum()) + round(0.5 * data.audited[drawn].sum())


def planted(
  data: Dataset, text: str, *, seed: int = 0, source: Dataset | None = None
) -> tuple[str, Dataset]:
  """Plant canaries, at most a quarter of the records, or of the persons.

  Args:
    data: the records.
    text: kind and count, as "mislabelled:200".
    seed: random seed.
    source: for "ood", the data set that the records come from.

  Returns:
    The kind, and the records with the canaries.

  Raises:
    ValueError: as `parse_canaries` and `plant`.
  """
  kind, count = parse_canaries(text)
  count = min(count, len(np.unique(data.units[data.audited])) // 4)
  return kind, plant(data, kind, count, seed=seed, source=source)


def add_canaries(
  recipe: Recipe,
  learner: Learner,
  canaries: tuple[str, Dataset],
  *,
  views: Views = None,
  name: str = "canaries",
) -> dict[str, Any]:
  """Train models on data with canaries, and attack the canaries.

  Args:
    recipe: how to train.
    learner: what to train.
    canaries: result of `planted`.
    views: views of each record.
    name: name of the ensemble.

  Returns:
    The result of `attack_canaries`.
  """
  kind, data = canaries
  models = recipe.train(learner, data, name)
  return attack_canaries(models, kind=kind, views=views, seed=recipe.training["seed"])


def add_dp_baseline(
  recipe: Recipe,
  ensemble: Ensemble,
  attacks: Sequence[str],
  *,
  network: Any = None,
  canaries: tuple[str, Dataset] | None = None,
  views: Views = None,
) -> dict[str, Any]:
  """Find DP-SGD of the same accuracy, train its models and attack them alike.

  Args:
    recipe: how to train.
    ensemble: the audited models.
    attacks: names of attacks; the baseline is attacked with those that read signals
      and train no model.
    network: what DP-SGD trains; defaults to the network of the audited classifiers.
    canaries: result of `planted`, if the baseline is attacked on canaries as well.
    views: views of each record.

  Returns:
    The result of `attack_dp_baseline`.

  Raises:
    ValueError: if no network is passed and the learner was not made by `classifier`.
  """
  data, seed = ensemble.data, recipe.training["seed"]
  if not ensemble.plan.per_person:
    recipe = _in_persons(recipe, data)
  network = ensemble.learner.model if network is None else network
  if network is None:
    raise ValueError(
      "the DP-SGD baseline trains the network of `classifier`, which this learner "
      "does not use: drop dp_baseline"
    )
  # With a run folder, the audit reads the same outputs again.
  reached = accuracies(ensemble.signals(population=data.test, views=views))
  recipe.begin("dp_candidates")
  matched = matched_dp(
    network,
    data,
    ensemble.members[:2],
    accuracy=reached["test_accuracy"],
    num_members=public_size(data, _drawing(data)),
    out=recipe.folder("dp_candidates"),
    **recipe.training,
  )
  models = recipe.train(
    matched.learner, data, "dp_baseline", population=data.test, views=views
  )
  found = None
  if canaries is not None:
    found = add_canaries(
      recipe, matched.learner, canaries, views=views, name="dp_baseline_canaries"
    )
  compared = [
    name for name in attacks if ATTACKS.family(ATTACKS.plain_name(name)) in _COMPARED
  ]
  return attack_dp_baseline(
    matched,
    models,
    compared,
    views=views,
    population=data.test,
    canaries=found,
    seed=seed,
  )


def _drawing(data: Dataset) -> Traits:
  """Return the traits of a baseline, which draws persons if the data have them."""
  return Traits(per_person=0 if data.groups is None else 1)


def _in_persons(recipe: Recipe, data: Dataset) -> Recipe:
  """Return a recipe whose batches, if the data have persons, are counted in persons.

  A batch has as many persons as its records come from, if every person has the mean
  number of records, so that the number of steps stays about the same.
  """
  persons = public_size(data, _drawing(data)) / public_size(data)
  size = max(1, round(recipe.training["batch_size"] * persons))
  training = {**recipe.training, "batch_size": size}
  return dataclasses.replace(recipe, training=training)


def added(
  source: Ensemble | Signals,
  canaries: Any,
  dp_baseline: Any,
  attacks: Sequence[str],
  *,
  views: Views,
  **training: Any,
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
  """Train and attack the canaries and the baseline that are not results already.

  Args:
    source: what is audited.
    canaries: as in `audit`.
    dp_baseline: as in `audit`.
    attacks: names of attacks.
    views: views of each record.
    **training: `seed`, `out` and `progress` of the trainings.

  Returns:
    The results of `attack_canaries` and `attack_dp_baseline`, None where there is none.

  Raises:
    ValueError: if outputs alone are audited, or the models are not classifiers of one
      recipe.
  """
  if not (isinstance(canaries, str) or dp_baseline is True):
    return canaries, dp_baseline or None
  if isinstance(source, Signals):
    raise ValueError("canaries and dp_baseline train models: pass an ensemble")
  recipe, data = Recipe.of(source, **training), None
  if isinstance(canaries, str):
    data = planted(source.data, canaries, seed=training["seed"])
    canaries = add_canaries(recipe, source.learner, data, views=views)
  if dp_baseline is True:
    dp_baseline = add_dp_baseline(recipe, source, attacks, canaries=data, views=views)
  return canaries, dp_baseline or None

"""What an audit of one model may train: nothing, imitators, or reference models."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax

from mixdef.attacks import Signals, Unavailable, by_group, glira, imia
from mixdef.auditing.additions import public_size
from mixdef.auditing.cascade import train_cascade
from mixdef.auditing.released import Released
from mixdef.data import Dataset, subsets
from mixdef.defenses import imitation
from mixdef.learners import classifier
from mixdef.training import fit_many
from mixdef.training.sampling import first_records

_LEAST, _MOST = 4, 10**5  # reference models, in all rounds
_ROUNDS = {"shadows": 1, "cascade": 2}  # at least
_IMITATORS, _ORDINARY = 10, 20


class Price(NamedTuple):
  """What an audit may train.

  Attributes:
    kind: "free" trains nothing; "shadows" trains reference models by the recipe of the
      released model, each on a random half of members and hold-out; "imitate" trains 20
      of them, and 10 imitators; "cascade" trains them in rounds, for `cmia`.
    models: number of reference models of a round.
    imitators: number of imitators.
    rounds: number of rounds.
  """

  kind: str
  models: int = 0
  imitators: int = 0
  rounds: int = 1

  def __str__(self) -> str:
    if self.kind == "cascade":
      return f"cascade:{self.rounds}x{self.models}"
    return f"{self.kind}:{self.models}" if self.kind == "shadows" else self.kind

  @classmethod
  def parse(cls, text: str) -> "Price":
    """Read "free", "imitate", "shadows:64" or "cascade:3x32".

    Raises:
      ValueError: for any other text, fewer than four models or more than 100,000, or a
        cascade of one round.

    >>> Price.parse("cascade:3x32")
    Price(kind='cascade', models=32, imitators=0, rounds=3)
    """
    if text == "free":
      return cls("free")
    if text == "imitate":
      return cls("imitate", _ORDINARY, _IMITATORS)
    if found := re.fullmatch(r"shadows:(\d+)", str(text)):
      price = cls("shadows", int(found[1]))
    elif found := re.fullmatch(r"cascade:(\d+)x(\d+)", str(text)):
      price = cls("cascade", int(found[2]), rounds=int(found[1]))
    else:
      price = None
    if not price or price.models < _LEAST or price.rounds < _ROUNDS[price.kind]:
      raise ValueError(
        f"budget={text!r}; pass 'free', 'imitate', 'shadows:64' for 64 reference "
        f"models, or 'cascade:3x32' for 3 rounds of 32; {_LEAST} models and 2 rounds "
        "at least"
      )
    if price.rounds * price.models > _MOST:
      raise ValueError(f"budget={text!r}; pass at most {_MOST:,} models in all")
    return price


class References(NamedTuple):
  """The models that an audit has trained, queried as the released one.

  Attributes:
    signals: [1 + S, N, Q], of the released model and the reference models; with groups,
      of persons. Of a cascade, these are the models of round 1: in later rounds, the
      release decides on which records models are trained, which attacks on independent
      subsets do not expect.
    scores: [N] by attack, of attacks that need more than these signals.
    missing: reason by attack, for those that could not be run.
    facts: facts about what was trained, for the report.
  """

  signals: Signals
  scores: dict[str, np.ndarray]
  missing: dict[str, str]
  facts: dict[str, Any]


def train_references(
  price: Price,
  model: Released,
  *,
  learner: Any,
  training: Any,
  views: Any,
  seed: int,
  out: Any,
  progress: bool,
) -> References:
  """Train what the price allows, and query it as the released model was.

  Args:
    price: what to train.
    model: the released model.
    learner: recipe of the reference models, or None for that of the `Run`.
    training: `epochs` and `batch_size` of the released model, or None.
    views: as in `audit_release`, like the others.
    seed: random seed.
    out: folder of the models, or None.
    progress: whether to show the progress.

  Raises:
    ValueError: if records or a recipe are needed and missing.
  """
  own = _by_person(model.signals, model)
  if price.kind == "free":
    return References(own, {}, {}, {"models": 0, "seconds": 0.0, "times": None})
  learner, training = _recipe(price, model, learner, training)
  data, run, how = cast("Dataset", model.data), model.run, dict(training)
  drawn = model.members[first_records(learner.traits, data)]
  epochs, how["epochs"] = how["epochs"], _same_steps(how, drawn)
  queries = {"population": model.population, "views": views}

  def trained(what, members, name, first=0):
    return fit_many(
      what,
      data,
      members,
      seed=seed,
      model_ids=np.arange(first, first + len(members)),
      num_members=public_size(data, what.traits),
      out=None if out is None else out / name,
      signals=None if out is None else queries,
      progress=progress,
      **how,
    ).converged()

  def queried(ensemble):
    return _by_person(ensemble.signals(**queries, progress=progress), model)

  scores, missing, more = {}, {}, {}
  if price.rounds > 1:
    cascade = train_cascade(
      own.phi[0],
      data,
      rounds=price.rounds,
      models=price.models,
      seed=seed,
      train=functools.partial(trained, learner),
      query=queried,
    )
    count, seconds, others = cascade.models, cascade.seconds, cascade.signals
    scores, more = {"cmia": cascade.scores}, {"anchors": cascade.anchors}
  else:
    ensemble = trained(learner, subsets(data, price.models, seed=seed), "references")
    count, seconds, others = len(ensemble), ensemble.seconds, queried(ensemble)
  signals = _stacked(own, others)
  if price.imitators:
    imitator = imitator_of(learner, model.signals)
    keep = subsets(data, price.models + price.imitators, seed=seed)[price.models :]
    imitators = trained(imitator, keep, "imitators", price.models)
    seconds += imitators.seconds
    scores, missing = _imitated(signals, queried(imitators))
  facts = {
    "models": count,
    "rounds": price.rounds,
    "imitators": price.imitators,
    "seconds": round(seconds, 1),
    "times": None if run is None or not run.seconds else seconds / run.seconds,
    "size": round(len(data) / 2),
    "epochs": how["epochs"],
    "released_epochs": epochs,
    **more,
  }
  return References(signals, scores, missing, facts)


def _recipe(price, model, learner, training):
  """Return the learner and the training of the reference models."""
  if model.data is None:
    raise ValueError(
      f"budget={str(price)!r} trains models on the records: pass the model with "
      "members= and holdout=, not only its outputs"
    )
  learner, training = model.recipe(learner, training)
  if learner is None or "epochs" not in training:
    raise ValueError(
      f"budget={str(price)!r} needs the recipe: pass learner=classifier(...) and "
      "training={'epochs': ..., 'batch_size': ...} as the model was trained"
    )
  return learner, training


def imitator_of(learner, signals):
  """Return a learner of the same network that imitates the released model's outputs.

  Deviation: it is trained by Adam, because an imitator needs the architecture and not
    the recipe [ours].
  """
  outputs = jax.nn.log_softmax(np.asarray(signals.log_probs[0], np.float32))
  part = imitation(np.asarray(outputs))
  return classifier(learner.model, optax.adam(1e-3), part)


def _imitated(signals, imitators):
  """Return the scores of the attacks with imitators, and why others have none."""
  own, ordinary = signals.phi[0], signals.only_models(range(1, len(signals.phi)))
  scores, missing = {"glira": glira(own, imitators)}, {}
  try:
    scores["imia"] = imia(own, ordinary, imitators)
  except Unavailable as error:
    missing["imia"] = str(error)
  return scores, missing


def _by_person(signals: Signals, model: Released) -> Signals:
  """Combine the records of each person, if the records have persons."""
  if model.groups is None:
    return signals
  persons = by_group(signals, model.groups)
  return dataclasses.replace(persons, design="bernoulli")


def _same_steps(training, members):
  """Return the epochs in which half of the records take the released model's steps."""
  batch = training.get("batch_size", 128)
  steps = training["epochs"] * -(-int(members.sum()) // batch)
  return max(1, round(steps / -(-round(len(members) / 2) // batch)))


def _stacked(own: Signals, others: Signals) -> Signals:
  """Return the signals of the released model, followed by those of the references."""

  def both(name) -> Any:
    first, second = getattr(own, name), getattr(others, name)
    return None if first is None or second is None else np.concatenate([first, second])

  population = None
  if own.population is not None and others.population is not None:
    population = _stacked(own.population, others.population)
  return dataclasses.replace(
    own,
    phi=both("phi"),
    hinge=both("hinge"),
    correct=both("correct"),
    members=both("members"),
    log_probs=both("log_probs"),
    population=population,
    design="bernoulli",
    target=own.target,
  )

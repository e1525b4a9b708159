"""Train shadow models and ask them, chunk by chunk: memory does not grow with S."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mixdef.attacks.query import signals
from mixdef.attacks.signals import Signals
from mixdef.attacks.views import identity
from mixdef.data import Dataset
from mixdef.training.fitting import shadow_training
from mixdef.training.hosts import Stopped
from mixdef.training.shadows import Shadows
from mixdef.training.signature import digest

_OTHERS = "population/"
_RECORDS = 256  # whose views are held at once


@dataclasses.dataclass(frozen=True)
class ShadowSignals:
  """What S shadow models answered, and what is known of their training.

  Attributes:
    signals: of the sound models, in the order of their numbers.
    models: int [S'], the numbers of the sound models.
    diverged: numbers of models whose parameters are not finite: they are left out.
    guarantee: `epsilon` and `delta` that the defense states, else None.
    strategy: how the models shared the machine.
    seconds: that training took, of interrupted runs, too.
    per_minute: models trained a minute.
  """

  signals: Signals
  models: np.ndarray
  diverged: list[int]
  guarantee: dict[str, float | None]
  strategy: str
  seconds: float
  per_minute: float


def shadow_signals(
  learner: Any,
  data: Dataset,
  keep,
  *,
  queries: Callable[[np.ndarray], np.ndarray] = identity,
  population: Dataset | None = None,
  keep_params: bool = True,
  out: Any = None,
  **training: Any,
) -> ShadowSignals:
  """Train S models on S subsets and query each about every record.

  As `signals(fit_many(...))`, but a chunk of models is asked as soon as it is trained,
  so that only the answers of all S are held. With `out`, answers are written there, one
  entry a model, and a later call with more models adds to them. Models that diverged
  (not finite) are left out, with a warning.

  Args:
    learner: as in `fit_many`.
    data: as in `fit_many`.
    keep: bool [S,N], the members of each model.
    queries: the views of a record that are asked about, as in `signals`.
    population: as in `signals`.
    keep_params: False writes the answers only, not the models: other questions then
      need another training.
    out: folder of models and answers, as in `fit_many`.
    **training: `epochs`, `batch_size`, `seed` and the like, as in `fit_many`.

  Returns:
    The `ShadowSignals`; of several processes each gets all of it.

  Raises:
    ValueError: as `fit_many` and `signals`, and if all models diverged.
  """
  with shadow_training(learner, data, keep, out=out, **training) as shadows:
    asked = _Asked(shadows, _name_of(queries, data, population))

    def wanted(model):
      return not asked.has(model) or (keep_params and not shadows.has(model))

    for models, states in shadows.finished(wanted, keep_params=keep_params):
      chunk = shadows.ensemble(models, states)
      broken = chunk.diverged
      asked.put(np.array(models)[broken], None, chunk)
      if not broken.all():
        answers = signals(chunk.sound(), queries=queries, population=population)
        asked.put(np.array(models)[~broken], answers, chunk)
  return asked.gather(data, population)


class _Asked:
  """The answers of models: in the store if there is one, else in memory."""

  def __init__(self, shadows: Shadows, kind: str):
    self.shadows, self.kind, self._here = shadows, kind, {}

  def has(self, model: int) -> bool:
    """Say whether a model's answers are in the store and can be read."""
    store, name = self.shadows.store, f"{self.kind}/{model:05d}"
    if store is None or not store.has(name):
      return False
    return store.notes(name) is not None and store.load_arrays(name) is not None

  def put(self, models, answers: Signals | None, chunk) -> None:
    """Keep a chunk's answers; None for models that diverged."""
    notes = {"guarantee": chunk[0].guarantee, "diverged": answers is None}
    for place, model in enumerate(models.tolist()):
      arrays = {} if answers is None else _of_model(answers, place)
      if self.has(model):
        continue
      if self.shadows.store is None:
        self._here[model] = arrays, notes
        continue
      made_from = self.shadows.made_from(model)
      name = f"{self.kind}/{model:05d}"
      self.shadows.store.save(name, arrays, made_from=made_from, **notes)

  def gather(self, data, population) -> ShadowSignals:
    """Join the answers of all models."""
    shadows, found = self.shadows, {}
    for model in range(len(shadows.keep)):
      found[model] = self._here.get(model) or self._read(model)
    sound = [model for model, (_, notes) in found.items() if not notes["diverged"]]
    if not sound:
      raise ValueError("every model diverged: train with a lower learning rate")
    arrays = [found[model][0] for model in sound]
    stacks: dict[str, Any] = {
      name: np.stack([one[name] for one in arrays]) for name in arrays[0]
    }
    others = None
    if population is not None:
      theirs = {
        name.removeprefix(_OTHERS): stacks.pop(name)
        for name in list(stacks)
        if name.startswith(_OTHERS)
      }
      nobody = np.zeros((len(sound), len(population)), bool)
      others = Signals(**theirs, keep=nobody, labels=population.y)
    ensemble = shadows.ensemble(sound, None)
    return ShadowSignals(
      signals=Signals(
        **stacks,
        keep=ensemble.keep,
        labels=data.y,
        audited=data.audited,
        ids=data.ids,
        population=others,
      ),
      models=np.array(sound),
      diverged=[model for model in found if model not in sound],
      guarantee=found[sound[0]][1]["guarantee"],
      strategy=shadows.agreed.strategy,
      seconds=ensemble.seconds,
      per_minute=ensemble.per_minute,
    )

  def _read(self, model):
    store, name = self.shadows.store, f"{self.kind}/{model:05d}"
    notes, arrays = store.notes(name), store.load_arrays(name)
    if notes is None or arrays is None:
      raise Stopped(f"{name} of {store.folder} is lost: run the command again")
    return arrays, notes


def _of_model(answers: Signals, place: int) -> dict[str, np.ndarray]:
  """Return what one model answered, the population's answers by their prefix."""
  names = ("phi", "hinge", "correct", "log_probs")
  stacks = {name: getattr(answers, name) for name in names}
  own = {name: stack[place] for name, stack in stacks.items() if stack is not None}
  if answers.population is None:
    return own
  others = _of_model(answers.population, place)
  return own | {_OTHERS + name: array for name, array in others.items()}


def _name_of(queries, data, population) -> str:
  """Name the questions by what is asked: every view of every record."""
  asked = [data] if population is None else [data, population]
  words = [
    digest(queries(records.x[first : first + _RECORDS]))
    for records in asked
    for first in range(0, len(records), _RECORDS)
  ]
  words += [digest(records.y) for records in asked]
  return f"signals-{digest(np.array(words))}"

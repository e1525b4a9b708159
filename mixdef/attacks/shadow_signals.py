"""Train shadow models and query them by chunk, so that memory does not grow with S."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mixdef.attacks._kept import joined, name_of, of_model
from mixdef.attacks.query import STACKS
from mixdef.attacks.signals import Signals
from mixdef.attacks.views import Views
from mixdef.data import Dataset
from mixdef.training.devices import Stopped
from mixdef.training.fitting import shadow_training
from mixdef.training.options import Options
from mixdef.training.shadows import Shadows


@dataclasses.dataclass(frozen=True)
class ShadowSignals:
  """Outputs of S shadow models, with facts about their training.

  Attributes:
    signals: signals of the finite models, ordered by model index.
    models: int [S'], indices of the finite models.
    diverged: indices of the models whose parameters are not finite; they are excluded.
    guarantee: `epsilon` and `delta` that the defense states, or None.
    strategy: how the models were distributed over the devices.
    seconds: training time, including that of interrupted runs.
    per_minute: models trained per minute.
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
  members,
  *,
  population: Dataset | None = None,
  views: Views | None = None,
  keep_params: bool = True,
  out: Any = None,
  **training: Any,
) -> ShadowSignals:
  """Train S models on S subsets and query each of them on every record.

  This gives the same result as `fit_many(...).signals()`, but a chunk of models is
  queried as soon as it is trained, so only the outputs of all S models are held. If
  `out` is given, outputs are written there, one entry per model, and a later call with
  more models adds to them. Models that diverged (not finite) are excluded, with a
  warning.

  Args:
    learner: as in `fit_many`.
    data: as in `fit_many`.
    members: bool [S,N], the members of each model.
    population: as in `Ensemble.signals`.
    views: as in `Ensemble.signals`.
    keep_params: False writes only the outputs, not the models; different views then
      require training again.
    out: folder for models and outputs, as in `fit_many`.
    **training: `epochs`, `batch_size`, `seed` and the like, as in `fit_many`.

  Returns:
    The `ShadowSignals`; with several processes, each gets all of it.

  Raises:
    ValueError: as for `fit_many` and `Ensemble.signals`, and if all models diverged.
  """
  options = Options(out=out, **training)
  with shadow_training(learner, data, members, options) as shadows:
    outputs = _Outputs(shadows, name_of(views, data, population))

    def wanted(model):
      return not outputs.has(model) or (keep_params and not shadows.has(model))

    for models, states in shadows.finished(wanted, keep_params=keep_params):
      chunk = shadows.ensemble(models, states)
      broken = chunk.diverged
      outputs.put(np.array(models)[broken], None, chunk)
      if not broken.all():
        # These outputs are saved here, with the facts about their models.
        finite = dataclasses.replace(chunk.converged(), kept=None)
        found = finite.signals(population=population, views=views)
        outputs.put(np.array(models)[~broken], found, chunk)
  return outputs.gather(data, population)


class _Outputs:
  """Outputs of models, kept in the store if there is one, otherwise in memory."""

  def __init__(self, shadows: Shadows, kind: str):
    self.shadows, self.kind, self._here = shadows, kind, {}

  def has(self, model: int) -> bool:
    """Return whether a model's outputs are in the store and readable."""
    store, name = self.shadows.store, f"{self.kind}/{model:05d}"
    if store is None or not store.has(name):
      return False
    return store.notes(name) is not None and store.load_arrays(name) is not None

  def put(self, models, signals: Signals | None, chunk) -> None:
    """Save a chunk's outputs; None marks models that diverged."""
    notes = {"guarantee": chunk[0].guarantee, "diverged": signals is None}
    for place, model in enumerate(models.tolist()):
      arrays = {} if signals is None else of_model(signals, place, STACKS)
      if self.has(model):
        continue
      if self.shadows.store is None:
        self._here[model] = arrays, notes
        continue
      made_from = self.shadows.made_from(model)
      name = f"{self.kind}/{model:05d}"
      self.shadows.store.save(name, arrays, made_from=made_from, **notes)

  def gather(self, data, population) -> ShadowSignals:
    """Combine the outputs of all models."""
    shadows, found = self.shadows, {}
    for model in range(len(shadows.members)):
      found[model] = self._here.get(model) or self._read(model)
    sound = [model for model, (_, notes) in found.items() if not notes["diverged"]]
    if not sound:
      raise ValueError("all models diverged: train with a lower learning rate")
    arrays = [found[model][0] for model in sound]
    ensemble = shadows.ensemble(sound, None)
    return ShadowSignals(
      signals=joined(Signals, arrays, ensemble.members, data, population),
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
      raise Stopped(f"{name} of {store.folder} is missing: run the command again")
    return arrays, notes

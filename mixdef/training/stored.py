"""States of models that lie in a run folder and are loaded when they are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.learner import TrainState
from mixdef.data import Dataset
from mixdef.training.devices import Stopped
from mixdef.training.entry import is_key
from mixdef.training.store import Store

NOTES = {"made_from": dict, "diverged": bool, "guarantee": dict, "parameters": bool}
"""Form of the notes of a model; `parameters` is False if they were not kept."""


def name_of(model: int) -> str:
  """Return the name of a model's entry in a run folder."""
  return f"models/{model:05d}"


@dataclasses.dataclass(frozen=True)
class Stored:
  """States of S models in a run folder; the last chunk that was loaded stays in memory.

  Attributes:
    store: the run folder.
    models: int [S], the index of each model in the folder.
    made_from: model index -> everything that determines the model.
    load: model index -> its state, or None if it cannot be read.
    data: the records that the models were trained on.
    recent: models and their states, those that were loaded last.
  """

  store: Store
  models: np.ndarray
  made_from: Callable[[int], dict[str, Any]]
  load: Callable[[int], TrainState | None]
  data: Dataset
  recent: dict[int, TrainState] = dataclasses.field(default_factory=dict)

  def select(self, models: Any) -> Stored:
    """Return some of the models, given as a slice, a mask or indices."""
    return dataclasses.replace(self, models=self.models[models])

  def read(self) -> TrainState:
    """Return the states with a leading axis of models.

    Raises:
      Stopped: if a model is not in the folder, or its parameters were not kept.
    """
    wanted = self.models.tolist()
    found = {model: self._one(model) for model in set(wanted) - self.recent.keys()}
    known = {**self.recent, **found}
    if len(found) > 1:
      self.recent.clear()
      self.recent.update(found)
    return joined([rows_of(known[model], None) for model in wanted])

  def _one(self, model):
    state = self.load(model)
    if state is None:
      raise Stopped(
        f"{self.store.folder} lacks the parameters of model {model}: train again with "
        "the same arguments, and keep_params=True"
      )
    return state

  @property
  def notes(self) -> list[dict[str, Any]]:
    """What is known of each model without loading it; see `NOTES`.

    Raises:
      Stopped: if a model is not in the folder.
    """
    return [self._notes(model) for model in self.models.tolist()]

  def _notes(self, model):
    name = name_of(model)
    notes = self.store.notes(name, NOTES) if self.store.has(name) else None
    if notes is None:
      raise Stopped(f"{self.store.folder} lacks model {model}: train again")
    return notes


def rows_of(tree: Any, models: Any) -> Any:
  """Return the rows of some models, given as an index, a slice or an array."""
  return jax.tree.map(lambda leaf: leaf[models], tree)


def joined(states: Sequence[TrainState]) -> TrainState:
  """Concatenate states along the axis of models, on the host."""
  return jax.tree.map(
    lambda *leaves: (jnp if is_key(leaves[0]) else np).concatenate(leaves), *states
  )

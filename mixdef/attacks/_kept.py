"""Keep the outputs of models in their run folder, so that each is queried once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from mixdef.attacks.views import identity
from mixdef.core.reading import digest
from mixdef.data import Dataset
from mixdef.training import Ensemble
from mixdef.training.stored import Stored

_OTHERS = "population/"
_RECORDS = 256  # records whose views are held at once


def name_of(views: Any, data: Dataset, population: Dataset | None, **options) -> str:
  """Return the name of what is queried, derived from every view of every record."""
  queried = [data] if population is None else [data, population]
  views = views or identity
  words = [
    digest(views(records.x[first : first + _RECORDS]))
    for records in queried
    for first in range(0, len(records), _RECORDS)
  ]
  words += [digest(records.y) for records in queried]
  words += [f"{name}={value}" for name, value in sorted(options.items())]
  return f"signals-{digest(np.array(words))}"


def of_model(signals: Any, place: int, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Return the arrays of one model, with a prefix for those on the population."""
  stacks = {name: getattr(signals, name) for name in names}
  own = {name: stack[place] for name, stack in stacks.items() if stack is not None}
  if signals.population is None:
    return own
  others = of_model(signals.population, place, names)
  return own | {_OTHERS + name: array for name, array in others.items()}


def joined(
  kind: type,
  models: Sequence[dict[str, np.ndarray]],
  members: np.ndarray,
  data: Dataset,
  population: Dataset | None,
) -> Any:
  """Return the signals of several models, each given by its arrays."""
  stacks: dict[str, Any] = {
    name: np.stack([one[name] for one in models]) for name in models[0]
  }
  others = None
  if population is not None:
    theirs = {
      name.removeprefix(_OTHERS): stacks.pop(name)
      for name in list(stacks)
      if name.startswith(_OTHERS)
    }
    nobody = np.zeros((len(models), len(population)), bool)
    others = kind(
      **theirs, members=nobody, labels=population.y, groups=population.groups
    )
  return kind(
    **stacks,
    members=members,
    labels=data.y,
    audited=data.audited,
    ids=data.ids,
    groups=data.groups,
    population=others,
  )


class Query:
  """A query of ensembles, whose outputs are kept in the run folder of the models.

  Args:
    query: `(ensemble, *, population, views, progress, **options) -> signals`.
    kind: type of the signals.
    names: its arrays with a leading axis of models.
  """

  def __init__(self, query: Callable, kind: type, names: Sequence[str]):
    functools.update_wrapper(self, query)
    self.query, self.kind, self.names = query, kind, names

  def __call__(self, ensemble: Ensemble, **arguments: Any) -> Any:
    """Return the signals; only models whose outputs are not kept are queried."""
    if ensemble.stored is None:
      return self.query(ensemble, **arguments)
    first = jax.process_index() == 0  # the others would write the same
    return self.named(ensemble.data, **arguments)(ensemble, save=first)

  def named(self, data: Dataset, **arguments: Any) -> "NamedQuery":
    """Return the query of these records with these arguments."""
    options = {"population": None, "views": None, **arguments}
    options.pop("progress", None)
    return NamedQuery(self, name_of(data=data, **options), arguments)


class NamedQuery:
  """A query with its arguments, and the name of its outputs in a run folder."""

  def __init__(self, query: Query, name: str, arguments: Mapping[str, Any]):
    self._query, self._name, self._arguments = query, name, arguments

  def has(self, store: Any, model: int) -> bool:
    """Return whether a store holds intact outputs of a model."""
    place = self._place(model)
    return store.has(place) and store.load_arrays(place) is not None

  def __call__(self, ensemble: Ensemble, *, save: bool = True) -> Any:
    """Return the signals of models in a run folder, and keep those not yet there."""
    query, stored = self._query, cast(Stored, ensemble.stored)
    places = [self._place(model) for model in stored.models]
    origins = [stored.made_from(model) for model in stored.models.tolist()]
    found: list[Any] = [None] * len(places)
    for i, place in enumerate(places):
      notes = stored.store.notes(place) if stored.store.has(place) else None
      if notes and notes.get("made_from") == origins[i]:
        found[i] = stored.store.load_arrays(place)
    missing = [i for i, arrays in enumerate(found) if not arrays]
    if missing:
      part = query.query(ensemble.select(np.array(missing)), **self._arguments)
      for row, i in enumerate(missing):
        found[i] = of_model(part, row, query.names)
        if save:
          stored.store.save(places[i], found[i], made_from=origins[i])
    population = self._arguments.get("population")
    return joined(query.kind, found, ensemble.members, ensemble.data, population)

  def _place(self, model):
    return f"{self._name}/{model:05d}"


def kept(kind: type, names: Sequence[str]) -> Callable[[Callable], Query]:
  """Decorate a query of an ensemble; see `Query`."""
  return functools.partial(Query, kind=kind, names=names)

"""Keep the outputs of models in their run folder, so that each is queried once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mixdef.attacks.views import identity
from mixdef.core.reading import digest
from mixdef.data import Dataset
from mixdef.training import Ensemble

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
    others = kind(**theirs, members=nobody, labels=population.y)
  return kind(
    **stacks,
    members=members,
    labels=data.y,
    audited=data.audited,
    ids=data.ids,
    population=others,
  )


def kept(kind: type, names: Sequence[str]) -> Callable[[Callable], Callable]:
  """Decorate a query of an ensemble, so that its run folder keeps the outputs.

  Args:
    kind: type of the signals that the query returns.
    names: its arrays with a leading axis of models.
  """

  def decorate(query):
    @functools.wraps(query)
    def run(ensemble: Ensemble, *, population=None, views=None, progress=False, **how):
      def ask(models):
        return query(
          models, population=population, views=views, progress=progress, **how
        )

      entries = ensemble.entries
      if entries is None:
        return ask(ensemble)
      store, name = entries.store, name_of(views, ensemble.data, population, **how)
      places = [f"{name}/{model:05d}" for model in entries.models]
      origins = [entries.made_from(model) for model in entries.models]
      found: list[Any] = [None] * len(places)
      for i, place in enumerate(places):
        notes = store.notes(place) if store.has(place) else None
        if notes and notes.get("made_from") == origins[i] and not notes["diverged"]:
          found[i] = store.load_arrays(place)
      missing = [i for i, arrays in enumerate(found) if not arrays]
      if missing:
        part = ask(ensemble.select(np.array(missing)))
        for row, i in enumerate(missing):
          found[i] = of_model(part, row, names)
          notes = {"guarantee": ensemble[i].guarantee, "diverged": False}
          store.save(places[i], found[i], made_from=origins[i], **notes)
      return joined(kind, found, ensemble.members, ensemble.data, population)

    return run

  return decorate

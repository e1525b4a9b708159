"""Train and attack a grid of defenses on the same records."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from numpy.typing import ArrayLike

from mixdef.attacks import ATTACKS, by_person
from mixdef.auditing import sweep_tables
from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.facts import of_one_run
from mixdef.auditing.running import Budget, run_attacks
from mixdef.core import files, reading
from mixdef.core.chaining import chain
from mixdef.core.grids import Grid, read_grids
from mixdef.core.hooks import Defense
from mixdef.core.learner import Learner
from mixdef.data import Dataset
from mixdef.training import Ensemble, devices, fit_many
from mixdef.training.signature import AnotherRun, digest_data, equal_or_refuse

# Options of `fit_many` that change how fast it is, not its result.
_SPEED = ("strategy", "memory_gb", "progress")


@dataclasses.dataclass(frozen=True)
class _Sweep:
  """What all cells of a data set and seed have in common."""

  make_learner: Callable[[Defense], Learner]
  data: Dataset
  members: np.ndarray
  attacks: list[str]
  budget: Budget
  training: Mapping[str, Any]
  seed: int


def sweep_defenses(
  make_learner: Callable[[Defense], Learner],
  data: Dataset,
  defenses: str,
  members: ArrayLike,
  *,
  attacks: Any,
  out: str | pathlib.Path,
  budget: Budget | None = None,
  seed: int = 0,
  made_from: Mapping[str, Any] | None = None,
  noted: Mapping[str, Any] | None = None,
  **training: Any,
) -> list[dict[str, Any]]:
  """Train shadow models with each defense on the same subsets, and attack them.

  If the records have groups, persons are attacked, as in `audit`.

  A list in place of an argument of a defense stands for each of its values in turn.
  One program trains all values side by side if nothing static depends on them. Every
  finished defense is a file in `out`; a later call with more defenses, data sets or
  seeds adds to them, and tries again what was refused. After each program the tables
  sweep.csv, sweep.md and sweep.png of `out` are written. Models and scores are not
  kept. Several processes that share `out` train together; the first attacks and writes.

  Args:
    make_learner: returns the learner with a defense.
    data: the records, with held-out ones in `data.test`.
    defenses: defenses separated by ;, as "none; relaxloss([0.5, 1.0])".
    members: bool [S,N], the membership matrix of the shadow models of every defense.
    attacks: names of attacks, as in `run_attacks`.
    out: folder of the results.
    budget: budget of the costly attacks; default `Budget()`.
    seed: random seed of the training and of the attacks.
    made_from: settings that all results in `out` for this data set and seed must share,
      ready for JSON; None takes the learner without a defense, the subsets, the attacks
      and the options of the training.
    noted: entries to store with every result, such as the commit.
    **training: `epochs`, `batch_size` and the like, as in `fit_many`.

  Returns:
    All results in `out`, one dictionary per data set, defense and seed: first the
    `defenses` in their order, then the others. Each holds dataset, seed, family (the
    text with the lists), defense, and either accuracies, guarantee and `attacks`
    (metrics by attack), or `not_run` with the reason. Empty on all processes but the
    first.

  Raises:
    ValueError: an argument is out of range, or `out` holds results that were made from
      other settings or records.
  """
  budget, members = budget or Budget(), np.asarray(members)
  names = ATTACKS.names(attacks)
  out, grids = files.path_of(out), read_grids(defenses)
  sweep = _Sweep(make_learner, data, members, names, budget, training, seed)
  if made_from is None:
    made_from = {
      "learner": make_learner(chain()).text,
      "members": reading.digest(members),
      "attacks": names,
      "budget": dataclasses.asdict(budget),
      **{name: value for name, value in training.items() if name not in _SPEED},
    }
  made_from = {**made_from, "records": digest_data(data)}
  if data.groups is not None:
    made_from["unit"] = "person"
  first = jax.process_index() == 0
  for grid in grids:
    for part in _programs(grid):
      _complete(sweep, grid.text, part, out, made_from, noted or {})
      if first:
        sweep_tables.write(_read_cells(out, grids), out)
  return _read_cells(out, grids) if first else []


def _programs(grid: Grid) -> list[Grid]:
  """Return the whole grid if one program trains all its cells, else single cells."""
  if grid.traceable() or not grid.values:
    return [grid]
  return [grid._replace(template=text, values={}) for text in grid.texts]


def _complete(sweep, family, grid, out, made_from, noted) -> None:
  """Compute the missing cells among those that one program trains."""
  place = out / "cells" / sweep.data.name / f"seed-{sweep.seed}"
  shadows = len(sweep.members)
  paths = [place / f"{_mark(shadows, text)}.json" for text in grid.texts]
  for path in files.listed(place, "*.json"):
    if cell := _read_cell(path):
      fix = "Choose another --out."
      equal_or_refuse(path, cell["made_from"], made_from, fix=fix)
  # The first process has written the cells before; the others then see the same.
  missing = devices.process0_first(
    lambda: [i for i, text in enumerate(grid.texts) if not _finished(paths[i], text)]
  )
  if not missing:
    return
  grid = grid.select(missing)
  scratch = place / f"training-{_mark(shadows, *grid.texts)}"
  found = _results(sweep, grid, scratch)
  if jax.process_index():
    return
  common = {"dataset": sweep.data.name, "seed": sweep.seed, "family": family}
  common |= {**noted, "made_from": made_from}
  for i, text, result in zip(missing, grid.texts, found, strict=True):
    files.write_json(paths[i], reading.seal({**common, "defense": text, **result}))
  files.remove(scratch)


def _mark(*words) -> str:
  return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _read_cell(path) -> dict[str, Any] | None:
  """Read a cell; a damaged one is removed with a warning, to be computed again."""
  form = {"dataset": str, "defense": str, "made_from": dict}
  try:
    fix = "removed: run the command that wrote it again to recompute it"
    return reading.read_json(path, form=form, sealed=True, fix=fix)
  except reading.Damaged as error:
    logging.warning("%s", error)
    files.remove(path)
    return None


def _finished(path, text) -> bool:
  """Return whether a cell has its results; one that was refused is tried again."""
  cell = _read_cell(path) if files.exists(path) else None
  return cell is not None and cell["defense"] == text and "not_run" not in cell


def _read_cells(out, grids) -> list[dict[str, Any]]:
  """Return all cells in the folder: those of the grids in their order, then others."""
  families: dict[str, str] = {}
  for grid in grids:
    for text in grid.texts:
      families.setdefault(text, grid.text)
  place = {text: number for number, text in enumerate(families)}

  def order(cell):
    return cell["dataset"], place.get(cell["defense"], len(place))

  paths = sorted(
    files.listed(out, "cells/*/*/*.json"), key=lambda path: path.stat().st_mtime
  )
  cells = sorted(filter(None, map(_read_cell, paths)), key=order)
  for cell in cells:
    del cell["made_from"]
    cell["family"] = families.get(cell["defense"], cell["family"])
  return cells


def _results(sweep, grid, scratch) -> list[dict[str, Any]]:
  """Train the shadow models of all cells together and attack those of each cell."""
  shadows, names = len(sweep.members), ", ".join(grid.texts)
  logging.info(
    "%s, seed %d: %s, %d models each", sweep.data.name, sweep.seed, names, shadows
  )
  try:
    ensemble = _trained(sweep, grid, scratch)
  except ValueError as error:
    return [_refused(error)] * len(grid.cells)
  if jax.process_index():
    return []  # the first process attacks
  seconds = round(ensemble.seconds / len(grid.cells), 2)
  slices = (slice(i, i + shadows) for i in range(0, len(ensemble), shadows))
  return [
    {**_attacked(sweep, ensemble.select(cell)), "seconds": seconds} for cell in slices
  ]


def _refused(error) -> dict[str, str]:
  logging.info("not run: %s", error)
  return {"not_run": str(error)}


def _trained(sweep, grid, scratch) -> Ensemble:
  """Train the models of the first cell, then those of the next, on the same subsets."""
  cells, shadows = len(grid.cells), len(sweep.members)

  def learner(**values):
    return sweep.make_learner(grid.defense(**values))

  def train():
    return fit_many(
      learner if grid.values else learner(),
      sweep.data,
      np.tile(sweep.members, (cells, 1)),
      seed=sweep.seed,
      model_ids=np.tile(np.arange(shadows), cells),
      sweep={name: np.repeat(column, shadows) for name, column in grid.values.items()},
      out=scratch,
      signals={"population": sweep.data.test},
      **sweep.training,
    )

  try:
    return train()
  except AnotherRun as error:  # the code or the strategy changed since it was stopped
    logging.info("the partly trained models are trained again: %s", error)
    files.remove(scratch)
    if jax.process_count() > 1:
      raise devices.Stopped(f"{scratch} was outdated: run the command again") from None
    return train()


def _attacked(sweep, ensemble) -> dict[str, Any]:
  """Return the metrics of one cell."""
  trained = len(ensemble)
  try:
    ensemble = ensemble.converged()
  except ValueError as error:  # the models of other cells need not have diverged
    return _refused(error)
  outputs = ensemble.signals(population=ensemble.data.test)
  signals = by_person(outputs)
  found = run_attacks(
    sweep.attacks, signals, ensemble, budget=sweep.budget, seed=sweep.seed
  )
  persons = {"num_persons": int(signals.audited.sum())}
  return {
    **accuracies(outputs),
    **of_one_run(ensemble.guarantee),
    "num_shadows": len(ensemble),
    "diverged": trained - len(ensemble),
    "num_records": int(ensemble.data.audited.sum()),
    **(persons if signals.unit == "person" else {}),
    "strategy": ensemble.strategy,
    "attacks": found.metrics,
    "attacks_not_run": found.not_run,
  }

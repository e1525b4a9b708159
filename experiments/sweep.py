"""Compare a grid of defenses on the same records: one table and one plot.

  python experiments/sweep.py --defenses="none; relaxloss([0.5, 1.0])" --num_shadows=16

A list in the place of an argument is every value in turn; where nothing static depends
on the values, one program trains them all side by side. Every cell trains its own
shadows on the same random halves of the same records, and every model is the target
once. Writes sweep.csv, sweep.md, sweep.png and result.json. Run again with the same
--out, it resumes, and with other defenses, data sets or seeds it adds to the table;
what was refused is tried again. Only figures are kept: for models and scores use
lira.py or audit.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
from typing import Any

import command_line
import job
from absl import logging
from etils import epy
from settings import PLACES, JobSettings, ShadowSettings, about
from studies import STUDIES

with epy.lazy_imports():
  import numpy as np
  import sweep_tables

  import mixdef
  from mixdef import auditing
  from mixdef.core import files, reading
  from mixdef.core import grids as grids
  from mixdef.training import signature

ATTACKS = (
  "gap, loss_threshold, threshold_known, lira_online, lira_offline, rmia, "
  "label_only_noise"
)


@dataclasses.dataclass(frozen=True)
class SweepSettings(ShadowSettings):
  """What to compare, besides the common settings; `defense` is not read."""

  study: str = ""
  defenses: str = ""
  datasets: str = ""
  seeds: int = 1
  attacks: str = ATTACKS
  attack_targets: int = 4
  attack_records: int = 500

  quick_shadows = 4
  grows = ("study", "defenses", "dataset", "datasets", "seed", "seeds", "num_shadows")

  def __post_init__(self):
    """Refuse what cannot be compared before anything is written."""
    super().__post_init__()
    if bool(self.study) == bool(self.defenses):
      raise ValueError(
        "give one of --study=NAME and --defenses='none; mixup([0.1, 1])'"
      )
    if self.study and self.study not in STUDIES:
      raise ValueError(f"--study={self.study}: choose from {', '.join(STUDIES)}")
    if self.defense != "none":
      raise ValueError("--defense is not read here: write --defenses='none; ...'")
    if not self.attacks.strip():
      raise ValueError("--attacks is empty: name one at least")
    _ = self.chosen_attacks, self.grids
    with about("datasets", self.datasets):
      for name in self.names:
        mixdef.data.check_name(name)
      if len(set(self.names)) < len(self.names):
        raise ValueError("a data set is named twice: name it once")
    command_line.check("seed", self.seed + self.seeds - 1, int)

  def inputs(self) -> dict[str, str]:
    """Return versions; every cell notes the digest of its own records."""
    return {**JobSettings.inputs(self), "jax": command_line.version("jax")}

  def own(self) -> dict[str, Any]:
    """Return what one data set's cells of one seed have in common."""
    config = dataclasses.asdict(self)
    apart = {*PLACES, *self.grows} - {"seed"}
    return {**{k: v for k, v in config.items() if k not in apart}, **self.inputs()}

  @property
  def label(self) -> str:
    """Data sets and the study, if it has a name."""
    return f"{self.datasets or self.dataset}-{self.study or 'defenses'}"

  @property
  def chosen_attacks(self) -> list[str]:
    """The attacks, with their arguments."""
    with about("attacks", self.attacks):
      return mixdef.attacks.ATTACKS.names(self.attacks)

  @property
  def grids(self) -> list[grids.Grid]:
    """The families of defenses."""
    with about("defenses", self.defenses):
      return grids.read_grids(self.defenses or "; ".join(STUDIES[self.study]))

  @property
  def names(self) -> list[str]:
    """The data sets."""
    if not self.datasets.strip():
      return [self.dataset]
    return [part.strip() for part in self.datasets.split(",")]

  def runs(self) -> list[SweepSettings]:
    """The same settings for each data set and seed alone."""
    return [
      dataclasses.replace(self, dataset=name, datasets="", seed=seed, seeds=1)
      for name in self.names
      for seed in range(self.seed, self.seed + self.seeds)
    ]


def run(settings: SweepSettings, folder: pathlib.Path) -> dict:
  """Train and attack every cell; returns what result.json holds."""
  # All are read first: a missing file stops the sweep before hours of training.
  runs = settings.runs()
  loaded = {one.dataset: one.load() for one in runs if one.seed == settings.seed}
  for one in runs:
    data = loaded[one.dataset]
    if data.test is None:
      data = data.hold_out(0.2, seed=one.seed)
    data = one.cut(data, halves=2)
    for grid in one.grids:
      for part in _programs(grid):
        _complete(one, data, grid.text, part, folder)
        sweep_tables.write(_cells(settings, folder), folder)
  return {"cells": _cells(settings, folder)}


def _programs(grid: grids.Grid) -> list[grids.Grid]:
  """The grid whole if one program trains all its cells, or else cell by cell."""
  if grid.traceable() or not grid.values:
    return [grid]
  return [grid._replace(template=text, values={}) for text in grid.texts]


def _complete(settings, data, family, grid, folder) -> None:
  """Compute what is missing of the cells that one program trains."""
  place = folder / "cells" / data.name / f"seed-{settings.seed}"
  place.mkdir(parents=True, exist_ok=True)
  paths = [place / f"{_mark(settings.shadows, text)}.json" for text in grid.texts]
  made_from = {**settings.own(), "records": signature.digest_data(data)}
  for path in _paths(place):
    if cell := _read_cell(path):
      fix = "Choose another --out."
      signature.equal_or_refuse(path, cell["made_from"], made_from, fix=fix)
  missing = [i for i, text in enumerate(grid.texts) if not _finished(paths[i], text)]
  if not missing:
    return
  grid = grid.take(missing)
  scratch = place / f"training-{_mark(settings.shadows, *grid.texts)}"
  found = _figures(settings, data, grid, scratch)
  common = {"dataset": data.name, "seed": settings.seed, "family": family}
  common |= {"commit": job.environment()["commit"], "made_from": made_from}
  for i, text, figures in zip(missing, grid.texts, found, strict=True):
    files.write_json(paths[i], reading.seal({**common, "defense": text, **figures}))
  shutil.rmtree(scratch, ignore_errors=True)


def _mark(*words) -> str:
  return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _paths(folder, pattern="*.json"):
  return [path for path in folder.glob(pattern) if not files.is_clutter(path)]


def _read_cell(path) -> dict[str, Any] | None:
  """Read a cell; a damaged one is told and removed, to be computed again."""
  form = {"dataset": str, "defense": str, "made_from": dict}
  try:
    fix = "removed: the command that made it computes it again"
    return reading.read_json(path, form=form, sealed=True, fix=fix)
  except reading.Damaged as error:
    logging.warning("%s", error)
    path.unlink()
    return None


def _finished(path, text) -> bool:
  """Tell whether a cell has its figures; one that was refused is tried again."""
  cell = _read_cell(path) if path.exists() else None
  return cell is not None and cell["defense"] == text and "not_run" not in cell


def _cells(settings, folder) -> list[dict[str, Any]]:
  """Every cell in the folder: this command's in its order, then those of others."""
  families: dict[str, str] = {}
  for grid in settings.grids:
    for text in grid.texts:
      families.setdefault(text, grid.text)
  place = {text: number for number, text in enumerate(families)}

  def order(cell):
    return cell["dataset"], place.get(cell["defense"], len(place))

  paths = sorted(
    _paths(folder, "cells/*/*/*.json"), key=lambda path: path.stat().st_mtime_ns
  )
  cells = sorted(filter(None, map(_read_cell, paths)), key=order)
  for cell in cells:
    del cell["made_from"]
    cell["family"] = families.get(cell["defense"], cell["family"])
  return cells


def _figures(settings, data, grid, scratch) -> list[dict[str, Any]]:
  """Train the shadows of all cells together and attack each cell's."""
  shadows = settings.shadows
  names = ", ".join(grid.texts)
  logging.info(
    "%s, seed %d: %s, %d models each", data.name, settings.seed, names, shadows
  )
  try:
    ensemble = _trained(settings, data, grid, scratch)
  except ValueError as error:
    return [_refused(error)] * len(grid.cells)
  seconds = round(ensemble.seconds / len(grid.cells), 2)
  slices = (slice(i, i + shadows) for i in range(0, len(ensemble), shadows))
  return [
    {**_attacked(settings, ensemble.take(own)), "seconds": seconds} for own in slices
  ]


def _refused(error) -> dict[str, str]:
  logging.info("not run: %s", error)
  return {"not_run": str(error)}


def _trained(settings, data, grid, scratch) -> mixdef.Ensemble:
  """The shadows of the first cell, then of the next, on the same halves."""
  cells, shadows = len(grid.cells), settings.shadows
  keep = mixdef.subsets(data, shadows, seed=settings.seed)

  def learner(**values):
    return settings.make_learner(data, grid.defense(**values))

  def train():
    return mixdef.fit_many(
      learner if grid.values else learner(),
      data,
      np.tile(keep, (cells, 1)),
      epochs=settings.passes,
      batch_size=settings.batch_size,
      **settings.seeds_of_training,
      ids=np.tile(np.arange(shadows), cells),
      over={name: np.repeat(column, shadows) for name, column in grid.values.items()},
      strategy=settings.strategy,
      memory_gb=settings.memory_gb or None,
      num_members=round(0.5 * int(data.audited.sum())),
      out=scratch,
      progress=True,
    )

  try:
    return train()
  except (
    signature.AnotherRun
  ) as error:  # the code or --strategy changed since it was stopped
    logging.info("training anew what was half trained: %s", error)
    shutil.rmtree(scratch)
    return train()


def _attacked(settings, ensemble) -> dict[str, Any]:
  """Figures of one cell."""
  trained = len(ensemble)
  try:
    ensemble = ensemble.sound()
  except ValueError as error:  # those of other cells need not have diverged
    return _refused(error)
  signals = ensemble.signals(population=ensemble.data.test)
  budget = auditing.Budget(
    targets=settings.attack_targets, records=settings.attack_records
  )
  found = auditing.run_attacks(
    settings.chosen_attacks, signals, ensemble, budget=budget, seed=settings.seed
  )
  return {
    **auditing.accuracies(signals),
    **ensemble[0].guarantee,
    "num_shadows": len(ensemble),
    "diverged": trained - len(ensemble),
    "num_records": int(ensemble.data.audited.sum()),
    "strategy": ensemble.strategy,
    "attacks": found.figures,
    "attacks_not_run": found.not_run,
  }


def show(result: dict) -> None:
  """Print the table."""
  print(sweep_tables.markdown(result["cells"]), end="")


if __name__ == "__main__":
  job.main("sweep", SweepSettings, run, show)

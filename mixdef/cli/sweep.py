"""Compare a grid of defenses on the same records: one table and one plot.

  mixdef sweep --defenses="none; relaxloss([0.5, 1.0])" --num_shadows=16

A list as an argument is a grid over its values. One program trains all of them side by
side if no shape or other static value depends on them. Every cell trains its own
shadow models on the same random halves of the same records, and every model is the
target once. Writes sweep.csv, sweep.md, sweep.png and result.json. A second run with
the same --out resumes; with other defenses, data sets or seeds, it adds to the table.
Rejected cells are tried again. Only metrics are stored; to keep models and scores, use
the jobs lira or audit. Several hosts train together with --coordinator and a shared
--out, as in mixdef lira.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from etils import epy

from mixdef.cli import flags, job
from mixdef.cli.papers import STUDIES
from mixdef.cli.settings import NOT_HASHED, HostSettings, JobSettings, about

with epy.lazy_imports():
  import mixdef
  from mixdef import auditing
  from mixdef.auditing import sweep_tables
  from mixdef.core import grids

ATTACKS = (
  "gap, loss_threshold, threshold_known, lira_online, lira_offline, rmia, "
  "label_only_noise"
)


@dataclasses.dataclass(frozen=True)
class SweepSettings(HostSettings):
  """Settings of a grid of defenses; `defense` is not used."""

  study: str = ""
  defenses: str = ""
  datasets: str = ""
  seeds: int = 1
  attacks: str = ATTACKS
  attack_targets: int = 4
  attack_records: int = 500

  quick_shadows = 4
  extendable = (
    "study",
    "defenses",
    "dataset",
    "datasets",
    "seed",
    "seeds",
    "num_shadows",
  )

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    if bool(self.study) == bool(self.defenses):
      raise ValueError("pass either --study=NAME or --defenses='none; mixup([0.1, 1])'")
    if self.study and self.study not in STUDIES:
      raise ValueError(f"--study={self.study}: choose from {', '.join(STUDIES)}")
    if self.defense != "none":
      raise ValueError("--defense is not used by this job: use --defenses='none; ...'")
    if not self.attacks.strip():
      raise ValueError("--attacks is empty: name at least one")
    _ = self.chosen_attacks
    with about("defenses", self.defenses):
      grids.read_grids(self.compared)
    with about("datasets", self.datasets):
      for name in self.names:
        mixdef.data.check_name(name)
      if len(set(self.names)) < len(self.names):
        raise ValueError("a data set is listed twice: remove one")
    flags.check("seed", self.seed + self.seeds - 1, int)

  def inputs(self) -> dict[str, str]:
    """Return versions; every cell stores the digest of its own records."""
    return {**JobSettings.inputs(self), "jax": flags.version("jax")}

  def own(self) -> dict[str, Any]:
    """Return the inputs common to all cells of one data set and seed."""
    config = dataclasses.asdict(self)
    apart = {*NOT_HASHED, *self.extendable} - {"seed"}
    return {**{k: v for k, v in config.items() if k not in apart}, **self.inputs()}

  @property
  def subject(self) -> str:
    """Data sets and the study, if it has a name."""
    return f"{self.datasets or self.dataset}-{self.study or 'defenses'}"

  @property
  def chosen_attacks(self) -> list[str]:
    """The attacks, with their arguments."""
    with about("attacks", self.attacks):
      return mixdef.attacks.ATTACKS.names(self.attacks)

  @property
  def compared(self) -> str:
    """The defenses, separated by ;."""
    return self.defenses or "; ".join(STUDIES[self.study])

  @property
  def names(self) -> list[str]:
    """The data sets."""
    if not self.datasets.strip():
      return [self.dataset]
    return [part.strip() for part in self.datasets.split(",")]

  def runs(self) -> list[SweepSettings]:
    """Return the settings of each data set and seed."""
    return [
      dataclasses.replace(self, dataset=name, datasets="", seed=seed, seeds=1)
      for name in self.names
      for seed in range(self.seed, self.seed + self.seeds)
    ]


def run(settings: SweepSettings, folder: pathlib.Path) -> dict:
  """Train and attack every cell; returns the content of result.json."""
  # Read all of them first, so that a missing file is found before hours of training.
  runs, cells = settings.runs(), []
  loaded = {one.dataset: one.load() for one in runs if one.seed == settings.seed}
  budget = auditing.Budget(
    targets=settings.attack_targets, records=settings.attack_records
  )
  for one in runs:
    data = loaded[one.dataset]
    if data.test is None:
      data = data.hold_out(0.2, seed=one.seed)
    data = one.subsample(data, halves=2)
    cells = auditing.sweep_defenses(
      functools.partial(one.make_learner, data),
      data,
      settings.compared,
      attacks=settings.chosen_attacks,
      budget=budget,
      made_from=one.own(),
      noted={"commit": job.environment()["commit"]},
      out=folder,
      **one.on_halves(data),
    )
  return {"cells": cells}


def show(result: dict) -> None:
  """Print the table."""
  print(sweep_tables.markdown(result["cells"]), end="")


JOB = job.Job("sweep", __doc__, SweepSettings, run, show, needs=("matplotlib",))

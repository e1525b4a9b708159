"""Audit a defense: shadows, every attack, canaries, and a page on who is at risk.

  python experiments/audit.py --dataset=digits --quick

trains shadow models with the defense, attacks every one with the others, plants
canaries and attacks those, and writes report.html, report.json, scores.npz and
result.json. --dp_baseline adds DP-SGD of matched accuracy. Models trained elsewhere:
--arrays=FILE.npz (docs/audit_arrays.md). Run again with the same --out, it resumes.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import job
from absl import logging
from settings import JobSettings, Settings

import mixdef
from mixdef.attacks import VIEWS
from mixdef.attacks.signals import check_model
from mixdef.auditing import (
  Budget,
  accuracies,
  attack_canaries,
  attack_dp_baseline,
  matched_dp,
  parse_canaries,
  plant,
)
from mixdef.parse import split_calls
from mixdef.reading import digest_file

_COMPARED = ("threshold", "reference")  # families that the baseline is attacked with


@dataclasses.dataclass(frozen=True)
class AuditSettings(Settings):
  """What to audit, besides the common settings."""

  num_shadows: int = 16
  strategy: str = "auto"
  memory_gb: float = 0.0
  attacks: str = ""
  views: str = "none"
  canaries: str = "mislabelled:200"
  canary_source: str = ""
  dp_baseline: bool = False
  transfer: str = ""
  attack_targets: int = 4
  attack_records: int = 500
  arrays: str = ""
  target: str = ""

  def __post_init__(self):
    """Refuse what cannot be used before anything is written."""
    super().__post_init__()
    self.chosen_attacks()
    if self.num_shadows < 2:
      raise ValueError(
        f"--num_shadows={self.num_shadows}: an attack needs a target and references, "
        f"2 at least and 16 to say much"
      )
    if self.views not in VIEWS:
      raise ValueError(f"--views={self.views!r}; choose from {', '.join(VIEWS)}")
    if self.canaries != "none":
      parse_canaries(self.canaries)
    if self.released is not None and not self.arrays:
      check_model("--target", self.released, self.shadows)

  @property
  def label(self) -> str:
    """Data set and defense, or the file of outputs."""
    return pathlib.Path(self.arrays).stem if self.arrays else super().label

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of the outputs or of all records that are read."""
    if self.arrays:
      found = JobSettings.inputs(self)
      content = digest_file(self.arrays, fix="write it with numpy.savez")
      return {**found, "content of --arrays": content}
    found = super().inputs()
    for flag in ("canary_source", "transfer"):
      if name := getattr(self, flag):
        other = dataclasses.replace(self, dataset=name)
        found[f"content of --{flag}"] = Settings.inputs(other)["content of --dataset"]
    return found

  @property
  def shadows(self) -> int:
    """Models to train."""
    return min(self.num_shadows, 8) if self.quick else self.num_shadows

  @property
  def released(self) -> int | None:
    """The model to audit alone; None for all."""
    if not self.target:
      return None
    if not self.target.isdecimal():
      raise ValueError(
        f"--target={self.target!r} is no model; pass a whole number from 0 on"
      )
    return int(self.target)

  @property
  def canary_kind(self) -> str:
    """What kind of canaries is planted."""
    return parse_canaries(self.canaries)[0]

  @property
  def budget(self) -> Budget:
    """What the costly attacks may take."""
    records = min(self.attack_records, 100) if self.quick else self.attack_records
    targets = min(self.attack_targets, 2) if self.quick else self.attack_targets
    return Budget(targets=targets, records=records)

  def training(self) -> dict[str, Any]:
    """Return what every training of the audit is called with."""
    return {
      "epochs": self.passes,
      "batch_size": self.batch_size,
      "seed": self.seed,
      "strategy": self.strategy,
      "memory_gb": self.memory_gb or None,
      "progress": True,
    }

  def chosen_attacks(self) -> list[str]:
    """Return the attacks named, or all of the catalogue."""
    names = split_calls(self.attacks) or list(mixdef.attacks.CATALOGUE)
    for name in names:
      mixdef.attacks.resolve(name)
    return names


def run(settings: AuditSettings, folder: pathlib.Path) -> dict:
  """Train, attack and write the report; returns what result.json holds."""
  audited = _of_arrays if settings.arrays else _of_shadows
  result = audited(settings, folder)
  page = result.save(folder)
  report = result.report
  names = ("verdict", "strongest", "attacks", "not_run")
  return {
    "report": str(page),
    **{name: report[name] for name in names},
    **report["setting"],
  }


def _of_arrays(settings, folder):
  path = pathlib.Path(settings.arrays)
  return mixdef.audit(
    mixdef.attacks.read_signals(path),
    target=settings.released,
    attacks=settings.chosen_attacks(),
    budget=settings.budget,
    setting={"dataset": path.stem, **job.provenance(settings.seed)},
    seed=settings.seed,
    out=folder / "attacks",
  )


def _of_shadows(settings, folder):
  data = settings.load()
  if data.test is None:
    data = data.split(0.2, seed=settings.seed)
  data = settings.cut(data, halves=2)
  asked = {"queries": VIEWS[settings.views](data.test.x), "seed": settings.seed}
  asked["queries"](data.x[:1])  # views that these records have not: refused at once
  planted = _planted(settings, data)
  transferred = _transferred(settings, folder)
  train = functools.partial(_train, settings, folder)
  learner = settings.make_learner(data)
  ensemble, canaries, baseline = train(learner, data, "shadows"), None, None
  if planted is not None:
    canaries = attack_canaries(
      train(learner, planted, "canaries"), kind=settings.canary_kind, **asked
    )
  if settings.dp_baseline or settings.quick:
    baseline = _dp_baseline(settings, folder, ensemble, planted, asked)
  return mixdef.audit(
    ensemble,
    target=settings.released,
    attacks=settings.chosen_attacks(),
    budget=settings.budget,
    options=transferred,
    canaries=canaries,
    dp_baseline=baseline,
    setting={
      "defense": settings.defended_by,
      "model": settings.model,
      "optimizer": settings.optimizer,
      "learning_rate": settings.learning_rate,
      **job.provenance(settings.seed),
    },
    out=folder / "attacks",
    progress=True,
    **asked,
  )


def _train(settings, folder, learner, data, name):
  """Train the shadows of one part of the audit, each on random halves."""
  keep = mixdef.subsets(
    settings.shadows,
    len(data),
    seed=settings.seed,
    eligible=data.audited,
    always=data.always,
  )
  logging.info("training: %s", name)
  return mixdef.fit_many(
    learner,
    data,
    keep,
    num_members=_public_size(data),
    out=folder / name,
    **settings.training(),
  ).sound()


def _public_size(data):
  """Members of a model, on average: half of the records that are audited."""
  return int(data.always.sum()) + round(0.5 * int(data.audited.sum()))


def _planted(settings, data):
  if settings.canaries == "none":
    return None
  kind, count = parse_canaries(settings.canaries)
  source = None
  if settings.canary_source:
    source = dataclasses.replace(settings, dataset=settings.canary_source).load()
  # A small set keeps most of its records for training.
  count = min(count, int(data.audited.sum()) // 4)
  return plant(data, kind, count, seed=settings.seed, source=source)


def _dp_baseline(settings, folder, ensemble, planted, asked):
  """Find DP-SGD of matched accuracy, train its shadows and attack them alike."""
  data = ensemble.data
  reached = accuracies(mixdef.signals(ensemble, log_probs=False))
  matched = matched_dp(
    settings.networks(data)[0],
    data,
    ensemble.keep[:2],
    accuracy=reached["test_accuracy"],
    num_members=_public_size(data),
    out=folder / "dp_candidates",
    **settings.training(),
  )
  train = functools.partial(_train, settings, folder, matched.learner)
  models = train(data, "dp_baseline")
  canaries = None
  if planted is not None:
    canaries = attack_canaries(
      train(planted, "dp_baseline_canaries"), kind=settings.canary_kind, **asked
    )
  attacks = [
    name
    for name in settings.chosen_attacks()
    if mixdef.attacks.family(mixdef.attacks.plain_name(name)) in _COMPARED
  ]
  return attack_dp_baseline(
    matched, models, attacks, population=data.test, canaries=canaries, **asked
  )


def _transferred(settings, folder):
  """Outputs on another data set, for the attack that transfers from it."""
  if not settings.transfer:
    return {}
  other = dataclasses.replace(settings, dataset=settings.transfer, reference=0)
  data = other.cut(other.load(), halves=2)
  keep = mixdef.subsets(2, len(data), seed=settings.seed)
  models = mixdef.fit_many(
    other.make_learner(data), data, keep, out=folder / "transfer", **settings.training()
  )
  return {"salem_2": {"source": mixdef.signals(models)}}


def show(result: dict) -> None:
  """Print the verdict and where the report is."""
  verdict = result["verdict"]
  print(f"{verdict['level'].replace('_', ' ')}: {verdict['headline']}")
  for part in ("who", "how_sure", "what_to_do"):
    for line in verdict[part]:
      print(f"  {line}")
  for name, reason in result["not_run"].items():
    print(f"  not run: {name}: {reason}")
  print(f"report: {result['report']}")


if __name__ == "__main__":
  job.main("audit", AuditSettings, run, show)

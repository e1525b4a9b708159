"""Audit a defense: shadow models, all attacks, canaries, and a report of the risk.

  mixdef audit --dataset=digits --quick

trains shadow models with the defense, attacks every one with the others, plants
canaries and attacks them, and writes report.html, report.json, scores.npz and
result.json. --dp_baseline adds DP-SGD of matched accuracy. --arrays=FILE.npz audits
models trained elsewhere (docs/audit_arrays.md). A second run with the same --out
resumes. With --coordinator and a shared --out, several hosts train together, as in
mixdef lira.
"""

from __future__ import annotations

import dataclasses
import pathlib

from etils import epy

from mixdef.cli import job
from mixdef.cli.settings import HostSettings, JobSettings, Settings, about

with epy.lazy_imports():
  import jax

  import mixdef
  from mixdef import auditing
  from mixdef.core import files, reading

_ATTACKING = ("attacks", "attack_targets", "attack_records", "target")
# Flags that apply to --arrays; all others are for training.
_OF_ARRAYS = ("arrays", "out", "seed", "quick", *_ATTACKING)


@dataclasses.dataclass(frozen=True)
class AuditSettings(HostSettings):
  """Settings of an audit."""

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
    """Check the settings before anything is written."""
    super().__post_init__()
    if self.arrays:
      self._refuse_training()
    attacks = mixdef.attacks
    called = [attacks.ATTACKS.plain_name(name) for name in self.chosen_attacks()]
    kind, _ = self.planted
    if self.canary_source:
      with about("canary_source", self.canary_source):
        mixdef.data.check_name(self.canary_source)
      if kind != "ood":
        raise ValueError(
          f"--canary_source={self.canary_source} is only used for ood canaries: use "
          "--canaries=ood:200, or remove it"
        )
    if self.transfer:
      with about("transfer", self.transfer):
        mixdef.data.check_name(self.transfer)
      if "salem_2" not in called:
        raise ValueError(
          f"--transfer={self.transfer} is only used by salem_2: add it to --attacks, "
          "or remove it"
        )
    if self.released is not None and not self.arrays:
      attacks.signals.check_model("--target", self.released, self.shadows)

  def _refuse_training(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value != field.default and field.name not in _OF_ARRAYS:
        raise ValueError(
          f"--{field.name}={value} is only used in training, but "
          f"--arrays={self.arrays} holds outputs of models trained elsewhere: remove "
          "one of the two"
        )

  @property
  def subject(self) -> str:
    """Data set and defense, or the file of outputs."""
    return pathlib.PurePath(self.arrays).stem if self.arrays else super().subject

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of the outputs or of all records that are read."""
    if self.arrays:
      found = JobSettings.inputs(self)
      content = reading.digest_file(self.arrays, fix="write it with numpy.savez")
      return {**found, "content of --arrays": content}
    found = super().inputs()
    for flag in ("canary_source", "transfer"):
      if name := getattr(self, flag):
        other = self.for_data(name)
        found[f"content of --{flag}"] = Settings.inputs(other)["content of --dataset"]
    return found

  @property
  def planted(self) -> tuple[str, int]:
    """The kind and number of canaries; "none" and 0 if there are none."""
    if self.canaries == "none":
      return "none", 0
    with about("canaries", self.canaries):
      return auditing.parse_canaries(self.canaries)

  @property
  def released(self) -> int | None:
    """Index of the only model to audit; None for all models."""
    if not self.target:
      return None
    if not self.target.isdecimal():
      raise ValueError(
        f"--target={self.target!r} is not a model; pass a whole number, 0 or more"
      )
    return int(self.target)

  @property
  def budget(self) -> auditing.Budget:
    """The numbers of targets and records for costly attacks."""
    records = min(self.attack_records, 100) if self.quick else self.attack_records
    targets = min(self.attack_targets, 2) if self.quick else self.attack_targets
    return auditing.Budget(targets=targets, records=records)

  def chosen_attacks(self) -> list[str]:
    """Return the attacks named, or all of the catalogue."""
    with about("attacks", self.attacks):
      return mixdef.attacks.ATTACKS.names(self.attacks)


def run(settings: AuditSettings, folder: pathlib.Path) -> dict:
  """Train, attack and write the report; returns the content of result.json."""
  audited = _of_arrays if settings.arrays else _of_shadows
  report = audited(settings, folder)
  return {} if report is None else job.save_report(report, folder)


def _of_arrays(settings, folder):
  path = files.path_of(settings.arrays, "--arrays")
  return mixdef.audit(
    mixdef.Signals.from_npz(path),
    target=settings.released,
    attacks=settings.chosen_attacks(),
    budget=settings.budget,
    setting={"dataset": path.stem, **job.provenance(settings.seed)},
    seed=settings.seed,
    out=folder / "attacks",
  )


def _of_shadows(settings, folder):
  """Train and attack; returns None if this process only helps to train."""
  data = settings.load()
  if data.test is None:
    data = data.hold_out(0.2, seed=settings.seed)
  data = settings.subsample(data, halves=2)
  views = mixdef.attacks.VIEWS[settings.views](data.test.x)
  views(data.x[:1])  # raises at once if these records do not have these views
  canaries = _planted(settings, data)
  compared = settings.dp_baseline or settings.quick
  if compared:
    _check_batches(settings, data, canaries)
  stages = _stages(settings, planted=canaries is not None, compared=compared)
  recipe = auditing.Recipe(
    settings.shadows, settings.training(), out=folder, begin=stages.begin
  )
  transferred = _transferred(settings, folder, stages)
  learner = settings.make_learner(data)
  ensemble = recipe.train(learner, data, "shadows", population=data.test, views=views)
  found, baseline = None, None
  if canaries is not None:
    found = auditing.add_canaries(recipe, learner, canaries, views=views)
  if compared:
    baseline = auditing.add_dp_baseline(
      recipe,
      ensemble,
      settings.chosen_attacks(),
      network=settings.networks(data)[0],
      canaries=canaries,
      views=views,
    )
  if jax.process_index():
    return None
  stages.begin("attacks")
  return mixdef.audit(
    ensemble,
    target=settings.released,
    attacks=settings.chosen_attacks(),
    views=views,
    budget=settings.budget,
    options=transferred,
    canaries=found,
    dp_baseline=baseline,
    setting={
      "defense": settings.defended_by,
      "model": settings.model,
      "optimizer": settings.optimizer,
      "learning_rate": settings.learning_rate,
      **job.provenance(settings.seed),
    },
    seed=settings.seed,
    out=folder / "attacks",
    progress=True,
  )


def _check_batches(settings, data, canaries):
  """Reject batches too large for the DP-SGD baseline, before anything is trained."""
  sets = [data] if canaries is None else [data, canaries[1]]
  smallest = min(map(auditing.public_size, sets))
  if settings.batch_size > smallest:
    raise ValueError(
      f"--batch_size={settings.batch_size} exceeds the {smallest} members of a model "
      "of the DP-SGD baseline; reduce it"
    )


def _stages(settings, *, planted, compared):
  """Return the stages of an audit that trains, by the names of their folders."""
  names = ["transfer"] if settings.transfer else []
  names += ["shadows", "canaries"] if planted else ["shadows"]
  if compared:
    names += ["dp_candidates", "dp_baseline"]
    names += ["dp_baseline_canaries"] if planted else []
  return job.Stages(*names, "attacks")


def _planted(settings, data):
  if settings.canaries == "none":
    return None
  source = None
  if settings.canary_source:
    source = settings.for_data(settings.canary_source).load()
  return auditing.planted(data, settings.canaries, seed=settings.seed, source=source)


def _transferred(settings, folder, stages):
  """Return outputs on another data set, from which an attack transfers."""
  if not settings.transfer:
    return {}
  stages.begin("transfer")
  other = dataclasses.replace(settings.for_data(settings.transfer), auxiliary=0)
  data = other.subsample(other.load(), halves=2)
  members = mixdef.subsets(len(data), 2, seed=settings.seed)
  models = mixdef.fit_many(
    other.make_learner(data),
    data,
    members,
    out=folder / "transfer",
    **settings.training(),
  )
  return {"salem_2": {"source": models.signals()}}


def show(result: dict) -> None:
  """Print the verdict and where the report is."""
  verdict = result["verdict"]
  print(f"{verdict['level'].replace('_', ' ')}: {verdict['headline']}")
  for part in ("compared", "who", "how_sure", "what_to_do"):
    for line in verdict[part]:
      print(f"  {line}")
  for name, reason in result["not_run"].items():
    print(f"  not run: {name}: {reason}")


JOB = job.Job("audit", __doc__, AuditSettings, run, show, needs=job.REPORT_NEEDS)

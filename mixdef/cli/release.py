"""Audit one trained model before its release: who can be found, and how sure that is.

  mixdef release --run=runs/mine

queries the model of `mixdef train --out=runs/mine` on its training records and on the
held-out ones, and writes
report.html, report.json, scores.npz and result.json. --budget=shadows:64 also trains 64
reference models, --budget=imitate trains 20 of them and 10 imitators, and
--budget=cascade:3x32 trains 3 rounds of 32, each with what the rounds before made
certain. --drop_exposed=1% trains the recipe once more, without the most exposed
members, and audits that model too.

Of a model trained elsewhere, --arrays=FILE.npz audits the outputs (docs/sign_off.md),
and

  mixdef release --params=net.npz --model=my_module:Net --dataset=a.csv --test=b.csv

queries the network itself: the data set are its training records, and the test records
are the hold-out. Its flags of training are those of mixdef train, and describe how
reference models are trained. A second run with the same --out resumes.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, cast

from etils import epy

from mixdef.cli import job, train
from mixdef.cli.settings import COLUMNS, JobSettings, Settings, about

with epy.lazy_imports():
  import numpy as np

  import mixdef
  from mixdef.auditing import dropping, prices
  from mixdef.core import files, reading
  from mixdef.models import network
  from mixdef.training import agreement, signature

_FIX = "pass the run folder of mixdef train"

# Flags that describe the network of --params, and those that need any records.
_OF_TRAINING = "model", "defense", "optimizer", "learning_rate", "epochs", "batch_size"
_OF_RECORDS = ("dataset", "data_dir", "schema", *COLUMNS)
_OF_QUERIES = ("views", "strategy", "memory_gb")


@dataclasses.dataclass(frozen=True)
class ReleaseSettings(JobSettings):
  """The model to audit, and the price of the audit."""

  run: str = ""
  arrays: str = ""
  params: str = ""
  dataset: str = ""
  data_dir: str = ""
  label: str = ""
  group: str = ""
  id: str = ""
  test: str = ""
  schema: str = ""
  model: str = "mlp"
  defense: str = "none"
  optimizer: str = "adam"
  learning_rate: float = 1e-3
  epochs: int = 50
  batch_size: int = 128
  budget: str = "free"
  prior: float = 0.1
  attacks: str = ""
  views: str = "none"
  drop_exposed: str = ""
  redact: bool = False
  strategy: str = "auto"
  memory_gb: float = 0.0

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    if bool(self.run) + bool(self.arrays) + bool(self.params) != 1:
      raise ValueError(
        "pass one of --run=FOLDER, the run folder of mixdef train, --params=FILE, the "
        "parameters of --model, and --arrays=FILE.npz, outputs of a model"
      )
    self._refuse_unused()
    if self.params and not self.dataset:
      raise ValueError("--params needs --dataset, the records that it was trained on")
    if self.prior == 1:
      raise ValueError("--prior=1.0 must be below 1: all candidates would be members")
    with about("budget", self.budget):
      if prices.Price.parse(self.budget).models and self.arrays:
        raise ValueError("training needs the records: use --run or --params, or 'free'")
    if self.drop_exposed:
      if self.arrays:
        raise ValueError("--drop_exposed trains the model again: use --run or --params")
      self.dropped_share  # noqa: B018  it raises for a wrong text
    self.chosen_attacks()
    if not self.arrays:
      self.trained  # noqa: B018  it raises if the folder holds no such run

  def _refuse_unused(self) -> None:
    """Refuse flags that this source of the model does not use."""
    source, unused = "--params", ()
    if self.run:
      source, unused = f"--run={self.run}, which has its own", _OF_TRAINING
    elif self.arrays:
      source = f"--arrays={self.arrays}, which holds only outputs"
      unused = (*_OF_TRAINING, *_OF_RECORDS, *_OF_QUERIES)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in unused and value != field.default:
        raise ValueError(
          f"--{field.name}={value} is not used with {source}: remove one of the two"
        )

  @property
  def subject(self) -> str:
    """The run folder, or the file of outputs or parameters."""
    return pathlib.PurePath(self.run or self.arrays or self.params).stem

  @property
  def dropped_share(self) -> float | None:
    """The fraction of the members to leave out, from "1%" or "0.01"."""
    text = self.drop_exposed
    if not text:
      return None
    with about("drop_exposed", text):
      try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
      except ValueError:
        raise ValueError("pass a share of the members, as 1% or 0.01") from None
      return dropping.check_share(share)

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of the model, the records and their settings."""
    found = super().inputs()
    if self.arrays:
      content = reading.digest_file(self.arrays, fix="write it with numpy.savez")
      return {**found, "content of the model": content}
    if self.params:
      weights = network.by_path(mixdef.models.read_weights(self.params))
      arrays = [np.asarray(weights[name]) for name in sorted(weights)]
      content = reading.digest(np.array(sorted(weights)), *arrays)
    else:
      folder = files.path_of(self.run, "--run")
      kept = [folder / "result.json", *files.listed(folder / "models", "*.npz")]
      content = reading.digest(*(reading.digest_file(one, fix=_FIX) for one in kept))
    return {**self.trained.inputs(), **found, "content of the model": content}

  @property
  def trained(self) -> Settings:
    """The settings with which the model was trained."""
    if self.params:
      names = {field.name for field in dataclasses.fields(self)} - {"out"}
      own = {f.name for f in dataclasses.fields(Settings)} & names
      return Settings(**{name: getattr(self, name) for name in own})
    folder = files.path_of(self.run, "--run")
    found = reading.read_json(folder / "config.json", fix=_FIX)
    names = {field.name for field in dataclasses.fields(Settings)}
    result = folder / "result.json"
    if not files.exists(result) or "num_train" not in reading.read_json(
      result, fix="run mixdef train again"
    ):
      raise ValueError(f"--run={self.run} holds no finished run of mixdef train")
    kept: dict[str, Any] = {name: found[name] for name in names & found.keys()}
    kept["out"] = str(folder)
    for name in _OF_RECORDS:
      kept[name] = getattr(self, name) or kept.get(name, "")
    settings = Settings(**kept)
    for name in ("dataset", "schema", "test"):
      if not getattr(self, name) and _lacks_its_folder(kept[name]):
        raise ValueError(
          f"--run={self.run} was trained on --{name}={kept[name]}, of which the run "
          f"does not know the folder: pass --{name}=PATH"
        )
    return settings

  def chosen_attacks(self) -> list[str] | None:
    """Return the attacks named, or None for those of the price."""
    with about("attacks", self.attacks):
      return mixdef.attacks.ATTACKS.names(self.attacks) if self.attacks else None


def _lacks_its_folder(text: str) -> bool:
  """Return whether a text of config.json is the name of a file that is not here.

  Run folders name no places, so paths are cut to file names.
  """
  named = bool(pathlib.PurePath(text).suffix) and not text.replace(".", "").isdecimal()
  return named and ":" not in text and not files.exists(files.path_of(text))


def run(settings: ReleaseSettings, folder: pathlib.Path) -> dict:
  """Audit the model and write the report; returns the content of result.json."""
  how = {
    "budget": settings.budget,
    "prior": settings.prior,
    "attacks": settings.chosen_attacks(),
    "seed": settings.seed,
    "out": folder,
    "progress": True,
  }
  if settings.arrays:
    path = files.path_of(settings.arrays, "--arrays")
    facts = {"model": path.stem, **job.provenance(settings.seed)}
    found = mixdef.audit_release(path, setting=facts, **how)
  else:
    found = _of_model(settings, how)
  page = found.save(folder, redact=settings.redact)
  report = (found.redacted() if settings.redact else found).report
  names = ("verdict", "price", "priors", "list", "without_exposed", "not_run")
  return {"report": page.name, **{name: report[name] for name in names}}


def model_of(settings: ReleaseSettings) -> tuple[dict[str, Any], Settings]:
  """Return the model to audit, which is not trained again, and its settings.

  Returns:
    {"source", "members", "holdout"} as `audit_release` takes them, and the settings.

  Raises:
    ValueError: if the data set of `params` has no test records, or the run has no model
      of these records.
  """
  trained = settings.trained
  if settings.run:
    model = _trained_model(settings, trained)
    return {"source": model, "members": None, "holdout": None}, trained
  data = trained.load()
  if data.test is None:
    raise ValueError(
      f"{data.name} has no test records, which are the hold-out: pass --test=PATH, "
      "records from the same source that were never used in training"
    )
  (net,) = trained.networks(data)
  source = mixdef.models.predictor(net, settings.params)
  return {"source": source, "members": data, "holdout": data.test}, trained


def _trained_model(settings, trained):
  """Load the model of a run folder; raise an error where it would be another one."""
  folder = files.path_of(settings.run, "--run")
  if not files.listed(folder / "models", "*.npz"):
    raise ValueError(f"--run={settings.run} has no model: run mixdef train there again")
  try:
    return train.fit(trained, folder)
  except signature.AnotherRun as error:
    found = str(error).removesuffix(agreement.FIX).strip()
    raise ValueError(
      f"--run={settings.run} was trained on other records or by other versions; pass "
      f"its records with --dataset and --test, and use its versions: {found}"
    ) from error


def _of_model(settings, how):
  """Audit the model in a run folder, or that of given parameters."""
  model, trained = model_of(settings)
  source = model.pop("source")
  data = source.data if settings.run else model["members"]
  views = None
  if settings.views != "none":
    views = mixdef.attacks.VIEWS[settings.views](cast("mixdef.Dataset", data.test).x)
  how["training"] = {"strategy": settings.strategy}
  if settings.memory_gb:
    how["training"]["memory_gb"] = settings.memory_gb
  if settings.params:
    how["learner"] = trained.make_learner(data)
    how["training"] |= {"epochs": trained.epochs, "batch_size": trained.batch_size}
  facts = {
    "model": trained.model,
    "defense": trained.defended_by,
    "dataset": data.name,
    **job.provenance(settings.seed),
  }
  return mixdef.audit_release(
    source,
    **model,
    views=views,
    setting=facts,
    drop_exposed=settings.dropped_share,
    **how,
  )


def show(result: dict) -> None:
  """Print the verdict."""
  verdict = result["verdict"]
  print(f"{verdict['level'].replace('_', ' ')}: {verdict['headline']}")
  if verdict["alarm"]:
    print(f"ALARM: {verdict['alarm']}")
  for part in ("who", "how_sure", "compared", "what_to_do", "not_tried"):
    for line in verdict[part]:
      print(f"  {line}")


JOB = job.Job("release", __doc__, ReleaseSettings, run, show, needs=job.REPORT_NEEDS)

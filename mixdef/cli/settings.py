"""Settings shared by several jobs: run folder, data, model, defense and training.

Large packages are only imported when a setting is used, so that --help is fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from etils import epy

from mixdef.cli import flags, papers

with epy.lazy_imports():
  import optax

  import mixdef
  from mixdef.cli import texts
  from mixdef.core import files, parsing, reading, registry
  from mixdef.training import devices, signature

# These affect where files are and how fast a job runs, but not its results.
NOT_HASHED = (
  "out",
  "data_dir",
  "memory_gb",
  "strategy",
  "keep_params",
  "coordinator",
  "num_processes",
  "process_id",
)

# Data sets that were read to compute digests and have not been used yet.
_READ: dict[tuple[str, ...], mixdef.Dataset] = {}

# These name a file or a folder.
PATHS = (
  *("out", "data_dir", "schema", "run", "arrays", "params"),
  *("undefended", "inception"),
)

# These name columns of the user's table, and may hold any text.
COLUMNS = ("label", "group", "id", "test")
_DATA_SETS = ("dataset", "datasets", "canary_source", "transfer")


@dataclasses.dataclass(frozen=True)
class JobSettings:
  """Settings of every job; the names of the fields are the names of the flags."""

  out: str = ""
  seed: int = 0

  # Settings that a later run in the same folder may change to extend its result.
  extendable: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    """Check the settings before data are read or anything is written."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      flags.check(field.name, value, type(field.default))
      if field.name in PATHS and value:
        path = str(files.path_of(value, f"--{field.name}"))
        object.__setattr__(self, field.name, path)

  def finished(self, result: dict) -> bool:
    """Return whether an earlier result in the folder satisfies these settings."""
    del result
    return not self.extendable

  def connect(self) -> None:
    """Join the other processes of the job, if it has any."""

  @property
  def subject(self) -> str:
    """Part of the name of the default run folder."""
    return ""

  def inputs(self) -> dict[str, str]:
    """Return other inputs of the result: versions and digests of content."""
    found = {"mixdef": flags.version("mixdef")}
    for field in dataclasses.fields(self):
      text = getattr(self, field.name)
      if isinstance(text, str) and field.name not in (*PATHS, *NOT_HASHED, *COLUMNS):
        if field.name in _DATA_SETS:
          names = text.split(",")
          text = ",".join(n for n in names if not mixdef.data.is_path_or_hub(n))
        for name in parsing.modules_named(text):
          file = registry.import_module(name).__file__
          found[f"content of {name}"] = reading.digest_file(file, fix="name a module")
        found |= reading.digest_quoted(text)
    return found

  def folder(self, job: str, inputs: Mapping[str, str] | None = None) -> pathlib.Path:
    """Return the run folder: `out`, or a name in runs/ derived from the settings.

    Args:
      job: start of the name.
      inputs: result of `inputs()`; different content leads to a different folder.
    """
    if self.out:
      return files.path_of(self.out, "--out")
    apart = (*NOT_HASHED, *self.extendable)
    named = {k: v for k, v in dataclasses.asdict(self).items() if k not in apart}
    words = json.dumps({**named, **(inputs or {})}, sort_keys=True)
    mark = hashlib.sha256(words.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9_.]+", "-", self.subject.lower())[:60].strip("-")
    return pathlib.Path("runs") / f"{job}-{slug}-{mark}"


@contextlib.contextmanager
def about(flag: str, value: str) -> Iterator[None]:
  """Name the flag in error messages about its text."""
  try:
    yield
  except ValueError as error:
    named = str(error).startswith("--")
    raise ValueError(f"{'' if named else f'--{flag}={value}: '}{error}") from None


# Placeholder for the data, used to check texts before the data are read.
_SOME_DATA: Any = types.SimpleNamespace(num_classes=2, num_tokens=None)


@dataclasses.dataclass(frozen=True)
class Settings(JobSettings):
  """Settings of a job that trains."""

  dataset: str = "digits"
  data_dir: str = ""
  label: str = ""
  group: str = ""
  id: str = ""
  test: str = ""
  schema: str = ""
  train_size: int = 0
  standardize: bool = False
  model: str = "mlp"
  defense: str = "none"
  learner: str = "classifier"
  optimizer: str = "adam"
  learning_rate: float = 1e-3
  epochs: int = 50
  batch_size: int = 128
  microbatch: int = 0
  auxiliary: int = 0
  noise_seed: int = -1
  quick: bool = False

  protocols: ClassVar[dict[str, dict[str, Any]]] = papers.CLASSIFIERS

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    with about("dataset", self.dataset):
      mixdef.data.check_name(self.dataset)
    if self.test_fraction is not None and not 0 < self.test_fraction < 1:
      raise ValueError(f"--test={self.test}: pass a fraction in (0, 1), or a path")
    self._refuse_private_moments(self.chain)
    if self.microbatch and self.learner != "classifier":
      raise ValueError(
        f"--learner={self.learner} uses whole batches: remove "
        f"--microbatch={self.microbatch}"
      )
    self.check_learner()

  def check_learner(self) -> None:
    """Check that a learner can be created from the texts."""
    self.make_learner(_SOME_DATA)

  @property
  def chain(self) -> mixdef.Defense:
    """The defense."""
    with about("defense", self.defense):
      return mixdef.parse(self.defense)

  def _refuse_private_moments(self, defense):
    private = defense.traits.per_example and not defense.traits.no_guarantee
    if self.standardize and private:
      raise ValueError(
        "--standardize computes means and deviations of the private records, which the "
        f"epsilon of {defense} does not cover: remove it, or pass guarantee=False"
      )

  @property
  def subject(self) -> str:
    """Data set and defense."""
    return f"{pathlib.PurePath(self.dataset).name}-{self.defended_by}"

  @property
  def defended_by(self) -> str:
    """The defense in its canonical form, or the learner if it is not a classifier."""
    if self.learner != "classifier":
      return self.learner
    return str(self.chain)

  @property
  def seeds_of_training(self) -> dict[str, Any]:
    """Random seeds of every training."""
    noise = None if self.noise_seed < 0 else self.noise_seed
    return {"seed": self.seed, "noise_seed": noise}

  @property
  def test_fraction(self) -> float | None:
    """The fraction of the records to hold out, if `test` is a number."""
    try:
      return float(self.test)
    except ValueError:
      return None

  def for_data(self, dataset: str) -> Self:
    """Return these settings for another data set, without the columns of this one."""
    return dataclasses.replace(
      self, dataset=dataset, schema="", **dict.fromkeys(COLUMNS, "")
    )

  def load(self) -> mixdef.Dataset:
    """Return the data set, without reading it again if `inputs` has just read it."""
    data = _READ.pop(self._source, None)
    data = self._read() if data is None else data
    if self.test_fraction is not None:
      data = data.hold_out(self.test_fraction, seed=self.seed)
    return data

  @property
  def _source(self):
    columns = (getattr(self, name) for name in COLUMNS)
    return self.dataset, self.data_dir, self.schema, *columns

  def _read(self):
    columns = {name: getattr(self, name) for name in ("schema", *COLUMNS)}
    given = {name: value for name, value in columns.items() if value}
    if self.test_fraction is not None:
      del given["test"]
    return mixdef.load(self.dataset, data_dir=self.data_dir or None, **given)

  def inputs(self) -> dict[str, str]:
    """Return versions, and the digest of the records."""
    data = _READ[self._source] = self._read()
    return {
      **super().inputs(),
      "jax": flags.version("jax"),
      "content of --dataset": signature.digest_data(data),
    }

  def subsample(self, data: mixdef.Dataset, *, halves: int) -> mixdef.Dataset:
    """Draw the records of the run by the seed, and mark the auxiliary records.

    Args:
      data: all records.
      halves: 1 to train on the records, 2 to train on random halves of them.

    Raises:
      ValueError: if there are too few records.
    """
    left = len(data) - self.auxiliary
    size = halves * self.train_size or left
    if not 0 < size <= left:
      raise ValueError(
        f"{data.name} has {len(data)} records; --train_size={self.train_size} and "
        f"--auxiliary={self.auxiliary} need {size + self.auxiliary}: reduce them"
      )
    if self.quick:
      size = min(size, 300 * halves)
    if size < left:
      size += self.auxiliary
      chosen = mixdef.disjoint_splits(data, 1, size=size, seed=self.seed)
      data = data.select(chosen[0])
    data = data.standardize() if self.standardize else data
    return data.with_auxiliary(self.auxiliary, seed=self.seed)

  def networks(self, data: mixdef.Dataset) -> list[Any]:
    """Return the linen modules named by `model`; some learners accept several."""
    with about("model", self.model):
      return texts.networks(
        self.model, num_classes=data.num_classes, num_tokens=data.num_tokens
      )

  def make_optimizer(self) -> optax.GradientTransformation:
    """Return the optimizer named by `optimizer`, with the learning rate."""
    with about("optimizer", self.optimizer):
      return texts.optimizer(self.optimizer, self.learning_rate)

  def make_learner(
    self, data: mixdef.Dataset, defense: mixdef.Defense | None = None
  ) -> mixdef.Learner:
    """Return the learner.

    Args:
      data: the records to train on.
      defense: the defense; None uses the setting `defense`.
    """
    optimizer = self.make_optimizer()
    defense = self.chain if defense is None else defense
    self._refuse_private_moments(defense)
    first, *others = self.networks(data)
    if self.learner == "classifier":
      if others:
        raise ValueError(f"--model={self.model}: a classifier accepts one network")
      with about("defense", str(defense)):
        return mixdef.classifier(
          first, optimizer, defense, microbatch=self.microbatch or None
        )
    if defense.parts:
      raise ValueError(
        f"--learner={self.learner} does not accept a defense: remove {defense}"
      )
    models = (first, *others) if others else first
    with about("learner", self.learner):
      return texts.learner(self.learner, models, optimizer)

  @property
  def num_epochs(self) -> int:
    """Number of epochs to train."""
    return min(self.epochs, 12) if self.quick else self.epochs


@dataclasses.dataclass(frozen=True)
class ShadowSettings(Settings):
  """Settings of a job that trains shadow models."""

  num_shadows: int = 16
  strategy: str = "auto"
  memory_gb: float = 0.0

  quick_shadows: ClassVar[int] = 8  # upper limit with --quick

  def __post_init__(self):
    """Check the settings before data are read or anything is written."""
    super().__post_init__()
    if self.num_shadows < 2:
      raise ValueError(
        f"--num_shadows={self.num_shadows}: an attack needs a target and references; "
        "use at least 2 models, and 16 for meaningful results"
      )

  @property
  def shadows(self) -> int:
    """Number of models to train."""
    most = self.quick_shadows if self.quick else self.num_shadows
    return min(self.num_shadows, most)

  def training(self) -> dict[str, Any]:
    """Return the options that are common to all trainings of shadow models."""
    return {
      "epochs": self.num_epochs,
      "batch_size": self.batch_size,
      **self.seeds_of_training,
      "strategy": self.strategy,
      "memory_gb": self.memory_gb or None,
      "progress": True,
    }

  def on_halves(self, data: mixdef.Dataset) -> dict[str, Any]:
    """Return the arguments of `fit_many` to train every shadow model on a random half.

    Args:
      data: the records; those in `data.always_member` are members of every model.
    """
    return {
      "members": mixdef.subsets(data, self.shadows, seed=self.seed),
      "num_members": mixdef.auditing.public_size(data, self.chain.traits),
      **self.training(),
    }


@dataclasses.dataclass(frozen=True)
class HostSettings(ShadowSettings):
  """Settings of a job whose shadow models can be trained by several hosts."""

  coordinator: str = ""
  num_processes: int = 0
  process_id: int = 0

  def __post_init__(self):
    """Check the settings before data are read or anything is written."""
    super().__post_init__()
    if self.coordinator in ("", "auto") and (self.num_processes or self.process_id):
      raise ValueError(
        "--num_processes and --process_id are only used with --coordinator=host:port: "
        "pass it, or remove them"
      )

  def connect(self) -> None:
    """Join the other processes, if there are any."""
    if self.coordinator:
      devices.connect(self.coordinator, self.num_processes, self.process_id)

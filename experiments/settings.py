"""What every job is told: where it runs, its data, model and defense.

Nothing heavy is imported until a setting is used, so that --help answers at once.
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
from typing import Any, ClassVar, TypeVar

import command_line
from etils import epy

with epy.lazy_imports():
  import optax
  import texts

  import mixdef
  from mixdef.core import files, parsing, reading, registry
  from mixdef.training import signature

AnyJob = TypeVar("AnyJob", bound="JobSettings")

# These change where things lie and how fast, not what is computed.
PLACES = (
  *("out", "data_dir", "memory_gb", "strategy", "keep_params"),
  *("coordinator", "num_processes", "process_id"),
)

# Data sets that were read for their digests and not used yet.
_READ: dict[tuple[str, str], mixdef.Dataset] = {}

# These name a file or a folder.
PATHS = ("out", "data_dir", "arrays", "natural", "inception")

# Whole protocols behind one flag; a flag given beside it wins.
PROTOCOLS = {
  # Table 1 of AdaMixup on CIFAR-10; what it leaves open is from its authors' earlier
  # code: the network, the standardized inputs, 10,520 records of the training file.
  "adamixup": {
    "dataset": "cifar10",
    "train_size": 10_520,
    "standardize": True,
    "model": "cnn",
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "batch_size": 128,
    "epochs": 100,
  },
}


@dataclasses.dataclass(frozen=True)
class JobSettings:
  """What every job takes; the names of the fields are those of the flags."""

  out: str = ""
  seed: int = 0

  # Settings that a second run in the same folder may change, to add to its result.
  grows: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    """Refuse what cannot be used before data are read or anything is written."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      command_line.check(field.name, value, type(field.default))
      if field.name in PATHS and value:
        path = str(files.local_path(value, f"--{field.name}"))
        object.__setattr__(self, field.name, path)

  def finished(self, result: dict) -> bool:
    """Say whether a result in the folder is what these settings ask for, too."""
    del result
    return not self.grows

  def connect(self) -> None:
    """Join the other processes of the job, where it can have any."""

  @property
  def label(self) -> str:
    """What the default run folder is called after."""
    return ""

  def inputs(self) -> dict[str, str]:
    """Return what else the result is made from: versions, and digests of content."""
    found = {"mixdef": command_line.version("mixdef")}
    for field in dataclasses.fields(self):
      text = getattr(self, field.name)
      if isinstance(text, str) and field.name not in (*PATHS, *PLACES):
        for name in parsing.modules_named(text):
          file = registry.import_module(name).__file__
          found[f"content of {name}"] = reading.digest_file(file, fix="name a module")
    return found

  def folder(self, job: str, inputs: Mapping[str, str] | None = None) -> pathlib.Path:
    """Return the run folder: `out`, else a name in runs/ that these settings decide.

    Args:
      job: what the name begins with.
      inputs: of the result; another content has another folder.
    """
    if self.out:
      return pathlib.Path(self.out)
    apart = (*PLACES, *self.grows)
    named = {k: v for k, v in dataclasses.asdict(self).items() if k not in apart}
    words = json.dumps({**named, **(inputs or {})}, sort_keys=True)
    mark = hashlib.sha256(words.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9_.]+", "-", self.label.lower())[:60].strip("-")
    return pathlib.Path("runs") / f"{job}-{slug}-{mark}"


@contextlib.contextmanager
def about(flag: str, value: str) -> Iterator[None]:
  """Name the flag in a message about its text."""
  try:
    yield
  except ValueError as error:
    told = str(error).startswith("--")
    raise ValueError(f"{'' if told else f'--{flag}={value}: '}{error}") from None


# What texts are tried on before the data are read.
_SOME_DATA: Any = types.SimpleNamespace(num_classes=2)


@dataclasses.dataclass(frozen=True)
class Settings(JobSettings):
  """What a job trains."""

  dataset: str = "digits"
  data_dir: str = ""
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
  reference: int = 0
  noise_seed: int = -1
  quick: bool = False

  protocols: ClassVar[dict[str, dict[str, Any]]] = PROTOCOLS

  def __post_init__(self):
    """Refuse what cannot be used before anything is written."""
    super().__post_init__()
    with about("dataset", self.dataset):
      mixdef.data.check_name(self.dataset)
    self._refuse_private_moments(self.chain)
    if self.microbatch and self.learner != "classifier":
      raise ValueError(
        f"--learner={self.learner} takes whole batches: drop "
        f"--microbatch={self.microbatch}"
      )
    self.check_learner()

  def check_learner(self) -> None:
    """Refuse texts of which no learner can be made."""
    self.make_learner(_SOME_DATA)

  @property
  def chain(self) -> mixdef.Defense:
    """The defense."""
    with about("defense", self.defense):
      return mixdef.parse(self.defense)

  def _refuse_private_moments(self, defense):
    private = "per_example" in defense.traits and "no_guarantee" not in defense.traits
    if self.standardize and private:
      raise ValueError(
        "--standardize takes means and deviations from the private records, which the "
        f"epsilon of {defense} does not cover: drop it, or pass guarantee=False"
      )

  @property
  def label(self) -> str:
    """Data set and defense."""
    return f"{self.dataset}-{self.defended_by}"

  @property
  def defended_by(self) -> str:
    """The defense in its canonical form, or the learner that is one by structure."""
    if self.learner != "classifier":
      return self.learner
    return str(self.chain)

  @property
  def seeds_of_training(self) -> dict[str, Any]:
    """What every training draws from."""
    noise = None if self.noise_seed < 0 else self.noise_seed
    return {"seed": self.seed, "noise_seed": noise}

  def load(self) -> mixdef.Dataset:
    """Return the data set named; where `inputs` has just read it, that one."""
    data = _READ.pop((self.dataset, self.data_dir), None)
    return self._read() if data is None else data

  def _read(self):
    return mixdef.load(self.dataset, data_dir=self.data_dir or None)

  def inputs(self) -> dict[str, str]:
    """Return versions, and the digest of the records."""
    data = _READ[self.dataset, self.data_dir] = self._read()
    return {
      **super().inputs(),
      "jax": command_line.version("jax"),
      "content of --dataset": signature.digest_data(data),
    }

  def cut(self, data: mixdef.Dataset, *, halves: int) -> mixdef.Dataset:
    """Return the records to work with, drawn by the seed, reference rows marked.

    Args:
      data: all there are.
      halves: 1 to train on the records, 2 to train on random halves of them.

    Raises:
      ValueError: if there are fewer than asked for.
    """
    left = len(data) - self.reference
    size = halves * self.train_size or left
    if not 0 < size <= left:
      raise ValueError(
        f"{data.name} has {len(data)} records; --train_size={self.train_size} and "
        f"--reference={self.reference} take {size + self.reference}: lower them"
      )
    if self.quick:
      size = min(size, 300 * halves)
    if size < left:
      size += self.reference
      chosen = mixdef.disjoint_splits(data, 1, size=size, seed=self.seed)
      data = data.select(chosen[0])
    data = data.standardize() if self.standardize else data
    return data.with_reference(self.reference, seed=self.seed)

  def networks(self, data: mixdef.Dataset) -> list[Any]:
    """Return the linen modules named; some learners take several."""
    with about("model", self.model):
      return texts.networks(self.model, num_classes=data.num_classes)

  def make_optimizer(self) -> optax.GradientTransformation:
    """Return the optimizer named, at the learning rate given."""
    with about("optimizer", self.optimizer):
      return texts.optimizer(self.optimizer, self.learning_rate)

  def make_learner(
    self, data: mixdef.Dataset, defense: mixdef.Defense | None = None
  ) -> mixdef.Learner:
    """Return the learner of the models, optimizer and defense named, or given."""
    optimizer = self.make_optimizer()
    defense = self.chain if defense is None else defense
    self._refuse_private_moments(defense)
    first, *others = self.networks(data)
    if self.learner == "classifier":
      if others:
        raise ValueError(f"--model={self.model}: a classifier takes one network")
      with about("defense", str(defense)):
        return mixdef.classifier(
          first, optimizer, defense, microbatch=self.microbatch or None
        )
    if defense.parts:
      raise ValueError(f"--learner={self.learner} takes no defense: drop {defense}")
    models = (first, *others) if others else first
    with about("learner", self.learner):
      return texts.learner(self.learner, models, optimizer)

  @property
  def passes(self) -> int:
    """Epochs to train."""
    return min(self.epochs, 12) if self.quick else self.epochs


@dataclasses.dataclass(frozen=True)
class ShadowSettings(Settings):
  """What a job of many models trains, besides the common settings."""

  num_shadows: int = 16
  strategy: str = "auto"
  memory_gb: float = 0.0

  quick_shadows: ClassVar[int] = 8  # with --quick

  def __post_init__(self):
    """Refuse what cannot be used before data are read or anything is written."""
    super().__post_init__()
    if self.num_shadows < 2:
      raise ValueError(
        f"--num_shadows={self.num_shadows}: an attack needs a target and references, "
        f"2 models at least and 16 to say much"
      )

  @property
  def shadows(self) -> int:
    """Models to train."""
    most = self.quick_shadows if self.quick else self.num_shadows
    return min(self.num_shadows, most)

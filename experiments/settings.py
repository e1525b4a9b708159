"""Flags that every job takes, and what they describe: data, model, defense."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, ClassVar, TypeVar

import optax
from absl import flags

import mixdef
from mixdef.data.seeds import check_seed
from mixdef.parse import parse_call, split_calls
from mixdef.training.signature import digest_data

AnyJob = TypeVar("AnyJob", bound="JobSettings")

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}

# These change where things lie and how fast, not what is computed.
PLACES = (
  *("out", "data_dir", "memory_gb", "strategy", "keep_params"),
  *("coordinator", "num_processes", "process_id"),
)

# Data sets that were read for their digests and not used yet.
_READ: dict[tuple[str, str], mixdef.Dataset] = {}

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
    """Refuse what cannot be used before anything is written."""
    check_seed(self.seed, "--seed")

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
    return {"mixdef": metadata.version("mixdef")}

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
  quick: bool = False

  protocols: ClassVar[dict[str, dict[str, Any]]] = PROTOCOLS

  def __post_init__(self):
    """Refuse what cannot be used before anything is written."""
    super().__post_init__()
    self._refuse_private_moments(mixdef.parse(self.defense))
    if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
      raise ValueError(f"--learning_rate={self.learning_rate} must be positive")
    for name in ("train_size", "microbatch", "reference"):
      if getattr(self, name) < 0:
        raise ValueError(f"--{name}={getattr(self, name)} must be 0 or more")
    if self.microbatch and self.learner != "classifier":
      raise ValueError(
        f"--learner={self.learner} takes whole batches: drop "
        f"--microbatch={self.microbatch}"
      )

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
    return str(mixdef.parse(self.defense))

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
      "jax": metadata.version("jax"),
      "content of --dataset": digest_data(data),
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
      chosen = mixdef.splits(len(data), 1, size=size + self.reference, seed=self.seed)
      data = data.select(chosen[0])
    data = data.standardize() if self.standardize else data
    return data.with_reference(self.reference, seed=self.seed)

  def networks(self, data: mixdef.Dataset) -> list[Any]:
    """Return the linen modules named; some learners take several."""
    catalogue, classes = mixdef.models.CATALOGUE, data.num_classes
    texts = split_calls(self.model) or [self.model]
    return [parse_call(text, catalogue, "model", num_classes=classes) for text in texts]

  def make_optimizer(self) -> optax.GradientTransformation:
    """Return the optimizer named, at the learning rate given."""
    if "learning_rate" in self.optimizer:
      raise ValueError(
        f"--optimizer={self.optimizer}: give the rate by --learning_rate"
      )
    return parse_call(
      self.optimizer, OPTIMIZERS, "optimizer", learning_rate=self.learning_rate
    )

  def make_learner(
    self, data: mixdef.Dataset, defense: mixdef.Defense | None = None
  ) -> mixdef.Learner:
    """Return the learner of the models, optimizer and defense named, or given."""
    optimizer = self.make_optimizer()
    defense = mixdef.parse(self.defense) if defense is None else defense
    self._refuse_private_moments(defense)
    first, *others = self.networks(data)
    if self.learner == "classifier":
      if others:
        raise ValueError(f"--model={self.model}: a classifier takes one network")
      return mixdef.classifier(
        first, optimizer, defense, microbatch=self.microbatch or None
      )
    if defense.parts:
      raise ValueError(f"--learner={self.learner} takes no defense: drop {defense}")
    makers = {
      name: functools.partial(make, (first, *others) if others else first)
      for name, make in mixdef.learners.CATALOGUE.items()
    }
    return parse_call(self.learner, makers, "learner", optimizer=optimizer)

  @property
  def passes(self) -> int:
    """Epochs to train."""
    return min(self.epochs, 12) if self.quick else self.epochs


_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}

_HELP = {
  "out": "run folder; run again with the same one to resume. Default: in runs/",
  "seed": "of everything random",
  "dataset": f"one of {', '.join(sorted(mixdef.data.CATALOGUE))}",
  "data_dir": "where the raw files lie. Default: $MIXDEF_DATA, or ./data",
  "train_size": "records a model trains on, drawn by the seed; 0: all there are",
  "standardize": "subtract the mean and divide by the deviation, per feature",
  "model": f"one of {', '.join(mixdef.models.CATALOGUE)}, as 'mlp(256, 128)'; "
  "model_stacking takes two, joined by a comma",
  "defense": "'none' or parts joined by |, as 'adamixup|weight_decay(1e-4)'",
  "learner": f"classifier, or {' or '.join(mixdef.learners.CATALOGUE)}",
  "optimizer": f"one of {', '.join(OPTIMIZERS)}, as 'sgd(momentum=0.9)'",
  "learning_rate": "of the optimizer",
  "epochs": "passes over the training records",
  "batch_size": "records a step sees on average",
  "microbatch": "records whose gradients a step takes at once; 0: all of the batch",
  "reference": "records kept aside as the defender's own",
  "quick": "a small run to see that everything works",
  "num_shadows": "models to train, each on a random half of the records",
  "strategy": "vmap, scan, loop, processes, or auto: measure and choose",
  "suite": "cpu: ensembles; gpu; dp: steps of DP-SGD; attacks: an audit; defenses",
  "repeats": "rounds of timing",
  "attacks": "joined by commas, as 'lira_online, rmia(a=0.5)'. Default: all",
  "views": "none, mirror, shifts (LiRA's 18) or mixed: views of a record asked about",
  "canaries": "records planted to see the worst case, as mislabelled:200; or none",
  "canary_source": "data set that out-of-distribution canaries come from",
  "dp_baseline": "also train and attack DP-SGD of matched accuracy",
  "study": "grid of defenses that a paper compares, instead of --defenses",
  "defenses": "to compare, joined by ;, lists as grids: 'none; mixup([0.1, 1.0])'",
  "datasets": "names joined by commas, instead of --dataset",
  "seeds": "how many seeds to repeat everything with, from --seed on",
  "transfer": "data set of the shadow that salem_2 transfers from",
  "attack_targets": "models that costly attacks are tried on",
  "attack_records": "records that attacks with questions of their own ask about",
  "target": "the one model to audit, 0 to the number of models - 1; the others are "
  "references only. Default: all, pooled, which describes the recipe",
  "arrays": "npz of outputs of models trained elsewhere, instead of training",
  "audits": "run folders of audit.py, joined by commas; the first is compared with",
  "mirror": "ask about every image and its mirror image, as LiRA's own demo does",
  "keep_params": "keep the models; without them only the answers they gave are stored",
  "coordinator": "train on several hosts: auto (SLURM, GKE, TPU pod), or host:port",
  "num_processes": "how many there are, where --coordinator is host:port",
  "process_id": "which this is, from 0, where --coordinator is host:port",
  "natural": "run folder of an undefended gan.py, whose GANs are natural references",
  "samples": "records that each generator makes to be measured",
  "classifier": "network that judges samples: trained on them, and on records for its "
  "features, as 'cnn'",
  "inception": "npz of the weights of FID's network; docs/generative.md",
  "memory_gb": "what the models in training may take. Default: 60% of what is free",
}


def define_flags(kind: type[JobSettings]) -> None:
  """Define a flag for every field of a settings class, shown by --help."""
  names = [field.name for field in dataclasses.fields(kind)]
  for field in dataclasses.fields(kind):
    _DEFINE[type(field.default)](field.name, field.default, _HELP[field.name])
  if issubclass(kind, Settings):
    names.append("protocol")
    known = list(kind.protocols)
    flags.DEFINE_enum(
      "protocol", None, known, "settings of a paper; flags beside it win"
    )
  for name in names:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def from_flags(kind: type[AnyJob]) -> AnyJob:
  """Read the settings back from the command line."""
  names = [field.name for field in dataclasses.fields(kind)]
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  chosen: Any = flags.FLAGS.protocol if "protocol" in flags.FLAGS else None
  protocol = kind.protocols[chosen] if chosen and issubclass(kind, Settings) else {}
  for name, value in protocol.items():
    if not flags.FLAGS[name].present:
      values[name] = value
  return kind(**values)

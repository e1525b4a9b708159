"""The flags of all jobs: their meanings and ranges, how they are read, and --help.

Large packages are only imported when they are used, so that --help is fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple, NoReturn

from absl import (
  flags,
  logging,  # noqa: F401  it defines --verbosity
)
from etils import epy

with epy.lazy_imports():
  from mixdef.core import extras

_INT32 = 2**31 - 1
_FLOAT32 = 3.4028234663852886e38
HELP_FLAGS = ("help", "helpshort", "helpfull", "h", "?")
_WIDTH = 88


class Flag(NamedTuple):
  """The meaning of a flag, and the range of a number."""

  text: str
  low: float | None = None
  high: float | None = None
  above: float | None = None
  choices: Sequence[str] = ()


STRATEGIES = ("auto", "vmap", "scan", "loop", "processes")

GROUPS: dict[str, dict[str, Flag]] = {
  "run": {
    "out": Flag(
      "run folder, on this machine or a bucket (gs://, s3://); the same folder resumes "
      "a run. Default: a new name in runs/"
    ),
    "seed": Flag("random seed", 0, 2**63 - 1),
    "noise_seed": Flag(
      "random seed of the noise behind an epsilon, which does not hold against an "
      "attacker who knows this seed. -1: drawn by the operating system",
      -1,
      2**63 - 1,
    ),
    "seeds": Flag(
      "number of repetitions, with consecutive seeds starting at --seed", 1, 10_000
    ),
    "quick": Flag("a small run to check that everything works"),
    "protocol": Flag("settings of a paper; other flags override them"),
  },
  "data": {
    "dataset": Flag(
      "digits, mnist, cifar10, ...: a name in mixdef.data.CATALOGUE (docs/data.md), or "
      "my_module:name; or the path of a .csv, .tsv, .parquet or .npz file, or of a "
      "folder of images with a subfolder for each class; or hf:name for Hugging Face, "
      "tfds:name for TensorFlow Datasets (docs/your_data.md)"
    ),
    "datasets": Flag("names separated by commas, instead of --dataset"),
    "data_dir": Flag(
      "folder of the raw files, on this machine or a bucket. Default: $MIXDEF_DATA, or "
      "./data"
    ),
    "label": Flag("column of a table that holds the class. Default: label, or y"),
    "group": Flag("column of a table that holds the person a record belongs to"),
    "id": Flag("column of a table that holds the unique id of a record"),
    "test": Flag("path of held-out records, or the fraction to hold out"),
    "schema": Flag(
      "JSON file that defines how the columns of a table become features. Default: "
      "inferred from the records, which an epsilon does not cover"
    ),
    "train_size": Flag(
      "number of records to train a model on, drawn by the seed; 0: all records", 0
    ),
    "auxiliary": Flag(
      "number of records to set aside as the defender's auxiliary records", 0
    ),
    "standardize": Flag(
      "subtract the mean and divide by the standard deviation, per feature"
    ),
    "target": Flag(
      "the only model to audit, 0 to the number of models - 1; the others are "
      "references only. Default: all models, pooled, which describes the recipe"
    ),
    "run": Flag("run folder of mixdef train, whose model is audited"),
    "arrays": Flag(
      "npz file with outputs of models trained elsewhere, instead of training"
    ),
  },
  "model": {
    "params": Flag(
      "parameters of --model: an .npz, a .safetensors, or the folder of an Orbax "
      "checkpoint"
    ),
    "model": Flag(
      "mlp, cnn, ...: a name in mixdef.models.CATALOGUE, or my_module:name, with "
      "arguments as in 'mlp(256, 128)'; model_stacking takes two, separated by a comma"
    ),
    "defense": Flag(
      "'none', or defenses separated by |, for example 'adamixup|weight_decay(1e-4)'"
    ),
    "defenses": Flag(
      "defenses to compare, separated by ;; a list is a grid, for example 'none; "
      "mixup([0.1, 1.0])'"
    ),
    "study": Flag("grid of defenses that a paper compares, instead of --defenses"),
    "learner": Flag(
      "classifier, ...: a name in mixdef.learners.CATALOGUE (docs/learners.md), or "
      "my_module:name"
    ),
    "optimizer": Flag(
      "adam, sgd, ...: a name in mixdef.cli.texts.OPTIMIZERS, with arguments as in "
      "'sgd(momentum=0.9)'"
    ),
  },
  "training": {
    "learning_rate": Flag("learning rate of the optimizer", above=0),
    "epochs": Flag("number of passes over the training records", 1, 10**7),
    "batch_size": Flag("average number of records per step", 1),
    "microbatch": Flag(
      "number of records whose gradients are computed at once; 0: the whole batch", 0
    ),
    "num_shadows": Flag(
      "number of models to train, each on a random half of the records", 1, 10**5
    ),
  },
  "attacks": {
    "attacks": Flag(
      "separated by commas, for example 'lira_online, rmia(a=0.5)'. Default: all "
      "attacks"
    ),
    "views": Flag(
      "views of a record to query: none, mirror, shifts (LiRA's 18) or mixed",
      choices=("none", "mirror", "shifts", "mixed"),
    ),
    "mirror": Flag("query each image and its mirror image, as in LiRA's demo"),
    "canaries": Flag(
      "canaries to plant for the worst case, for example mislabelled:200; or none"
    ),
    "canary_source": Flag("data set that out-of-distribution canaries are taken from"),
    "dp_baseline": Flag("also train and attack DP-SGD of matched accuracy"),
    "transfer": Flag("data set of the shadow model that salem_2 transfers from"),
    "attack_targets": Flag("number of models that costly attacks are run on", 1),
    "attack_records": Flag(
      "number of records for attacks that query the models themselves", 1
    ),
    "budget": Flag(
      "what an audit may train: free, imitate, or shadows:64 for 64 reference models"
    ),
    "prior": Flag(
      "fraction of members among the candidates of an attacker", above=0, high=1
    ),
    "drop_exposed": Flag(
      "share of the members, as 1%, that are most exposed and without which the model "
      "is trained and audited once more"
    ),
    "undefended": Flag("run folder of undefended GANs to use as reference models"),
  },
  "privacy": {
    "num_members": Flag("number of training records", 0),
    "delta": Flag("delta of differential privacy, below 1/num_members", 0, 1),
    "noise_multiplier": Flag("standard deviation of the noise over the clip", 0),
    "epsilon": Flag("epsilon that the noise must keep to", 0),
    "tuned": Flag(
      "law and mean of the random number of trainings, as geometric:10, of which the "
      "best is kept"
    ),
    "bands": Flag(
      "number of bands of correlated noise; 0 chooses the best for an epsilon", 0
    ),
  },
  "report": {
    "audits": Flag(
      "run folders of audits, separated by commas; each is compared with the first"
    ),
    "samples": Flag("number of samples per generator for the utility metrics", 1),
    "classifier": Flag(
      "network that evaluates samples, for example 'cnn': it is trained on samples to "
      "measure their utility, and on records to obtain features"
    ),
    "inception": Flag(
      "npz file with the weights of FID's network; see docs/generative.md"
    ),
    "report": Flag("report.json of an audit"),
    "max_tpr": Flag("largest TPR of any attack at an FPR, for example 0.01@0.001"),
    "max_named": Flag(
      "largest number of members on a list of which 19 of 20 are members", -1
    ),
    "strict": Flag("also fail if the audit cannot exclude more than a limit"),
    "redact": Flag("leave out everything about single records"),
    "suite": Flag(
      "cpu: ensembles; gpu; dp: steps of DP-SGD; attacks: an audit; defenses",
      choices=("cpu", "gpu", "dp", "attacks", "defenses"),
    ),
    "repeats": Flag("number of rounds of timing", 1, 10_000),
  },
  "machine": {
    "strategy": Flag(
      "vmap, scan, loop, processes, or auto: measure and choose", choices=STRATEGIES
    ),
    "memory_gb": Flag(
      "memory of records and models in training. Default: 60% of what is free", 0, 1e9
    ),
    "keep_params": Flag("keep the models; otherwise only their outputs are stored"),
    "coordinator": Flag(
      "train on several hosts: auto (SLURM, GKE, TPU pod), or host:port"
    ),
    "num_processes": Flag("number of processes, if --coordinator is host:port", 0),
    "process_id": Flag(
      "index of this process, starting at 0, if --coordinator is host:port", 0
    ),
  },
}
"""The flags of all jobs, in the groups shown by --help."""

FLAGS = {name: flag for group in GROUPS.values() for name, flag in group.items()}

_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def check(name: str, value: Any, kind: type) -> None:
  """Raise if a value is outside the range of a flag.

  Args:
    name: name of the flag.
    value: value of the flag.
    kind: type of its default.

  Raises:
    ValueError: if it is outside; the message names the flag and its range.
  """
  flag = FLAGS[name]
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise ValueError(f"--{name}={value!r} must be of type {kind.__name__}")
  if flag.choices and value not in flag.choices:
    raise ValueError(f"--{name}={value!r}; choose from {', '.join(flag.choices)}")
  if kind not in (int, float):
    return
  high = flag.high or (_INT32 if kind is int else _FLOAT32)
  if flag.above is not None and not flag.above < value:
    least = "positive" if flag.above == 0 else f"above {flag.above}"
    raise ValueError(f"--{name}={value} must be {least}")
  if flag.low is not None and not value >= flag.low:
    least = "0 or more" if flag.low == 0 else f"at least {flag.low}"
    raise ValueError(f"--{name}={value} must be {least}")
  if not value <= high:
    raise ValueError(
      f"--{name}={value} must be at most {high if kind is int else f'{high:.4g}'}"
    )


def read(job: str, kind: Any, text: str, argv: Sequence[str]) -> Any:
  """Return the settings of a command line; exit on --help and on errors.

  Args:
    job: name of the job, for messages.
    kind: the settings class, whose fields are the flags. If it has `positional`, the
      first argument may be the value of the flag of that name.
    text: what --help prints before the flags.
    argv: the flags, without the program and the job.
  """
  given = {flag.lstrip("-").partition("=")[0] for flag in argv if flag[:1] == "-"}
  if given & set(HELP_FLAGS):
    print(help_text(kind, text))
    sys.exit(0)
  if "version" in given:
    print(f"mixdef {version('mixdef')}")
    sys.exit(0)
  values = _define(kind)
  name = getattr(kind, "positional", None)
  if name and argv and not argv[0].startswith("-"):
    argv = [f"--{name}={argv[0]}", *argv[1:]]
  try:
    rest = values([job, *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, _names(kind), n=2)
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?"
    refuse(job, f"--{error.flagname} is not a flag; {hint if near else 'see --help'}")
  except flags.Error as error:
    refuse(job, _plain(str(error).removeprefix("flag "), kind))
  if rest:
    refuse(job, f"{rest[0]!r} is not a flag: write --name=value")
  try:
    return _settings(kind, values)
  except (ValueError, OSError, extras.MissingPackage) as error:
    refuse(job, str(error))


def _plain(reason: str, kind: Any) -> str:
  """Return absl's message about a flag, with the kind of value that it takes."""
  given, _, rest = reason.partition(": ")
  name = given.partition("=")[0].lstrip("-")
  types = {field.name: type(field.default) for field in dataclasses.fields(kind)}
  wanted = next((text for one, text in _KINDS.items() if types.get(name) is one), "")
  return f"{given}: pass {wanted}" if rest and wanted else reason


def rate_at(flag: str, text: str) -> tuple[float, float]:
  """Return TPR and FPR of a text such as "0.01@0.001".

  Raises:
    ValueError: naming the flag, for any other text or rates out of range.

  >>> rate_at("max_tpr", "0.05@0.01")
  (0.05, 0.01)
  """
  try:
    tpr, fpr = map(float, text.split("@"))
  except ValueError:
    tpr, fpr = -1.0, -1.0
  if not (0 <= tpr <= 1 and 0 < fpr < 1):
    raise ValueError(f"--{flag}={text}: pass TPR@FPR, as 0.01@0.001, both fractions")
  return tpr, fpr


def refuse(job: str, reason: str) -> NoReturn:
  """Exit with status 2 and a one-line message about a mistake of the user."""
  line = " ".join(reason.split())
  print(f"{job}: {line}", file=sys.stderr)
  sys.exit(2)


def version(package: str) -> str:
  """Return the version of a package, or "unknown" if it is not installed."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "unknown"


def help_text(kind: Any, text: str) -> str:
  """Return what --help prints: the text of the job, and its flags by group."""
  defaults = {field.name: field.default for field in dataclasses.fields(kind)}
  names = _names(kind)
  lines = [text.strip()]
  for group, members in GROUPS.items():
    shown = [name for name in members if name in names]
    if shown:
      lines += ["", f"{group}:"]
    for name in shown:
      meaning = getattr(kind, "flag_texts", {}).get(name, members[name].text)
      if name == "protocol":
        meaning = f"{meaning}: {', '.join(kind.protocols)}"
      default = defaults.get(name, "")
      bare = default == "" or default is False
      head = f"--{name}" if bare else f"--{name}={default}"
      wrapped = textwrap.fill(meaning, _WIDTH - 6)
      lines += [f"  {head}", textwrap.indent(wrapped, " " * 6)]
  return "\n".join(lines)


def _names(kind: Any) -> list[str]:
  names = [field.name for field in dataclasses.fields(kind)]
  return [*names, "protocol"] if hasattr(kind, "protocols") else names


def _define(kind: Any) -> flags.FlagValues:
  """Define a flag for every field of the settings, besides those of absl's logging."""
  values = flags.FlagValues()
  values.append_flag_values(flags.FLAGS)
  flags.FLAGS.mark_as_parsed()
  for field in dataclasses.fields(kind):
    define, text = _DEFINE[type(field.default)], FLAGS[field.name].text
    define(field.name, field.default, text, flag_values=values)
  if hasattr(kind, "protocols"):
    known, text = list(kind.protocols), FLAGS["protocol"].text
    flags.DEFINE_enum("protocol", None, known, text, flag_values=values)
  return values


def _settings(kind: Any, values: flags.FlagValues) -> Any:
  """Create the settings from the flags; explicit flags override the protocol."""
  names = [field.name for field in dataclasses.fields(kind)]
  settings: dict[str, Any] = {name: values[name].value for name in names}
  chosen = values.protocol if hasattr(kind, "protocols") else None
  for name, value in (kind.protocols[chosen] if chosen else {}).items():
    if not values[name].present:
      settings[name] = value
  return kind(**settings)

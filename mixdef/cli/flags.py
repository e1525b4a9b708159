"""The flags of all jobs: their meanings and ranges, how they are read, and --help.

Only absl is imported, so that --help answers at once.
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
      "run folder, here or on a bucket (gs://, s3://); the same folder resumes a run. "
      "Default: a new name in runs/"
    ),
    "seed": Flag("seed of everything random", 0, 2**63 - 1),
    "noise_seed": Flag(
      "seed of the noise that an epsilon is stated for; the epsilon does not hold "
      "against an attacker who knows it. -1: drawn from the operating system",
      -1,
      2**63 - 1,
    ),
    "seeds": Flag("number of seeds to repeat everything with, from --seed", 1, 10_000),
    "quick": Flag("a small run, to check that everything works"),
    "protocol": Flag("settings of a paper; other flags override them"),
  },
  "data": {
    "dataset": Flag(
      "digits, mnist, cifar10, ...: a name in mixdef.data.CATALOGUE (docs/data.md), or "
      "my_module:name"
    ),
    "datasets": Flag("names separated by commas, instead of --dataset"),
    "data_dir": Flag(
      "folder of the raw files, here or on a bucket. Default: $MIXDEF_DATA, or ./data"
    ),
    "train_size": Flag(
      "number of records to train a model on, drawn by the seed; 0: all records", 0
    ),
    "auxiliary": Flag("number of records to set aside as the defender's own", 0),
    "standardize": Flag(
      "subtract the mean and divide by the standard deviation, per feature"
    ),
    "target": Flag(
      "the only model to audit, 0 to the number of models - 1; the others are "
      "references only. Default: all models, pooled, which describes the recipe"
    ),
    "arrays": Flag("npz of outputs of models trained elsewhere, instead of training"),
  },
  "model": {
    "model": Flag(
      "mlp, cnn, ...: a name in mixdef.models.CATALOGUE, or my_module:name, with "
      "arguments as in 'mlp(256, 128)'; model_stacking takes two, separated by a comma"
    ),
    "defense": Flag(
      "'none', or defenses separated by |, as 'adamixup|weight_decay(1e-4)'"
    ),
    "defenses": Flag(
      "defenses to compare, separated by ;, where a list is a grid: "
      "'none; mixup([0.1, 1.0])'"
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
      "separated by commas, as 'lira_online, rmia(a=0.5)'. Default: all attacks"
    ),
    "views": Flag(
      "views of a record to query: none, mirror, shifts (LiRA's 18) or mixed",
      choices=("none", "mirror", "shifts", "mixed"),
    ),
    "mirror": Flag("query every image and its mirror image, as LiRA's demo does"),
    "canaries": Flag(
      "canaries to plant for the worst case, as mislabelled:200; or none"
    ),
    "canary_source": Flag("data set that out-of-distribution canaries are taken from"),
    "dp_baseline": Flag("also train and attack DP-SGD of matched accuracy"),
    "transfer": Flag("data set of the shadow model that salem_2 transfers from"),
    "attack_targets": Flag("number of models that costly attacks are run on", 1),
    "attack_records": Flag(
      "number of records for attacks that query the models themselves", 1
    ),
    "natural": Flag(
      "run folder of undefended GANs, which are taken as natural references"
    ),
  },
  "report": {
    "audits": Flag(
      "run folders of audits, separated by commas; the others are compared with the "
      "first"
    ),
    "samples": Flag("number of samples per generator for the metrics of utility", 1),
    "classifier": Flag(
      "network that evaluates samples, as 'cnn': trained on samples to measure their "
      "use, and on records for its features"
    ),
    "inception": Flag("npz of the weights of FID's network; see docs/generative.md"),
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
      "memory for the models in training. Default: 60% of the free memory", 0, 1e9
    ),
    "keep_params": Flag("keep the models; otherwise only their outputs are stored"),
    "coordinator": Flag(
      "train on several hosts: auto (SLURM, GKE, TPU pod), or host:port"
    ),
    "num_processes": Flag("number of processes, if --coordinator is host:port", 0),
    "process_id": Flag(
      "number of this process, from 0, if --coordinator is host:port", 0
    ),
  },
}
"""The flags of all jobs, in the groups that --help shows."""

FLAGS = {name: flag for group in GROUPS.values() for name, flag in group.items()}

_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


def check(name: str, value: Any, kind: type) -> None:
  """Refuse a value outside the range of a flag.

  Args:
    name: name of the flag.
    value: value of the flag.
    kind: type of its default.

  Raises:
    ValueError: the value is refused; the message names the flag and its range.
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
  """Return the settings of a command line; exits on --help and mistakes.

  Args:
    job: name of the job, for messages.
    kind: the settings class, whose fields are the flags.
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
  try:
    rest = values([job, *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, _names(kind), n=2)
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?"
    refuse(job, f"--{error.flagname} is not a flag; {hint if near else 'see --help'}")
  except flags.Error as error:
    refuse(job, str(error).removeprefix("flag "))
  if rest:
    refuse(job, f"{rest[0]!r} is not a flag: write --name=value")
  try:
    return _settings(kind, values)
  except ValueError as error:
    refuse(job, str(error))


def refuse(job: str, reason: str) -> NoReturn:
  """End the process because of a mistake of the user: one line, status 2."""
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
  """Make the settings of the flags; a flag that is given overrides the protocol."""
  names = [field.name for field in dataclasses.fields(kind)]
  settings: dict[str, Any] = {name: values[name].value for name in names}
  chosen = values.protocol if hasattr(kind, "protocols") else None
  for name, value in (kind.protocols[chosen] if chosen else {}).items():
    if not values[name].present:
      settings[name] = value
  return kind(**settings)

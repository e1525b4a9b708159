"""Flags of a job: what each means and may be, how they are read, and --help.

It imports absl alone, so that --help answers at once.
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
_HELP_FLAGS = ("help", "helpshort", "helpfull", "h", "?")
_WIDTH = 88


class Flag(NamedTuple):
  """What a flag means, and the range of a number."""

  text: str
  low: float | None = None
  high: float | None = None
  above: float | None = None
  choices: Sequence[str] = ()


STRATEGIES = ("auto", "vmap", "scan", "loop", "processes")

GROUPS: dict[str, dict[str, Flag]] = {
  "run": {
    "out": Flag("run folder; run again with the same one to resume. Default: in runs/"),
    "seed": Flag("of everything random", 0, 2**63 - 1),
    "noise_seed": Flag(
      "of the noise of a stated epsilon, which does not hold against who knows it; -1: "
      "drawn from the operating system",
      -1,
      2**63 - 1,
    ),
    "seeds": Flag(
      "how many seeds to repeat everything with, from --seed on", 1, 10_000
    ),
    "quick": Flag("a small run to see that everything works"),
    "protocol": Flag("settings of a paper; flags beside it win"),
  },
  "data": {
    "dataset": Flag(
      "one of adult, casia_face, celeba, celeba64, cifar10, cifar100, "
      "diabetes130_top100dx, digits, fashion_mnist, ham10000, lfw, lfw62, location30, "
      "mimic3, mimic3_demo, mnist, purchase100, stl10, synthetic_clusters, "
      "synthetic_memorize, texas100"
    ),
    "datasets": Flag("names joined by commas, instead of --dataset"),
    "data_dir": Flag("where the raw files lie. Default: $MIXDEF_DATA, or ./data"),
    "train_size": Flag(
      "records a model trains on, drawn by the seed; 0: all there are", 0
    ),
    "reference": Flag("records kept aside as the defender's own", 0),
    "standardize": Flag("subtract the mean and divide by the deviation, per feature"),
    "target": Flag(
      "the one model to audit, 0 to the number of models - 1; the others are "
      "references only. Default: all, pooled, which describes the recipe"
    ),
    "arrays": Flag("npz of outputs of models trained elsewhere, instead of training"),
  },
  "model": {
    "model": Flag(
      "one of mlp, cnn, resnet, wide_resnet, densenet, as 'mlp(256, 128)'; "
      "model_stacking takes two, joined by a comma"
    ),
    "defense": Flag("'none' or parts joined by |, as 'adamixup|weight_decay(1e-4)'"),
    "defenses": Flag(
      "to compare, joined by ;, lists as grids: 'none; mixup([0.1, 1.0])'"
    ),
    "study": Flag("grid of defenses that a paper compares, instead of --defenses"),
    "learner": Flag("classifier, or ban_mpr or model_stacking"),
    "optimizer": Flag("one of adam, adamw, sgd, as 'sgd(momentum=0.9)'"),
  },
  "training": {
    "learning_rate": Flag("of the optimizer", above=0),
    "epochs": Flag("passes over the training records", 1, 10**7),
    "batch_size": Flag("records a step sees on average", 1),
    "microbatch": Flag(
      "records whose gradients a step takes at once; 0: all of the batch", 0
    ),
    "num_shadows": Flag(
      "models to train, each on a random half of the records", 1, 10**5
    ),
  },
  "attacks": {
    "attacks": Flag("joined by commas, as 'lira_online, rmia(a=0.5)'. Default: all"),
    "views": Flag(
      "none, mirror, shifts (LiRA's 18) or mixed: views of a record asked about",
      choices=("none", "mirror", "shifts", "mixed"),
    ),
    "mirror": Flag("ask about every image and its mirror image, as LiRA's demo does"),
    "canaries": Flag(
      "records planted to see the worst case, as mislabelled:200; or none"
    ),
    "canary_source": Flag("data set that out-of-distribution canaries come from"),
    "dp_baseline": Flag("also train and attack DP-SGD of matched accuracy"),
    "transfer": Flag("data set of the shadow that salem_2 transfers from"),
    "attack_targets": Flag("models that costly attacks are tried on", 1),
    "attack_records": Flag(
      "records that attacks with questions of their own ask about", 1
    ),
    "natural": Flag(
      "run folder of an undefended gan.py, whose GANs are natural references"
    ),
  },
  "report": {
    "audits": Flag(
      "run folders of audit.py, joined by commas; the first is compared with"
    ),
    "samples": Flag("records that each generator makes to be measured", 1),
    "classifier": Flag(
      "network that judges samples: trained on them, and on records for its features, "
      "as 'cnn'"
    ),
    "inception": Flag("npz of the weights of FID's network; docs/generative.md"),
    "suite": Flag(
      "cpu: ensembles; gpu; dp: steps of DP-SGD; attacks: an audit; defenses",
      choices=("cpu", "gpu", "dp", "attacks", "defenses"),
    ),
    "repeats": Flag("rounds of timing", 1, 10_000),
  },
  "machine": {
    "strategy": Flag(
      "vmap, scan, loop, processes, or auto: measure and choose", choices=STRATEGIES
    ),
    "memory_gb": Flag(
      "what the models in training may take. Default: 60% of what is free", 0, 1e9
    ),
    "keep_params": Flag(
      "keep the models; without them only the answers they gave are stored"
    ),
    "coordinator": Flag(
      "train on several hosts: auto (SLURM, GKE, TPU pod), or host:port"
    ),
    "num_processes": Flag("how many there are, where --coordinator is host:port", 0),
    "process_id": Flag("which this is, from 0, where --coordinator is host:port", 0),
  },
}
"""Every flag of every job, in the groups that --help shows."""

FLAGS = {name: flag for group in GROUPS.values() for name, flag in group.items()}

_DEFINE: dict[type, Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


def check(name: str, value: Any, kind: type) -> None:
  """Refuse a value that a flag cannot have.

  Args:
    name: of the flag.
    value: what it is set to.
    kind: type of its default.

  Raises:
    ValueError: naming the flag, the value and what it may be.
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


def read(job: str, kind: Any, argv: Sequence[str]) -> Any:
  """Return the settings that a command line asks for; exits on --help and mistakes.

  Args:
    job: its name, for messages.
    kind: the settings class, whose fields are the flags.
    argv: the command line, the program first.
  """
  asked = {one.lstrip("-").partition("=")[0] for one in argv[1:] if one[:1] == "-"}
  if asked & set(_HELP_FLAGS):
    print(help_text(kind))
    sys.exit(0)
  if "version" in asked:
    print(f"mixdef {version('mixdef')}")
    sys.exit(0)
  values = _define(kind)
  try:
    rest = values(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, _names(kind), n=2)
    hint = f"did you mean {' or '.join(f'--{name}' for name in near)}?"
    refuse(job, f"--{error.flagname} is no flag; {hint if near else 'see --help'}")
  except flags.Error as error:
    refuse(job, str(error).removeprefix("flag "))
  if rest:
    refuse(job, f"{rest[0]!r} is no flag: write --name=value")
  try:
    return _settings(kind, values)
  except ValueError as error:
    refuse(job, str(error))


def refuse(job: str, reason: str) -> NoReturn:
  """End the process for a mistake of the user's: one line, status 2."""
  line = " ".join(reason.split())
  print(f"{job}: {line}", file=sys.stderr)
  sys.exit(2)


def version(package: str) -> str:
  """Return the version of a package, or "unknown" where it was not installed."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "unknown"


def help_text(kind: Any) -> str:
  """Return what --help prints: the job's own text, and its flags by group."""
  defaults = {field.name: field.default for field in dataclasses.fields(kind)}
  names = _names(kind)
  lines = [(sys.modules[kind.__module__].__doc__ or "").strip()]
  main = sys.modules["__main__"].__doc__
  lines = [main.strip()] if main else lines
  for group, members in GROUPS.items():
    shown = [name for name in members if name in names]
    if shown:
      lines += ["", f"{group}:"]
    for name in shown:
      text = getattr(kind, "flag_texts", {}).get(name, members[name].text)
      if name == "protocol":
        text = f"{text}: {', '.join(kind.protocols)}"
      default = defaults.get(name, "")
      bare = default == "" or default is False
      head = f"--{name}" if bare else f"--{name}={default}"
      wrapped = textwrap.fill(text, _WIDTH - 6)
      lines += [f"  {head}", textwrap.indent(wrapped, " " * 6)]
  return "\n".join(lines)


def _names(kind: Any) -> list[str]:
  names = [field.name for field in dataclasses.fields(kind)]
  return [*names, "protocol"] if hasattr(kind, "protocols") else names


def _define(kind: Any) -> flags.FlagValues:
  """Return a flag for every field of the settings, and those of absl's logging."""
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
  """Make the settings of the flags; those given win over a protocol's."""
  names = [field.name for field in dataclasses.fields(kind)]
  settings: dict[str, Any] = {name: values[name].value for name in names}
  chosen = values.protocol if hasattr(kind, "protocols") else None
  for name, value in (kind.protocols[chosen] if chosen else {}).items():
    if not values[name].present:
      settings[name] = value
  return kind(**settings)

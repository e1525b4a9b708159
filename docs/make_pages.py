"""Write the pages that list what is registered, from docstrings and measured costs.

  mixdef bench --suite=defenses --out=DIR
  python docs/make_pages.py DIR/result.json

Without an argument the costs in docs/defense_costs.json are kept.
"""

import inspect
import json
import pathlib
import re
import sys

from mixdef import attacks, data, learners, models
from mixdef.attacks import ATTACKS, Catalogue
from mixdef.attacks.gan import ATTACKS as GAN_ATTACKS
from mixdef.core.hooks import Defense
from mixdef.core.traits import Traits
from mixdef.defenses import CATALOGUE, RECIPES

HERE = pathlib.Path(__file__).parent
COSTS = HERE / "defense_costs.json"

# Hooks in the order they act, and the words for where that is.
PLACES = {
  "stages": "a training before",
  "rows": "which rows are trained on",
  "model": "model",
  "batch": "batch",
  "log_probs": "probabilities",
  "loss": "loss",
  "value_and_grad": "gradient estimate",
  "grads": "gradient",
  "update": "after each step",
  "epoch": "after each epoch",
  "finish": "after training",
  "release_params": "released weights",
  "release_output": "released outputs",
}


# What a batch hook changes, by its order.
BATCHES = {
  "augment": "inputs",
  "mix": "inputs and labels",
  "label": "labels",
  "table": "batch",
}

# Functions of mixdef.attacks that are no attacks on signals.
FUNCTIONS = (
  attacks.imia,
  attacks.glira,
  attacks.cmia,
  attacks.cmia_anchors,
  attacks.quantile_network,
  attacks.lt_iqr,
  attacks.trace_losses,
  attacks.tail_tnr,
  attacks.log_loss_ratio,
  attacks.mean_rank,
  attacks.agreement,
  attacks.ramia,
  attacks.by_group,
  attacks.auc_within,
)


def pages(costs: dict) -> dict[str, str]:
  """Return the pages by file name.

  Args:
    costs: name of a defense to its two ratios, as `mixdef bench` wrote them.
  """
  return {
    "defenses.md": _defenses(costs),
    "attacks.md": _attacks(),
    "data.md": _data(),
    "learners.md": _learners(),
  }


def _attacks() -> str:
  lines = [_ATTACKS]
  for title, catalogue in (
    ("Attacks on classifiers", ATTACKS),
    ("Attacks on generative models", GAN_ATTACKS),
  ):
    lines += ["", f"## {title}", "", "| family | attack | reads | what a score is |"]
    lines.append("|---|---|---|---|")
    for family, members in catalogue.families.items():
      for name in (attack.__name__ for attack in members):
        lines.append(f"| {family} | {_attack_cells(catalogue, name)} |")
    lines += ["", *_aliases(catalogue.attacks.aliases)]
  lines += ["", _FUNCTIONS, "", "| function | what it returns |", "|---|---|"]
  for function in FUNCTIONS:
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    lines.append(f"| `{function.__name__}` | {about} |")
  lines += ["", "## Arguments and sources"]
  for name, attack in sorted({**ATTACKS.attacks, **GAN_ATTACKS.attacks}.items()):
    lines += ["", *_entry(name, attack)]
  return "\n".join(lines) + "\n"


def _attack_cells(catalogue: Catalogue, name: str) -> str:
  note = catalogue.note(name)
  about = catalogue.about(name) + (f" Note: {note}." if note else "")
  reads = catalogue.reads(name)
  if reads == "signals" and catalogue.costly(name):
    reads = "signals; trains"
  return f"`{name}` | {reads} | {about}"


def _aliases(aliases) -> list[str]:
  said = ", ".join(f"`{name}` is `{call}`" for name, call in sorted(aliases.items()))
  return [f"Other names: {said}."] if said else []


def _data() -> str:
  lines = [_DATA, "", "| name | read from |", "|---|---|"]
  for name, reader in sorted(data.CATALOGUE.items()):
    lines.append(f"| `{name}` | {reader.files or 'nothing: bundled or simulated'} |")
  return "\n".join([*lines, "", _FILES]) + "\n"


def _learners() -> str:
  lines = ["# Learners and networks", "", _WRITTEN, "", _LEARNERS]
  for title, registry in (
    ("Learners of classifiers", learners.CATALOGUE),
    ("Learners of generative models", learners.GANS),
    ("Networks of classifiers", models.CATALOGUE),
  ):
    lines += ["", f"## {title}"]
    for name, factory in sorted(registry.items()):
      lines += ["", *_entry(name, factory)]
  return "\n".join(lines) + "\n"


def _defenses(costs: dict) -> str:
  lines = [_INTRODUCTION, "", "| name | acts at | state | traits | training | answer |"]
  lines.append("|---|---|---|---|---|---|")
  lines += [_row(name, factory(), costs) for name, factory in sorted(CATALOGUE.items())]
  lines += [
    "",
    *_aliases(CATALOGUE.aliases),
    "",
    _RECIPES,
    "",
    "| recipe | stands for |",
    "|---|---|",
  ]
  for name, recipe in sorted(RECIPES.items()):
    parts = str(recipe()).replace("|", "\\|")
    lines.append(f"| `{name}` | `{parts}` |")
  lines += ["", "## What each promises, and where it is from"]
  for name, factory in sorted({**CATALOGUE, **RECIPES}.items()):
    lines += ["", *_entry(name, factory)]
  return "\n".join(lines) + "\n"


def _row(name: str, made: Defense, costs: dict) -> str:
  places = {**PLACES, "batch": BATCHES[made.traits.order or "table"]}
  acts = [words for hook, words in places.items() if getattr(made, hook)]
  measured = costs.get(name, {})
  cells = (
    f"`{name}`",
    ", ".join(acts),
    "yes" if made.init else "",
    ", ".join(_traits(made.traits)),
    *(_ratio(measured.get(key)) for key in ("train", "answer")),
  )
  return f"| {' | '.join(cells)} |"


def _traits(traits: Traits) -> list[str]:
  """Return the traits in words, without the order, which `PLACES` words."""
  couples = [] if traits.couples == "nothing" else [f"couples {traits.couples}"]
  return couples + [name for name, value in traits._asdict().items() if value is True]


def _ratio(value):
  if value is None:
    return ""
  return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


# What a job or `leave_one_out` gives an attack.
_GIVEN = ("signals", "ensemble", "target", "records")


def _entry(name, factory):
  text = inspect.getdoc(factory) or ""
  signature = inspect.signature(inspect.unwrap(factory))
  shown = [p for p in signature.parameters.values() if p.name not in _GIVEN]
  arguments = ", ".join(map(_shown, shown))
  first = text.split("\n", 1)[0]
  lines = [f"### `{name}({arguments})`", "", first]
  for title in ("Guarantee", "Reference"):
    section = _section(text, title)
    if section:
      lines += ["", f"{title}: {section}"]
  return lines


def _shown(parameter):
  if parameter.default is parameter.empty:
    return parameter.name
  plain = type(parameter.default) in (bool, int, float, str, tuple, type(None))
  # An optax transform, say, is named in the docstring.
  return f"{parameter.name}={parameter.default!r}" if plain else parameter.name


def _section(text: str, title: str) -> str:
  """The text of one section of a docstring, on one line."""
  found = re.search(rf"^{title}: (.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
  return " ".join(found[1].split()) if found else ""


_WRITTEN = "Written by `docs/make_pages.py`; edit the docstrings instead."

_ATTACKS = f"""# Attacks

{_WRITTEN}

An attack gives every record a score; larger means that it is more likely a member. What
it *reads* decides what it needs: signals are statistics of all models on all records,
computed once (`mixdef.signals`); models are queried by the attack itself, so it is run
on few of them (`--attack_targets`, `--attack_records`). `--attacks="lira_online,
rmia(gamma=1.0)"` picks some.

```python
import mixdef

print(mixdef.attacks.ATTACKS.resolve("rmia(gamma=1.0)"))
```"""

_FUNCTIONS = """## With one released model

These functions of `mixdef.attacks` read arrays. `imia` and `glira` compare the release
with imitators, which the part `imitation` of a chain trains; `cmia` with models trained
in rounds, which `cmia_anchors` links; `quantile_network` reads the records; `lt_iqr`
reads the losses that `fit(..., trace="loss")` keeps. The others combine scores, or
records of a person, and say what losses tell alone."""

_DATA = f"""# Data sets

{_WRITTEN}

Files are read from `--data_dir` (or `$MIXDEF_DATA`). If one is missing, the error says
which one and where to get it. For your tables, arrays and pictures, and for data sets
of hubs, see [your_data.md](your_data.md).

```python
import mixdef

print(mixdef.load("digits"))
```"""

_FILES = """Known sizes and contents are checked: a file that is cut short, or of
another set with the same file names, is refused, and the log says what was read.
Capital letters in names, byte order marks, one more level of folders and desktop
clutter (`.DS_Store`, `Thumbs.db`) make no difference. A set that TensorFlow Datasets
has prepared is read without TensorFlow; `pip install -e '.[prepare]'` adds what
preparing takes."""

_LEARNERS = """`--learner` and `--model` name them.

```python
import mixdef, optax

networks = mixdef.models.mlp(64), mixdef.models.mlp(32)
print(mixdef.model_stacking(networks, optax.adam(1e-3)).text)
```"""

_INTRODUCTION = f"""# Defenses

{_WRITTEN}

```python
import mixdef

defense = mixdef.parse("random_crop(4)|label_smoothing(0.1)|weight_decay(1e-4)")
print([part.name for part in defense.parts])
```

*training* is the time of the last epoch, teachers included, and *answer* that of a
query where the defense acts on answers: ratios to the undefended model, of the fastest
rounds in one interleaved run of `mixdef bench --suite=defenses` on two CPU
cores (an MLP; a residual network for the parts of networks). The traits say what a part
needs or forbids: `needs_auxiliary` wants records of the defender's own
(`--auxiliary=500`); `couples records` and `couples batch` let a record act on others
and do not go with `per_example` clipping, the former unless the clipping gives up
epsilon. Any other two compose, unless both are the one mixer, the one gradient
estimate, the one training before or the one that releases other weights: `chain` then
says so. `critic` acts on the loss of a GAN's critic ([generative.md](generative.md)),
and its time is not measured here."""

_RECIPES = "A recipe is a name for a chain; `mixdef.parse` reads it like a part."


def main(arguments: list[str]) -> None:
  """Take over measured costs if a result of `mixdef bench` is given; write the page."""
  if arguments:
    rows = json.loads(pathlib.Path(arguments[0]).read_text())["rows"]
    plain = {row["work"]: row["ms"][0] for row in rows if row["case"] == "none"}
    costs: dict[str, dict[str, float]] = {}
    for row in rows:
      if row["case"] != "none":
        ratio = round(row["ms"][0] / plain[row["work"]], 2)
        costs.setdefault(row["case"], {})[row["measure"]] = ratio
    COSTS.write_text(json.dumps(costs, indent=1, sort_keys=True) + "\n")
  for name, text in pages(json.loads(COSTS.read_text())).items():
    (HERE / name).write_text(text)


if __name__ == "__main__":
  main(sys.argv[1:])

"""Write docs/defenses.md from the catalogue and the measured costs.

  python experiments/bench.py --suite=defenses --out=DIR
  python docs/make_defenses.py DIR/result.json

Without an argument the costs in docs/defense_costs.json are kept.
"""

import inspect
import json
import pathlib
import re
import sys

from mixdef.core.hooks import Defense
from mixdef.defenses import CATALOGUE, RECIPES

HERE = pathlib.Path(__file__).parent
COSTS, PAGE = HERE / "defense_costs.json", HERE / "defenses.md"

# Hooks in the order they act, and the words for where that is.
PLACES = {
  "before": "a training before",
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


# What a batch hook changes, by its trait.
BATCHES = {
  "augment": "inputs",
  "mix": "inputs and labels",
  "label": "labels",
  "table": "batch",
}


def page(costs: dict) -> str:
  """Return the page; `costs` maps a name to its two ratios, as bench.py wrote them."""
  lines = [_INTRODUCTION, "", "| name | acts at | state | traits | training | answer |"]
  lines.append("|---|---|---|---|---|---|")
  lines += [_row(name, factory(), costs) for name, factory in sorted(CATALOGUE.items())]
  lines += ["", _RECIPES, "", "| recipe | stands for |", "|---|---|"]
  for name, recipe in sorted(RECIPES.items()):
    parts = str(recipe()).replace("|", "\\|")
    lines.append(f"| `{name}` | `{parts}` |")
  lines += ["", "## What each promises, and where it is from"]
  for name, factory in sorted({**CATALOGUE, **RECIPES}.items()):
    lines += ["", *_entry(name, factory)]
  return "\n".join(lines) + "\n"


def _row(name: str, made: Defense, costs: dict) -> str:
  kind = next((kind for kind in BATCHES if kind in made.traits), "table")
  places = {**PLACES, "batch": BATCHES[kind]}
  acts = [words for hook, words in places.items() if getattr(made, hook)]
  kinds = sorted(made.traits - set(BATCHES))
  measured = costs.get(name, {})
  cells = (
    f"`{name}`",
    ", ".join(acts),
    "yes" if made.init else "",
    ", ".join(kinds),
    *(_ratio(measured.get(key)) for key in ("train", "answer")),
  )
  return f"| {' | '.join(cells)} |"


def _ratio(value):
  if value is None:
    return ""
  return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _entry(name, factory):
  text = inspect.getdoc(factory) or ""
  signature = inspect.signature(inspect.unwrap(factory))
  arguments = ", ".join(_shown(p) for p in signature.parameters.values())
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
  return f"{parameter.name}={parameter.default!r}"


def _section(text: str, title: str) -> str:
  """The text of one section of a docstring, on one line."""
  found = re.search(rf"^{title}: (.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
  return " ".join(found[1].split()) if found else ""


_INTRODUCTION = """# Defenses

Written by `docs/make_defenses.py` from the catalogue; edit the docstrings instead.

```python
import mixdef

defense = mixdef.parse("random_crop(4)|label_smoothing(0.1)|weight_decay(1e-4)")
print([part.name for part in defense.parts])
```

*training* is the time of the last epoch, teachers included, and *answer* that of a
query where the defense acts on answers: ratios to the undefended model, of the fastest
rounds in one interleaved run of `experiments/bench.py --suite=defenses` on two CPU
cores (an MLP; a residual network for the parts of networks). The traits say what a part
needs or forbids: `needs_reference` wants records of the defender's own
(`--reference=500`), `whole_batch` and `cross_example` let a record act on the others'
loss and do not go with `per_example` clipping. Any other two compose, unless both are
the one mixer, the one gradient estimate, the one training before or the one that
releases other weights: `chain` then says so. `critic` acts on the loss of a GAN's
critic ([generative.md](generative.md)), and its time is not measured here."""

_RECIPES = "A recipe is a name for a chain; `mixdef.parse` reads it like a part."


def main(arguments: list[str]) -> None:
  """Take over measured costs if a result of bench.py is named; write the page."""
  if arguments:
    rows = json.loads(pathlib.Path(arguments[0]).read_text())["rows"]
    plain = {row["work"]: row["ms"][0] for row in rows if row["case"] == "none"}
    costs: dict[str, dict[str, float]] = {}
    for row in rows:
      if row["case"] != "none":
        ratio = round(row["ms"][0] / plain[row["work"]], 2)
        costs.setdefault(row["case"], {})[row["measure"]] = ratio
    COSTS.write_text(json.dumps(costs, indent=1, sort_keys=True) + "\n")
  PAGE.write_text(page(json.loads(COSTS.read_text())))


if __name__ == "__main__":
  main(sys.argv[1:])

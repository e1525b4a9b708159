"""From epsilon to accuracy: what DP-SGD, and each remedy, reaches at a stated privacy.

  python experiments/private_accuracy.py --out=runs/private_accuracy

A cell is a data set, a recipe and an epsilon; it trains three models of all members,
which differ in their seeds. A call with the same --out continues where another stopped;
`--only=fashion_mnist/plain` runs the cells whose names begin so.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import numpy as np
import optax
from absl import app, flags, logging

import mixdef
from mixdef.defenses import adam_corrected
from mixdef.kernels import standardized
from mixdef.kernels.convolution import linen_conv

_OUT = flags.DEFINE_string("out", "runs/private_accuracy", "folder of the results")
_ONLY = flags.DEFINE_string("only", "", "run the cells whose names begin with this")

SEEDS = 3
EPSILONS = (3, 1, 8)
UNDEFENDED = ("plain", "whole", "lora", "head")  # also trained without dp_sgd
DELTA = 1e-5
HEAD = "head/.*"


class Net(nn.Module):
  """Two convolutions with stride 2, a dense layer of 32 and a head."""

  num_classes: int = 10
  normalized: bool = False  # group norm, and standardized kernels

  @nn.compact
  def __call__(self, x):
    """Return logits [B,K] of images [B,H,W,C]."""
    layer = standardized.Conv if self.normalized else nn.Conv
    conv = functools.partial(linen_conv, "auto")
    for channels, size in ((16, 5), (32, 3)):
      kernel, strides = (size, size), (2, 2)
      x = layer(channels, kernel, strides=strides, conv_general_dilated_cls=conv)(x)
      x = nn.tanh(nn.GroupNorm(8)(x) if self.normalized else x)
    x = nn.max_pool(x, (2, 2), (2, 2), "SAME").reshape(x.shape[0], -1)
    return nn.Dense(self.num_classes, name="head")(nn.tanh(nn.Dense(32)(x)))


class Recipe(NamedTuple):
  """A training: parts beside `dp_sgd` and its arguments, an optimizer, a network."""

  private: str = ""  # arguments of dp_sgd
  before: str = ""
  after: str = ""
  optimizer: optax.GradientTransformation = optax.sgd(0.5)
  normalized: bool = False


AVERAGE = "|ema(0.99)"
FINE_TUNED = "start_from({weights!r}, fresh={head!r})|"
SCRATCH = {
  "plain": Recipe(),
  "automatic": Recipe("clipping='automatic', "),
  "adaptive": Recipe("clipping='adaptive', "),
  "bands": Recipe("bands=8, "),
  "adam": Recipe(optimizer=optax.adam(1e-3)),
  "adam_corrected": Recipe(optimizer=adam_corrected(3e-4)),
  "average": Recipe(after=AVERAGE),
}
NETWORKS = {
  "plain": Recipe(),
  "norms": Recipe(normalized=True),
  "views": Recipe("multiplicity=4, ", before="random_crop(2)|random_flip|"),
  "whole": Recipe(before=FINE_TUNED),
  "lora": Recipe(before=FINE_TUNED + "lora(4)|"),
  "head": Recipe(before=FINE_TUNED + "head_only({head!r})|"),
}
TABLES = {
  name: one._replace(optimizer=optax.sgd(2.0))
  for name, one in SCRATCH.items()
  if name in ("plain", "automatic", "adaptive", "bands", "average")
}


class Task(NamedTuple):
  """Records to train on, all of which are members, and how."""

  data: mixdef.Dataset
  model: Callable
  epochs: int
  batch_size: int


def fashion_mnist(out):
  """Return Fashion-MNIST, for a network of one layer, trained from scratch."""
  del out
  model = mixdef.models.mlp(64)
  return Task(mixdef.load("fashion_mnist"), lambda normalized: model, 8, 512)


def other_classes(out):
  """Return classes 5 to 9 of Fashion-MNIST; 0 to 4 are public, for pretraining."""
  data, path = mixdef.load("fashion_mnist"), out / "pretrained.npz"
  if not path.exists():
    run = mixdef.fit(
      mixdef.classifier(Net(5), optax.adam(1e-3)), of_classes(data, 0), epochs=5
    )
    logging.info("pretrained: %.3f", run.accuracy(of_classes(data.test, 0)))
    mixdef.models.save_weights(path, run.state.params)
  private = dataclasses.replace(of_classes(data, 5), test=of_classes(data.test, 5))
  return Task(private, functools.partial(Net, 5), 8, 512)


def location30(out):
  """Return half of Location-30; the other half is the test set."""
  del out
  data = mixdef.load("location30")
  order = np.random.default_rng(0).permutation(len(data))
  half, test = (data.select(rows) for rows in np.array_split(order, 2))
  half = dataclasses.replace(half, test=test)
  model = mixdef.models.mlp(128, num_classes=data.num_classes)
  return Task(half, lambda normalized: model, 40, 128)


TASKS = {
  "fashion_mnist": (fashion_mnist, SCRATCH),
  "other_classes": (other_classes, NETWORKS),
  "location30": (location30, TABLES),
}


def of_classes(data, first):
  """Return the records of five classes, labelled 0 to 4."""
  chosen = (data.y >= first) & (data.y < first + 5)
  return mixdef.Dataset.from_arrays(
    data.x[chosen], data.y[chosen] - first, num_classes=5, name=data.name
  )


def cell(task, recipe, epsilon, out):
  """Train the models of a cell; return their accuracies and what they cost."""
  private = f"dp_sgd({recipe.private}{epsilon=}, delta={DELTA})" if epsilon else ""
  text = recipe.before + private + recipe.after
  text = text.format(weights=str(out / "pretrained.npz"), head=HEAD).strip("|")
  learner = mixdef.classifier(
    task.model(normalized=recipe.normalized), recipe.optimizer, mixdef.chain(text)
  )
  start, some = time.monotonic(), np.arange(min(5000, len(task.data)))
  models = mixdef.fit_many(
    learner,
    task.data,
    np.ones((SEEDS, len(task.data)), bool),
    epochs=task.epochs,
    batch_size=task.batch_size,
    num_members=len(task.data),
    strategy="scan",
  )
  seconds, stated = time.monotonic() - start, models[0].guarantee
  return {
    "defense": text,
    "train": [one.accuracy(task.data.select(some)) for one in models],
    "test": [one.accuracy(task.data.test) for one in models],
    "noise": stated["accounting"]["noise_multiplier"] if epsilon else 0.0,
    "epsilon": stated["epsilon"] if epsilon else None,
    "seconds": seconds,
  }


def row(found):
  """Return the cells of a row of the table."""
  test = np.array(found["test"])
  spread = f"{test.mean():.1%} [{test.min():.1%}, {test.max():.1%}]"
  return f"{found['noise']:.2f} | {np.mean(found['train']):.1%} | {spread}"


def main(argv):
  """Run every cell that has no result yet, and print the rows."""
  del argv
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  for name, (make, recipes) in TASKS.items():
    task = None
    cells = itertools.product(recipes, EPSILONS)
    plain = [(recipe, None) for recipe in recipes if recipe in UNDEFENDED]
    for recipe, epsilon in [*cells, *plain]:
      label = f"{name}/{recipe}/{epsilon or 'none'}"
      path = out / f"{label.replace('/', '-')}.json"
      if not label.startswith(_ONLY.value):
        continue
      if not path.exists():
        task = task or make(out)
        path.write_text(json.dumps(cell(task, recipes[recipe], epsilon, out)))
      words = row(json.loads(path.read_text()))
      print(f"| {name} | {recipe} | {epsilon or 'none'} | {words} |", flush=True)


if __name__ == "__main__":
  app.run(main)

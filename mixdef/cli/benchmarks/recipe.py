"""A fast training of many shadow models on images: the recipe of `--suite=gpu`."""

import math
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks.works import CLASSES
from mixdef.core.parsing import parse_call

BATCH = 512
EXTRAPOLATED = 256

_WARM_UP = 0.2  # of all steps
# Separation of the synthetic classes, so that they are learned, but not immediately.
_SEPARATION = 0.1


class InBfloat16(nn.Module):
  """A network computed in bfloat16 whose parameters stay float32.

  Fields:
    network: the module; it accepts `train` and `weight` by keyword.
  """

  network: nn.Module

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    """Return float32 logits [B,K] for x [B,...]."""
    if self.is_initializing():
      return self.network(x)
    lowered = nn.map_variables(
      lambda network, x: network(x, train=train, weight=weight), "params", _to_bfloat16
    )
    return lowered(self.network, x.astype(jnp.bfloat16)).astype(jnp.float32)


def _to_bfloat16(params):
  return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def train_shadows(
  settings: BenchSettings, data: mixdef.Dataset, *, batch: int = BATCH
) -> dict:
  """Train shadows on random halves of the records, in bfloat16.

  SGD with Nesterov momentum 0.9; the rate increases linearly from 0 over the first
  fifth of the steps and decreases linearly to 0 over the rest. There is no label
  smoothing. Images are augmented if `settings.defense` augments.

  Args:
    settings: network, defense, maximal rate, epochs, shadows, strategy.
    data: the records; a shadow trains on half of them.
    batch: number of records per step.

  Returns:
    Seconds for the shadows including compilation, and extrapolated linearly for 256;
    accuracies of the first shadow on its members and on the other records.
  """
  network = parse_call(
    settings.model, mixdef.models.CATALOGUE, "model", num_classes=data.num_classes
  )
  size = len(data) // 2
  rate = _rise_and_fall(
    settings.learning_rate, steps=settings.epochs * math.ceil(size / batch)
  )
  learner = mixdef.classifier(
    InBfloat16(network),
    optax.sgd(rate, momentum=0.9, nesterov=True),
    mixdef.parse(settings.defense),
  )
  members = mixdef.subsets(data, settings.num_shadows, seed=settings.seed)
  start = time.perf_counter()
  shadows = mixdef.fit_many(
    learner,
    data,
    members,
    epochs=settings.epochs,
    batch_size=batch,
    seed=settings.seed,
    strategy=settings.strategy,
    num_members=size,
  )
  seconds = time.perf_counter() - start
  first = shadows[0]
  own, others = data.select(members[0]), data.select(~members[0])
  return {
    "model": settings.model,
    "dataset": data.name,
    "defense": settings.defense,
    "epochs": settings.epochs,
    "batch_size": batch,
    "num_shadows": settings.num_shadows,
    "strategy": shadows.strategy,
    "models_at_once": shadows.models_at_once,
    "seconds": round(seconds, 2),
    "shadows_per_minute": round(60 * settings.num_shadows / seconds, 3),
    "extrapolated": {
      "num_shadows": EXTRAPOLATED,
      "seconds": round(seconds * EXTRAPOLATED / settings.num_shadows, 1),
    },
    "train_accuracy": first.accuracy(own.x, own.y),
    "test_accuracy": first.accuracy(others.x, others.y),
  }


def _rise_and_fall(highest, *, steps):
  rise = max(1, round(_WARM_UP * steps))
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, highest, rise),
      optax.linear_schedule(highest, 0.0, steps - rise),
    ],
    [rise],
  )


def records_for(settings: BenchSettings) -> mixdef.Dataset:
  """Return the named data set, or synthetic images of CIFAR-10's size."""
  if settings.dataset != "synthetic":
    return mixdef.load(settings.dataset, data_dir=settings.data_dir or None)
  return synthetic_pictures(50_000)


def synthetic_pictures(size: int) -> mixdef.Dataset:
  """Return 32x32x3 images: one pattern per class, mostly hidden by noise."""
  rng = np.random.default_rng(0)
  y = rng.integers(0, CLASSES, size)
  patterns = rng.normal(size=(CLASSES, 32, 32, 3)).astype(np.float32)
  x = rng.standard_normal((size, 32, 32, 3), np.float32)
  x += _SEPARATION * patterns[y]
  return mixdef.Dataset.from_arrays(x, y, num_classes=CLASSES, name="synthetic")


def show(recipe: dict) -> None:
  """Print the times of the recipe."""
  more = recipe["extrapolated"]
  print(
    f"{recipe['num_shadows']} shadows of {recipe['model']} in bfloat16 on "
    f"{recipe['dataset']}, {recipe['epochs']} epochs at batch {recipe['batch_size']}: "
    f"{recipe['seconds']:.1f} s with compilation ({recipe['strategy']}, "
    f"{recipe['models_at_once']} at once), {recipe['shadows_per_minute']:.3g} per "
    f"minute; members {recipe['train_accuracy']:.1%}, others "
    f"{recipe['test_accuracy']:.1%}\n"
    f"{more['num_shadows']} shadows, extrapolated: {more['seconds']:.0f} s"
  )

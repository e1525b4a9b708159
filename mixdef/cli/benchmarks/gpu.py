"""Many models at once on a GPU: lowerings, precisions, and a recipe."""

import math
from collections.abc import Callable, Sequence

import jax
import optax
from absl import logging

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks import recipe
from mixdef.cli.benchmarks.timing import interleave, milliseconds, spread
from mixdef.cli.benchmarks.works import (
  CLASSES,
  CNN,
  EPOCHS,
  RECORDS,
  Work,
  random_data,
  step_flops,
  steps_of,
  train_everyone,
)

COUNTS = (1, 2, 4, 8, 16, 32, 64)
WIDER_RESNET = Work(
  "wider_resnet",
  "WRN-16-4, GroupNorm",
  mixdef.models.wide_resnet(16, 4, norm="group"),
  (32, 32, 3),
  32,
)

# Dense TFLOP/s of the vendor's data sheets; float32 products run in TF32 by default.
PEAKS = {
  "H200": {"float32": 494.7, "bfloat16": 989.4},
  "H100 80GB HBM3": {"float32": 494.7, "bfloat16": 989.4},
  "H100 PCIe": {"float32": 378.0, "bfloat16": 756.0},
  "A100": {"float32": 156.0, "bfloat16": 312.0},
}
_FEWEST_STEPS = 8  # per round, so that the overhead of a call is negligible
PRECISIONS: dict[str, Callable] = {
  "float32": lambda network: network,
  "bfloat16": recipe.InBfloat16,
}
WAYS = {
  "vmap, native": ("vmap", "native"),
  "vmap, im2col": ("vmap", "im2col"),
  "loop, native": ("loop", "native"),
}


def run(settings: BenchSettings) -> dict:
  """Time the recipe and the table of models at once."""
  # The recipe first, because it fails early if a flag is wrong.
  trained = recipe.train_shadows(settings, recipe.records_for(settings))
  rows = models_at_once(
    (CNN._replace(steps=32), WIDER_RESNET),
    COUNTS,
    batch=settings.batch_size,
    repeats=settings.repeats,
  )
  about = {
    "device": jax.devices()[0].device_kind,
    "batch_size": settings.batch_size,
    "records": RECORDS,
    "epochs": EPOCHS,
  }
  return {"about": about, "rows": rows, "recipe": trained}


def models_at_once(
  works: Sequence[Work], counts: Sequence[int], *, batch: int, repeats: int
) -> list[dict]:
  """Time the steps of several numbers of models, for each work and precision.

  Args:
    works: the trainings.
    counts: numbers of models, increasing.
    batch: number of records per step.
    repeats: number of rounds over the `WAYS` of one count, interleaved.

  Returns:
    One row per work, precision, count and way: `ms` of a step of all models as [min,
    median, max], `steps_per_second` (models x steps), `peak_fraction` (None for a
    device that is not in `PEAKS`), `shadows_per_minute`; all None if the models do not
    fit into memory.
  """
  rows = []
  for work in works:
    data = random_data(work.steps * batch, work.shape, CLASSES)
    flops = step_flops(work.model, work.shape, batch)
    for precision, at_precision in PRECISIONS.items():
      peak = peak_flops(jax.devices()[0].device_kind, precision)
      learners = {
        way: mixdef.classifier(
          at_precision(work.model.clone(lowering=lowering)), optax.adam(1e-3)
        )
        for way, (_, lowering) in WAYS.items()
      }
      for count in counts:
        logging.info("timing %s, %s, %d models", work.title, precision, count)
        steps = min(work.steps, max(_FEWEST_STEPS, work.steps // count))
        cases = {}
        for way in tuple(learners):
          case = _fitting(learners[way], data, way, count, batch, steps)
          if case is None:
            del learners[way]  # more models would not fit either
          else:
            cases[way] = case
        seconds = interleave(cases, repeats)
        for way in WAYS:
          rows.append(
            {"work": work.title, "precision": precision, "models": count, "way": way}
            | throughput(
              seconds.get(way), count, steps, flops=flops, peak=peak, batch=batch
            )
          )
  return rows


def _fitting(learner, data, way, count, batch, steps):
  """Return a function that trains `count` models, or None if memory is too small."""
  try:
    training = train_everyone(learner, data, models=count, batch=batch, epochs=EPOCHS)
    case = steps_of(training, WAYS[way][0], steps)
    jax.block_until_ready(case())
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return None
  return case


def throughput(
  seconds: list[float] | None,
  count: int,
  steps: int,
  *,
  flops: float,
  peak: float | None,
  batch: int,
) -> dict:
  """Return the throughput of `count` models that train for `steps` steps.

  Args:
    seconds: duration of each round, or None.
    count: number of models.
    steps: number of steps of each model.
    flops: floating-point operations of one step of one model.
    peak: peak of the device in flop/s, or None.
    batch: number of records per step.
  """
  if seconds is None:
    names = ("ms", "steps_per_second", "peak_fraction", "shadows_per_minute")
    return dict.fromkeys(names)
  ms = milliseconds(seconds, steps)
  rate = count * 1e3 / ms[1]
  epoch = math.ceil(RECORDS / batch)
  return {
    "ms": ms,
    "steps_per_second": round(rate, 2),
    "peak_fraction": peak and round(rate * flops / peak, 4),
    "shadows_per_minute": round(60 * rate / (epoch * EPOCHS), 3),
  }


def peak_flops(device_kind: str, precision: str) -> float | None:
  """Return the dense peak of a device in flop/s, None for one that is not in `PEAKS`.

  >>> peak_flops("NVIDIA H200", "bfloat16")
  989400000000000.0
  """
  for name, peaks in PEAKS.items():
    if name in device_kind:
      return 1e12 * peaks[precision]
  return None


def show(result: dict) -> None:
  """Print the table and the recipe."""
  about = result["about"]
  print(
    f"{about['device']}, batch {about['batch_size']}; shadows per minute: "
    f"{about['epochs']} epochs of {about['records']:,} records\n"
    f"{'work':24}{'precision':11}{'models':>6}  {'way':14}{'ms per step of all':26}"
    f"{'models x steps/s':>16}{'of peak':>9}{'shadows/min':>13}"
  )
  for row in result["rows"]:
    print(
      f"{row['work']:24}{row['precision']:11}{row['models']:6}  {row['way']:14}", end=""
    )
    if row["ms"] is None:
      print("does not fit into memory")
      continue
    peak = "" if row["peak_fraction"] is None else f"{row['peak_fraction']:.1%}"
    print(
      f"{spread(row['ms']):26}{row['steps_per_second']:16.1f}{peak:>9}"
      f"{row['shadows_per_minute']:13.3g}"
    )
  recipe.show(result["recipe"])

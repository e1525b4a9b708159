"""Time and memory of a DP-SGD step, compared with a plain step and with optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks.timing import rows_of, spread
from mixdef.cli.benchmarks.works import CLASSES, random_data
from mixdef.core.hooks import Data, Rows
from mixdef.training.sampling import make_plan

WORKS = {
  "mlp(512, 256), 784 features": (mixdef.models.mlp(512, 256), (784,)),
  "cnn 28x28": (mixdef.models.cnn(), (28, 28, 1)),
  "transformer(2, 64), 64x16": (mixdef.models.transformer(2, 64), (64, 16)),
}
MICROBATCHES = "microbatches"
_BATCHES = (128, 512)  # batch sizes at which the memory of microbatches is reported


def run(settings: BenchSettings) -> dict:
  """Time one step of each work with each estimator."""
  rows = []
  for work, (model, shape) in WORKS.items():
    cases = {}
    for name, defense in _defenses().items():
      step, arguments = step_of(model, shape, defense, settings.batch_size)
      cases[name] = lambda step=step, arguments=arguments: step(*arguments)
    rows += rows_of(work, cases, settings.repeats)
    chosen = next(
      row for row in rows if (row["work"], row["case"]) == (work, MICROBATCHES)
    )
    chosen["temp_mb"] = {
      str(batch): temporary_megabytes(model, shape, _defenses()[MICROBATCHES], batch)
      for batch in _BATCHES
    }
  return {"rows": rows}


def _defenses():
  def optax_aggregate(key):
    return optax.contrib.differentially_private_aggregate(
      l2_norm_clip=1.0, noise_multiplier=0.0, key=key
    )

  return {
    "plain": mixdef.chain(),
    "ghost clipping": mixdef.dp_sgd(0.0),
    "ghost clipping and noise": mixdef.dp_sgd(1.0),
    MICROBATCHES: mixdef.dp_sgd(0.0, estimator="microbatch"),
    "optax aggregate": mixdef.from_optax("optax", optax_aggregate, per_example=True),
  }


def step_of(model, shape: tuple[int, ...], defense: mixdef.Defense, batch: int):
  """Return the jitted step of one model and its arguments."""
  data = random_data(2 * batch, shape, CLASSES)
  device = Data(*map(jnp.asarray, (data.x, data.y, data.auxiliary)))
  learner = mixdef.classifier(model, optax.sgd(0.1), defense)
  everyone = np.ones((1, len(data)), bool)
  plan = make_plan(learner.traits, data, everyone, epochs=1, batch_size=batch)
  state = learner.init(jax.random.key(0), plan.spec(device, None))
  rows = Rows(jnp.arange(batch), jnp.ones(batch), jnp.zeros(batch))
  ctx = plan.position(jax.random.key(1), jnp.int32(0), jnp.int32(0))
  return jax.jit(learner.step), (state, device, rows, ctx)


def temporary_megabytes(model, shape, defense, batch: int) -> float:
  """Return the compiler's temporary memory of one step, in megabytes."""
  step, arguments = step_of(model, shape, defense, batch)
  analysis: Any = step.lower(*arguments).compile().memory_analysis()
  return round(analysis.temp_size_in_bytes / 1e6, 2)


def show(result: dict) -> None:
  """Print one line per work, with one column per estimator."""
  rows = result["rows"]
  cases = list(dict.fromkeys(row["case"] for row in rows))
  print("ms per step: median (range), ratio to plain")
  print(f"{'work':30}" + "".join(f"{case:32}" for case in cases))
  for work in dict.fromkeys(row["work"] for row in rows):
    own = [row for row in rows if row["work"] == work]
    cells = (f"{spread(row['ms'])}, {row['ratio']:.3g}" for row in own)
    print(f"{work:30}" + "".join(f"{cell:32}" for cell in cells))
  for row in rows:
    if "temp_mb" in row:
      sizes = (f"{mb} MB at batch {batch}" for batch, mb in row["temp_mb"].items())
      print(f"{row['work']}, {row['case']}: temporary memory {', '.join(sizes)}")

"""Eight shadow models on the cores of this machine, compared with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks import peers
from mixdef.cli.benchmarks.cpu_table import OURS, PEAK, row_of, show
from mixdef.cli.benchmarks.timing import interleave
from mixdef.cli.benchmarks.works import (
  CLASSES,
  CNN,
  EPOCHS,
  MLP,
  RECORDS,
  WIDE_RESNET,
  Work,
  random_data,
  step_flops,
  steps_of,
  train_everyone,
)
from mixdef.kernels.onednn.build import register
from mixdef.training.programs import STRATEGIES

__all__ = ["run", "show"]

MODELS = 8

_SIDE = 2048  # of the matrices whose product is the measured peak


def run(settings: BenchSettings) -> dict:
  """Time all works; returns the rows and the facts about the machine and the work."""
  works = (MLP, CNN, WIDE_RESNET)
  return compare(works, batch=settings.batch_size, repeats=settings.repeats)


def compare(works: tuple[Work, ...], *, batch: int, repeats: int) -> dict:
  """Time each of mixdef's strategies and each PyTorch recipe, interleaved.

  Args:
    works: the trainings, timed one after another.
    batch: number of records per step.
    repeats: number of rounds; the slowest strategies and layouts are timed only once or
      twice.

  Returns:
    `rows`, see `row_of`, and `about`: models, batch size, and the epochs and records of
    a shadow.
  """
  rows = []
  for work in works:
    logging.info("timing %s", work.title)
    ours = _strategies(work, batch)
    if not peers.installed():
      rows.append(_timed(work, ours, batch=batch, repeats=repeats))
      continue
    with peers.torch_cases(work, models=MODELS, batch=batch) as theirs:
      rows.append(_timed(work, {**ours, **theirs}, batch=batch, repeats=repeats))
  about = {
    "models": MODELS,
    "batch_size": batch,
    "records": RECORDS,
    "epochs": EPOCHS,
    "note": "" if peers.installed() else peers.MISSING,
  }
  return {"about": about, "rows": rows}


def _strategies(work, batch):
  """Return one epoch of all models per strategy of this backend."""
  data = random_data(work.steps * batch, work.shape, CLASSES)
  on_cpu = jax.default_backend() == "cpu"
  names = [name for name in STRATEGIES if on_cpu or name != "processes"]
  cases = {}
  for note, model in _lowerings(work.model):
    learner = mixdef.classifier(model, optax.adam(1e-3), microbatch=work.microbatch)
    training = train_everyone(learner, data, models=MODELS, batch=batch, epochs=EPOCHS)
    cases |= {(OURS, name + note): steps_of(training, name) for name in names}
  return cases


def _lowerings(model):
  """Return the network, and a variant with oneDNN if that applies and is installed."""
  found = [("", model)]
  if hasattr(model, "lowering"):
    try:
      register()
    except ValueError as reason:
      logging.info("%s", reason)
    else:
      found.append((", oneDNN", model.clone(lowering="onednn")))
  return found


def _timed(work, cases, *, batch, repeats):
  one = jnp.asarray(np.random.default_rng(0).normal(size=(_SIDE, _SIDE)), jnp.float32)
  product = jax.jit(jnp.dot)
  cases = {**cases, (PEAK, "matrix product"): lambda: product(one, one)}
  seconds = interleave(cases, repeats, group=lambda case: case[0])
  return row_of(
    work.title,
    seconds,
    model_steps=MODELS * work.steps,
    batch=batch,
    step_flops=step_flops(work.model, work.shape, batch),
    peak_flops=2 * _SIDE**3,
  )

"""Measurement and choice of the strategy that trains the models of an ensemble."""

import os
import time

import jax
import jax.numpy as jnp
from absl import logging

from mixdef.training.devices import evenly, num_devices
from mixdef.training.programs import STRATEGIES, programs
from mixdef.training.workers import NotExportable, num_workers

_MEASURE_SECONDS = 0.5
_WORTH_WORKERS_SECONDS = 60.0
_GIVE_UP = 3.0  # a strategy this many times slower than the best is not timed again


def memory_budget(memory_gb: float | None) -> float:
  """Return the bytes that an ensemble may use; defaults to 60% of free memory."""
  if memory_gb is not None:
    if memory_gb <= 0:
      raise ValueError(f"memory_gb={memory_gb} must be positive")
    return memory_gb * 1e9
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if all("bytes_limit" in own for own in stats):
    return 0.6 * sum(own["bytes_limit"] - own.get("bytes_in_use", 0) for own in stats)
  free = "SC_AVPHYS_PAGES"  # not available on macOS
  pages = os.sysconf(free if free in os.sysconf_names else "SC_PHYS_PAGES")
  return 0.6 * pages * os.sysconf("SC_PAGE_SIZE")


def program_bytes(training, strategy: str, count: int) -> float:
  """Return the bytes needed by a training step over `count` models.

  The states are held before and after a step, and once more when they are stacked. For
  `vmap`, the memory analysis of the compiled program adds the activations of all
  models. The teachers of a previous stage are trained at once, so they count if they
  need more.
  """
  arguments = training.abstract(count)
  own = jax.tree.leaves(arguments[:3])  # the records are already on the device
  needed = 3.0 * sum(leaf.size * leaf.dtype.itemsize for leaf in own)
  if strategy == "vmap":
    train = programs(training.source, training.plan, strategy).train
    share = -(-count // num_devices())
    analysis = train.lower(*training.abstract(share)).compile().memory_analysis()
    needed += num_devices() * analysis.temp_size_in_bytes
  if training.teachers:
    each = training.teachers.count // training.count
    needed = max(needed, program_bytes(training.teachers, strategy, count * each))
  return needed


def models_at_once(
  training, strategy: str, budget: float, most: int
) -> tuple[int, float]:
  """Find the largest size of equal chunks whose program fits in the budget.

  Args:
    training: the training.
    strategy: execution strategy.
    budget: available memory in bytes.
    most: number of models that this process has to train.

  Returns:
    The number of models per chunk, at least one even if it exceeds the budget, and the
    bytes they need.
  """
  size = most
  while (needed := program_bytes(training, strategy, size)) > budget and size > 1:
    size = min(size - 1, max(1, int(size * budget / needed)))
  chunks = -(-most // size)
  return evenly(-(-most // chunks), strategy), needed


def decide(
  training, strategy: str, memory_gb: float | None, most: int
) -> tuple[str, int]:
  """Choose the strategy, and log it with the memory that it needs.

  Args:
    training: the training.
    strategy: one of `STRATEGIES`, or "auto".
    memory_gb: as in `fit_many`.
    most: number of models that this process has to train.

  Returns:
    The strategy and the number of models that it holds at once.
  """
  budget = memory_budget(memory_gb)
  if strategy == "auto":
    strategy = choose(training, budget, most)
  size, needed = models_at_once(training, strategy, budget, most)
  if training.count > 1:
    logging.info(
      "%d models by %s, %d at once: about %.3g of the available %.3g GB",
      training.count,
      strategy,
      size,
      needed / 1e9,
      budget / 1e9,
    )
  if needed > budget:
    logging.warning("even one model may not fit in the available memory; trying")
  return strategy, size


def choose(training, budget: float, most: int) -> str:
  """Time the strategies on the first models of a training, and return the fastest.

  Worker processes are timed only if cores are available for them and the training is
  long enough to amortize their start.
  """
  if training.count == 1:
    return "loop"
  plan, seconds = training.plan, {}
  for strategy in STRATEGIES:
    best = min(seconds.values(), default=float("inf"))
    if strategy == "processes":
      left = best * most * plan.steps_per_epoch * plan.epochs
      if num_workers() < 2 or left < _WORTH_WORKERS_SECONDS:
        continue
    size, _ = models_at_once(training, strategy, budget, most)
    try:
      seconds[strategy] = _seconds_per_model(training, strategy, size, best)
    except NotExportable as reason:
      logging.info("%s", reason)
  chosen = min(seconds, key=lambda name: seconds[name])
  logging.info(
    "strategy %s: about %.3g models per minute (ms per step and model: %s)",
    chosen,
    60 / (seconds[chosen] * plan.steps_per_epoch * plan.epochs),
    ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items()),
  )
  return chosen


def _seconds_per_model(training, strategy, size, best):
  """Return the seconds per step and model; the epoch's shuffle is spread over steps."""
  program = programs(training.source, training.plan, strategy)
  if strategy != "vmap":
    # The cost per model does not depend on how many models a worker trains in turn.
    places = num_workers() if strategy == "processes" else num_devices()
    size = min(size, 2 * places)
  part = training.select(range(size))
  states = program.init(part.keys, part.zero_table(), part.values, part.data)
  steps = training.plan.steps_per_epoch

  def run(count):
    start = time.perf_counter()
    zero = jnp.int32(0)
    jax.block_until_ready(
      program.train(
        states, part.values, part.rows, part.data, zero, zero, jnp.int32(count)
      )
    )
    return time.perf_counter() - start

  run(1)  # compile
  shuffle = run(0)
  first = max(run(1) - shuffle, 1e-6)
  per_model = (first + shuffle / steps) / size
  if per_model > _GIVE_UP * best:
    return per_model
  count = max(1, min(steps, int(_MEASURE_SECONDS / first)))
  return ((min(run(count), run(count)) - shuffle) / count + shuffle / steps) / size

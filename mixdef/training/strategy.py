"""Choice of how to train: records on the device or streamed, strategy, chunk size."""

import contextlib
import math
import os
import pathlib
import time
from typing import Any

import jax
from absl import logging

from mixdef.core.mapped import MappedRecords
from mixdef.training.devices import evenly, num_devices
from mixdef.training.programs import STRATEGIES, programs
from mixdef.training.streaming import train_steps
from mixdef.training.workers import NotExportable, num_workers

_MEASURE_SECONDS = 0.5
_WORTH_WORKERS_SECONDS = 60.0
_BLOCK = 2.0**26  # bytes of records that are read at once, at most
_BLOCK_SHARE = 1 / 16  # of the memory
_FEATURES = 0.25  # share of the spare memory that features of frozen layers may take
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
  return 0.6 * _free_bytes()


def _free_bytes() -> float:
  """Return the free memory of this machine, which includes cached files."""
  with contextlib.suppress(OSError, StopIteration, ValueError):
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    line = next(line for line in lines if line.startswith("MemAvailable:"))
    return 1024.0 * int(line.split()[1])
  return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))  # macOS


def place(training, options) -> tuple[Any, float]:
  """Put the records on the devices if they fit beside a model; else stream them.

  Args:
    training: the training, as `prepare` returns it.
    options: the options of the training.

  Returns:
    The training with its records, and the bytes that are left for models.

  Raises:
    ValueError: if records must be streamed, and the strategy or a hook of the defense
      needs all of them.
  """
  budget, records = memory_budget(options.memory_gb), training.records
  size = records.nbytes * num_devices()
  if size + program_bytes(training, "loop", 1) <= budget:
    spare = budget - size
    return training.resident(_FEATURES * spare), spare
  training = training.streaming(min(_BLOCK_SHARE * budget, _BLOCK))
  mapped = isinstance(records, MappedRecords)
  logging.info(
    "records of %.3g GB do not fit beside a model in the available %.3g GB: they are "
    "streamed from %s, in blocks of %.3g MB",
    size / 1e9,
    budget / 1e9,
    records.path if mapped else "memory",
    training.block / 1e6,
  )
  if options.strategy == "processes":
    raise ValueError(
      f"strategy=processes needs all records in memory, but {size / 1e9:.3g} GB do not "
      f"fit in {budget / 1e9:.3g} GB: use another strategy, or raise memory_gb"
    )
  _refuse_readers(training, budget)
  return training, budget


def _refuse_readers(training, budget):
  """Raise if a hook reads all records after an epoch or at the end of the training."""
  learner = training.learner
  states, values, rows, whole, number = training.abstract_epoch(1)
  program = programs(training.source, training.plan, "vmap")
  one = jax.ShapeDtypeStruct((1, *whole.x.shape[1:]), whole.x.dtype)
  example = whole._replace(x=one)
  ends: dict[str, Any] = {"at the end": (program.finish, ())}
  if learner.epoch:
    ends["after an epoch"] = program.epoch, (number,)
  for when, (end, numbers) in ends.items():
    try:
      jax.eval_shape(end, states, values, rows, example, *numbers)
    except Exception as error:
      jax.eval_shape(end, states, values, rows, whole, *numbers)  # its own errors
      size = training.records.nbytes * num_devices()
      raise ValueError(
        f"{learner.text} reads all records {when}, but {size / 1e9:.3g} GB do not fit "
        f"in {budget / 1e9:.3g} GB and are streamed: raise memory_gb, or use a defense "
        "that does not read them"
      ) from error
  if training.teachers:
    _refuse_readers(training.teachers, budget)


def program_bytes(training, strategy: str, count: int) -> float:
  """Return the bytes needed by a training step over `count` models.

  The states are held before and after a step, and once more when they are stacked. For
  `vmap`, the memory analysis of the program that runs adds the activations of all
  models. The result is infinite if the program cannot be compiled for lack of memory,
  which happens on a TPU, and on a GPU if trying out kernels takes too much. Of streamed
  records, two blocks are held; all records are counted by `place`. The teachers of a
  previous stage are trained at once, so they count if they need more.
  """
  states, values, rows, *_ = training.abstract_epoch(count)
  needed = 3.0 * _bytes((states, values)) + _bytes(rows) + training.dealt_bytes(count)
  if training.block:
    _, records = training.group(count)
    needed += 2.0 * records * training.records[:1].nbytes * num_devices()
  if strategy == "vmap":
    train = programs(training.source, training.plan, strategy).train
    arguments = training.abstract(count, blocks=training.block > 0)
    try:
      compiled = train.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return math.inf
    needed += num_devices() * compiled.memory_analysis().temp_size_in_bytes
  if training.teachers:
    each = training.teachers.count // training.count
    needed = max(needed, program_bytes(training.teachers, strategy, count * each))
  return needed


def _bytes(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
    share = 0.5 if math.isinf(needed) else budget / needed
    size = min(size - 1, max(1, int(size * share)))
  chunks = -(-most // size)
  return evenly(-(-most // chunks), strategy), needed


def decide(training, strategy: str, budget: float, most: int) -> tuple[str, int]:
  """Choose the strategy, and log it with the memory that it needs.

  Args:
    training: the training, with its records as `place` returns it.
    strategy: one of `STRATEGIES`, or "auto".
    budget: bytes that are left for models.
    most: number of models that this process has to train.

  Returns:
    The strategy and the number of models that it holds at once.
  """
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

  The first strategy is kept if the whole training takes less time with it than timing
  it took, most of which is compilation: then nothing can be saved. Worker processes
  are timed only if cores are available for them and the training is long enough to
  amortize their start.
  """
  if training.count == 1:
    return "loop"
  logging.info("measuring the strategies; strategy=vmap or another one skips this")
  plan, seconds = training.plan, {}
  started = time.monotonic()
  for strategy in STRATEGIES:
    best = min(seconds.values(), default=float("inf"))
    left = best * most * plan.steps_per_epoch * plan.epochs
    if len(seconds) == 1 and left < time.monotonic() - started:
      logging.info(
        "strategy %s: the whole training takes about %.2g s, less than timing another",
        *(next(iter(seconds)), left),
      )
      return next(iter(seconds))
    if strategy == "processes" and (
      training.streamed or num_workers() < 2 or left < _WORTH_WORKERS_SECONDS
    ):
      continue
    size, needed = models_at_once(training, strategy, budget, most)
    if math.isinf(needed):
      continue  # not even one model can be compiled
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
    jax.block_until_ready(train_steps(program, part, states, 0, 0, count))
    return time.perf_counter() - start

  run(1)  # compile
  shuffle = run(0)
  first = max(run(1) - shuffle, 1e-6)
  per_model = (first + shuffle / steps) / size
  if per_model > _GIVE_UP * best:
    return per_model
  count = max(1, min(steps, int(_MEASURE_SECONDS / first)))
  return ((min(run(count), run(count)) - shuffle) / count + shuffle / steps) / size

"""Steps of training whose records are read ahead of them, in blocks of a few steps.

The rows of all steps of an epoch are drawn first, by the law and with the random keys
of records that are on the device, so that both ways train bitwise equal models.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.streamed import Block
from mixdef.training.devices import aligned, on_all_devices
from mixdef.training.prepare import Training
from mixdef.training.programs import Programs

_SHORTER = 8  # times that the first block of an epoch is shorter than the others


def train_steps(program: Programs, training: Training, states, epoch, first, last):
  """Train some steps of an epoch.

  Args:
    program: the programs of the training.
    training: the training.
    states: states of its models.
    epoch: the epoch, from 0.
    first: first step, from 0.
    last: the step to stop before.

  Returns:
    The states, and metrics {name: [S]} summed over the steps.
  """
  values, data, number = training.values, training.data, jnp.int32(epoch)
  drawn = training.rows, data, training.persons
  dealt, sums = program.deal(states, values, *drawn, number)
  if not training.streamed:
    bounds = jnp.int32(first), jnp.int32(last)
    return program.train(states, values, dealt, sums, data, number, *bounds)
  index = np.asarray(dealt[0].index)
  each, capacity = training.group(training.count)
  # The device waits for the first block, so that one is short.
  starts = [first, *range(first + max(1, each // _SHORTER), last, each)]
  groups = [(i, j) for i, j in zip(starts, [*starts[1:], last], strict=True) if i < j]

  def block(start, end):
    return _read(training.records, index[:, start:end], capacity)

  with ThreadPoolExecutor(1) as reader:
    ahead = [reader.submit(block, *group) for group in groups[:1]]
    for place, group in enumerate(groups):
      here = data._replace(x=ahead.pop().result())
      # At most two blocks exist: that of the running steps, and that of the next ones.
      ahead += [reader.submit(block, *after) for after in groups[place + 1 : place + 2]]
      bounds = map(jnp.int32, group)
      states, sums = program.train(states, values, dealt, sums, here, number, *bounds)
      jax.block_until_ready(states)
  return states, sums


def _read(records, index, capacity: int) -> Block:
  """Read the records of some steps, each once, into a block of `capacity` records."""
  found = np.unique(index)
  positions = np.full(capacity, len(records), np.int32)
  positions[: len(found)] = found
  x = aligned((capacity, *records.shape[1:]), records.dtype)
  records.take(found, axis=0, out=x[: len(found)], mode="clip")
  return on_all_devices(Block(x, positions))

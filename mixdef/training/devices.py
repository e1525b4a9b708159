"""The devices of a process, and the coordination of several processes.

Shadow models do not communicate. Each process trains its own models and writes them to
a shared folder; each of its devices runs the same program on its share of them. The
network between hosts is used only at the start and the end, and models finished by a
lost host remain available to the others.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Result = TypeVar("Result")


class Stopped(RuntimeError):
  """Training stopped; finished work is kept, and the same call resumes."""


class PeerLost(Stopped):
  """Another process of the job has ended without a word, for example killed."""


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
  """Connect to the other processes of this job; call it before using any device.

  Args:
    coordinator: "auto" if JAX can detect the other processes (SLURM, Open MPI, GKE,
      Cloud TPU), else `host:port` of process 0.
    num_processes: number of processes of the job, if set manually.
    process_id: index of this process, 0 to num_processes - 1, if set manually.

  Raises:
    ValueError: if the arguments do not identify this process.
  """
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id={process_id} of num_processes={num_processes}: with an explicit "
      "coordinator, pass the index of each process (from 0) and the number of processes"
    )
  host, _, port = coordinator.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(
      f"coordinator={coordinator!r}: pass host:port of process 0, with a port below "
      "65536, or auto"
    )
  # JAX ends the process without a message of its own if they do not come.
  logging.info(
    "waiting up to 5 minutes for all %d processes at %s", num_processes, coordinator
  )
  jax.distributed.initialize(coordinator, num_processes, process_id)


@contextlib.contextmanager
def barrier(what: str) -> Iterator[None]:
  """Run a block on all processes, and wait at its end until all have finished.

  Without this barrier, a failed process leaves the others waiting until JAX terminates
  them.

  Raises:
    Stopped: if this process succeeded but another failed.
    PeerLost: if another process cannot be reached any more.
  """
  if jax.process_count() == 1:
    yield
    return
  from jax.experimental import multihost_utils

  error = None
  try:
    yield
  except Exception as raised:
    error = raised
  try:
    multihost_utils.sync_global_devices(what)
    failed = multihost_utils.process_allgather(np.array(error is not None))
  except (ValueError, RuntimeError) as lost:  # what JAX raises depends on its version
    raise error or PeerLost(
      "another process of the job was lost: see its log, and run the same command on "
      "all hosts again, which resumes"
    ) from lost
  if error is not None:
    raise error
  if failed.any():
    raise Stopped(f"process {int(failed.argmax())} failed; see its error message")


def process0_first(work: Callable[[], Result]) -> Result:
  """Run `work` on process 0 first, then on the others, which can read its files."""
  first = jax.process_index() == 0
  results = []
  with barrier("first"):
    if first:
      results.append(work())
  with barrier("others"):
    if not first:
      results.append(work())
  return results[0]


_AXIS = "shadow"
_ALIGNMENT = 64  # bytes


@functools.cache
def _mesh() -> Mesh:
  devices = np.array(jax.local_devices())
  return Mesh(devices, (_AXIS,), axis_types=(AxisType.Auto,))


def num_devices() -> int:
  """Return the number of devices that this process trains on."""
  return len(jax.local_devices())


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Return an array to fill, which a CPU device can use without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def on_all_devices(tree):
  """Replicate arrays on every device of this process."""
  if num_devices() == 1:
    return jax.device_put(tree)  # `jnp.asarray` would make two copies
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def evenly(count: int, strategy: str) -> int:
  """Round `count` models up to a multiple of the devices that a strategy uses."""
  each = num_devices() if strategy in ("vmap", "scan") else 1
  return -(-count // each) * each


def spread(tree):
  """Shard arrays over the devices of this process along the axis of models."""
  if num_devices() == 1:
    return jax.device_put(tree)
  return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(_AXIS)))


def on_one_device(tree):
  """Put arrays on the first device, for a program over one model."""
  return tree if num_devices() == 1 else jax.device_put(tree, jax.local_devices()[0])


def compiled(function: Callable, *, shared: int) -> Callable:
  """Compile a function over models, and split the models equally over the devices.

  Args:
    function: takes arguments with a leading axis of models, followed by `shared`
      arguments used by all models. Its result for a model must not depend on the other
      models.
    shared: number of shared arguments.

  Returns:
    The compiled function; its `lower` takes arrays or their shapes, and lowers what a
    call with them runs. If the number of models is not a multiple of the number of
    devices, the last model is repeated as padding; see `evenly`.
  """
  if num_devices() == 1:
    return jax.jit(function)
  return _Sharded(function, shared)


class _Sharded:
  def __init__(self, function, shared):
    self._shared = shared

    def split(*args):
      own = (PartitionSpec(_AXIS),) * (len(args) - shared)
      every = (PartitionSpec(),) * shared
      return jax.shard_map(
        function,
        mesh=_mesh(),
        in_specs=own + every,
        out_specs=PartitionSpec(_AXIS),
        check_vma=False,
      )(*args)

    self._split = jax.jit(split)

  def _taken(self, args):
    """Return the models' own arguments, the shared ones, and the models' number."""
    own, rest = args[: -self._shared], args[-self._shared :]
    return own, rest, jax.tree.leaves(own)[0].shape[0]

  def lower(self, *args):
    own, rest, count = self._taken(args)
    count += -count % num_devices()

    def placed(leaf, shape, *axis):
      sharding = NamedSharding(_mesh(), PartitionSpec(*axis))
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return self._split.lower(
      *jax.tree.map(lambda leaf: placed(leaf, (count, *leaf.shape[1:]), _AXIS), own),
      *jax.tree.map(lambda leaf: placed(leaf, leaf.shape), rest),
    )

  def __call__(self, *args):
    own, rest, count = self._taken(args)
    padding = -count % num_devices()
    if padding:
      rows = np.minimum(np.arange(count + padding), count - 1)
      own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], own)
    outputs = self._split(*spread(own), *on_all_devices(rest))
    if padding:
      outputs = jax.tree.map(lambda leaf: leaf[:count], outputs)
    return outputs

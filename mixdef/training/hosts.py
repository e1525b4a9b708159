"""Coordination of several processes: barriers, errors and process 0.

Shadow models do not communicate, so each process trains its own models on its own
devices and writes them to a shared folder. The network is used only at the start and
the end, and models finished by a lost host remain available to the other hosts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

Result = TypeVar("Result")
_WEEK = 7 * 24 * 3600


class Stopped(RuntimeError):
  """Training stopped; finished work is kept, and the same call resumes."""


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
  """Connect to the other processes of this job; call it before using any device.

  Args:
    coordinator: "auto" if JAX can detect the other processes (SLURM, Open MPI, GKE,
      Cloud TPU), else `host:port` of process 0.
    num_processes: number of processes of the job, if set manually.
    process_id: index of this process, 0 to num_processes - 1, if set manually.

  Raises:
    ValueError: if they do not say which process this is.
  """
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id={process_id} of num_processes={num_processes}: with a coordinator "
      f"of your own give each process its number, from 0, and how many there are"
    )
  jax.distributed.initialize(coordinator, num_processes, process_id)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
  """Run a block on all processes, and wait at its end until all have finished.

  Without this barrier, a failed process leaves the others waiting until JAX terminates
  them.

  Raises:
    Stopped: where this process did well and another failed.
  """
  if jax.process_count() == 1:
    yield
    return
  from jax.experimental import multihost_utils
  from orbax.checkpoint import multihost

  error = None
  try:
    yield
  except Exception as raised:
    error = raised
  multihost.sync_global_processes(what, timeout=_WEEK)
  failed = multihost_utils.process_allgather(np.array(error is not None))
  if error is not None:
    raise error
  if failed.any():
    raise Stopped(f"process {int(failed.argmax())} failed; its message says why")


def first_then_all(work: Callable[[], Result]) -> Result:
  """Run `work` on process 0 first, then on the others, which can read its files."""
  first = jax.process_index() == 0
  results = []
  with together("first"):
    if first:
      results.append(work())
  with together("others"):
    if not first:
      results.append(work())
  return results[0]

"""Several processes of one job: who goes first, who does what, and who waits.

Shadows never talk to each other, so each process trains its own on its own devices and
writes them to a folder that all share. Nothing crosses the network but the start and
the end, and what a lost host had finished is there for those who go on.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

Result = TypeVar("Result")
_WEEK = 7 * 24 * 3600


class Stopped(RuntimeError):
  """The work cannot go on here; what is done is kept, and the same call resumes."""


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
  """Join the other processes of this job, before anything touches a device.

  Args:
    coordinator: "auto" where JAX finds the others by itself (SLURM, Open MPI, GKE,
      Cloud TPU), else `host:port` of process 0.
    num_processes: of the job, if given by hand.
    process_id: this one's number, 0 to num_processes - 1, if given by hand.

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
  """Do a part of the work that all processes go through, and wait for all at its end.

  Without this, one that fails leaves the others waiting until JAX ends them all.

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
  """Do work on process 0, then on the others, which find what it wrote."""
  first = jax.process_index() == 0
  results = []
  with together("first"):
    if first:
      results.append(work())
  with together("others"):
    if not first:
      results.append(work())
  return results[0]

"""Several processes of one job: who goes first, who does what, and who waits.

Shadows never talk to each other, so each process trains its own on its own devices and
writes them to a folder that all share. Nothing crosses the network but the start and
the end, and what a lost host had finished is there for those who go on.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

Result = TypeVar("Result")
_WEEK = 7 * 24 * 3600


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


def first_then_all(work: Callable[[], Result]) -> Result:
  """Do work on process 0, then on the others, which find what it wrote.

  Raises:
    RuntimeError: on the others, if it failed on process 0.
  """
  if jax.process_count() == 1:
    return work()
  from jax.experimental import multihost_utils

  result, error = None, None
  if jax.process_index() == 0:
    try:
      result = work()
    except Exception as raised:
      error = raised
  wait_for_all("process 0")  # a broadcast alone gives up after half a minute
  failed = multihost_utils.broadcast_one_to_all(error is not None)
  if error is not None:
    raise error
  if failed:
    raise RuntimeError("process 0 stopped; its message says why")
  return work() if jax.process_index() else result


def wait_for_all(what: str) -> None:
  """Wait until every process has come to this point, for a week at most."""
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    multihost.sync_global_processes(what, timeout=_WEEK)

"""PyTorch doing the same work, in processes that wait between their turns."""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from mixdef.cli.benchmarks.works import Work

RECIPES = ("default", "tuned", "bf16")
MISSING = (
  "PyTorch is not installed, so ours alone is timed: pip install 'mixdef[bench]'"
)

_EXPERIMENTS = pathlib.Path(__file__).parents[1]


def installed() -> bool:
  """Whether there is a PyTorch to compare with."""
  return importlib.util.find_spec("torch") is not None


@contextlib.contextmanager
def torch_cases(
  work: Work, *, models: int, batch: int
) -> Iterator[dict[tuple[str, str], Callable[[], None]]]:
  """Start PyTorch's processes for one work and stop them at the end.

  Each recipe comes with the models shared by a process per core, and, where there are
  several cores, in one process that uses all of them.

  Args:
    work: what is trained.
    models: how many, all together.
    batch: records a step.

  Yields:
    {(recipe, layout): a function that trains all models for an epoch}.
  """
  cores = _cores()
  single = [[core] for core in cores[:models]]
  layouts = {f"{len(single)} processes": single}
  if len(cores) > 1:
    layouts[f"{len(cores)} threads"] = [cores]
  with contextlib.ExitStack() as stack:
    workers = {
      name: [
        stack.enter_context(
          _worker(work, own, models=len(range(first, models, len(groups))), batch=batch)
        )
        for first, own in enumerate(groups)
      ]
      for name, groups in layouts.items()
    }
    yield {
      (recipe, layout): functools.partial(_epoch, workers[layout], recipe)
      for recipe in RECIPES
      for layout in layouts
    }


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Return the shape that PyTorch gives a record of this one.

  >>> channels_first((32, 32, 3)), channels_first((784,))
  ((3, 32, 32), (784,))
  """
  return shape[-1], *shape[:-1]


def _cores():
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def _worker(work, cores, *, models, batch):
  asked = {"work": work.name, "shape": channels_first(work.shape), "steps": work.steps}
  asked |= {"cores": cores, "models": models, "batch": batch}
  with subprocess.Popen(
    [sys.executable, "-m", "mixdef.cli.benchmarks.torch_worker", json.dumps(asked)],
    cwd=_EXPERIMENTS,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    yield process  # leaving closes its input, which ends it


def _epoch(workers, recipe):
  """Let all workers start together; return when the last is done."""
  for worker in workers:
    with contextlib.suppress(BrokenPipeError):  # told below
      worker.stdin.write(recipe + "\n")
      worker.stdin.flush()
  for worker in workers:
    if worker.stdout.readline() != "done\n":
      raise RuntimeError(
        f"a PyTorch process ended with status {worker.wait()} in recipe {recipe}: its "
        "own message is above"
      )

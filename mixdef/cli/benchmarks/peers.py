"""PyTorch on the same work, in processes that wait for their turn."""

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
  "PyTorch is not installed, so only mixdef is timed: pip install 'mixdef[bench]'"
)

_EXPERIMENTS = pathlib.Path(__file__).parents[1]


def installed() -> bool:
  """Return whether PyTorch is installed."""
  return importlib.util.find_spec("torch") is not None


@contextlib.contextmanager
def torch_cases(
  work: Work, *, models: int, batch: int
) -> Iterator[dict[tuple[str, str], Callable[[], None]]]:
  """Start the PyTorch processes of one work, and stop them at the end.

  Each recipe runs with one process per core, which share the models, and, if there are
  several cores, in one process that uses all of them.

  Args:
    work: the training.
    models: total number of models.
    batch: number of records per step.

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
  """Return a record's shape in PyTorch's layout.

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
  task = {"work": work.name, "shape": channels_first(work.shape), "steps": work.steps}
  task |= {"cores": cores, "models": models, "batch": batch}
  with subprocess.Popen(
    [sys.executable, "-m", "mixdef.cli.benchmarks.torch_worker", json.dumps(task)],
    cwd=_EXPERIMENTS,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    yield process  # exiting the context closes its input, which stops it


def _epoch(workers, recipe):
  """Start all workers at once; return when the last one is done."""
  for worker in workers:
    with contextlib.suppress(BrokenPipeError):  # reported below
      worker.stdin.write(recipe + "\n")
      worker.stdin.flush()
  for worker in workers:
    if worker.stdout.readline() != "done\n":
      raise RuntimeError(
        f"a PyTorch process ended with status {worker.wait()} in recipe {recipe}: its "
        "error message is above"
      )

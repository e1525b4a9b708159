"""Records in a file, and trainings that must stream them."""

import dataclasses

import numpy as np

from mixdef.data import Dataset
from mixdef.training import agreement


def mapped(data, folder, name="x"):
  """Return the same data set, whose records stay in a file."""
  path = folder / f"{name}.npy"
  np.save(path, data.x)
  x = Dataset.from_arrays(np.load(path, mmap_mode="r"), data.y).x
  return dataclasses.replace(data, x=x)


def stream(monkeypatch, steps, models=1):
  """Stream records in blocks of so many steps of so many models."""

  def place(training, options):
    plan = training.plan
    rows = models * (plan.num_shards * plan.capacity + plan.auxiliary_rows)
    return training.streaming(steps * rows * training.records[:1].nbytes), 1e15

  monkeypatch.setattr(agreement, "place", place)


def metrics(ensemble):
  """Return the rows of the history without the seconds."""
  return [{k: v for k, v in row.items() if k != "seconds"} for row in ensemble.history]

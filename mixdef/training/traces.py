"""The losses of every record during a training, and where they are kept."""

from typing import Any, NamedTuple

import numpy as np

from mixdef.core import files
from mixdef.core.check import check_count
from mixdef.core.hooks import Data
from mixdef.core.learner import Learner
from mixdef.training.sampling import Plan
from mixdef.training.store import Store

_FOLDER = "traces"
_NOTICE = f"{_FOLDER}/README.txt"
_PRIVATE = (
  "Losses of every record during the training. They reveal which records the model was "
  "trained on,\nand how exposed each one is. Keep them private, as the records are; do "
  "not publish them with the model.\n"
)
_SHARE = 0.05  # of the training's time
_FORWARD = 0.7  # of an epoch's time, for as many records as there are members
_LEAST = 4  # points of a trace, which an interquartile range needs


class Trace(NamedTuple):
  """Losses of N records at L points of a training.

  Attributes:
    losses: float32 [L, N], cross-entropies in nats against the true labels, of the
      records themselves, in evaluation mode and without output hooks.
    epochs: int [L], the epochs completed; 0 is the initialization.
  """

  losses: np.ndarray
  epochs: np.ndarray


class TraceLog:
  """Keeps the losses of one model, in the run folder if there is one.

  Args:
    epochs: epochs of the training.
    every: epochs between two points; the initialization and the end are always kept.
    store: the run folder, or None.
  """

  def __init__(self, epochs: int, every: int, store: Store | None):
    points = {*range(0, epochs, every), epochs}
    self.epochs = sorted(points)
    self.store = store
    self._held: dict[int, np.ndarray] = {}

  def keep(self, epoch: int, log_probs: np.ndarray, data: Data, **notes: Any) -> None:
    """Keep the losses after `epoch` epochs.

    Args:
      epoch: one of `epochs`.
      log_probs: [N, K].
      data: the records.
      **notes: what the model is made of.
    """
    rows = np.arange(len(log_probs))
    losses = np.maximum(-log_probs[rows, np.asarray(data.y)], 0).astype(np.float32)
    if self.store is None:
      self._held[epoch] = losses
      return
    files.write_text(self.store.folder / _NOTICE, _PRIVATE)
    self.store.save(_name(epoch), {"losses": losses}, **notes)

  def missing(self, done: int, notes: dict[str, Any]) -> bool:
    """Return whether a point up to epoch `done` was not kept, or of another model."""
    due = [epoch for epoch in self.epochs if epoch <= done]
    return any(self._read(epoch, notes) is None for epoch in due)

  def read(self, notes: dict[str, Any]) -> Trace:
    """Return the trace of a finished training.

    Raises:
      ValueError: if the run folder holds a model that was trained without it.
    """
    found = [self._read(epoch, notes) for epoch in self.epochs]
    losses = [one for one in found if one is not None]
    if len(losses) < len(found):
      raise ValueError(
        f"{self.store and self.store.folder} holds a model that was trained without "
        "this trace of losses: pass another folder as out, or the same `every`"
      )
    return Trace(np.stack(losses), np.array(self.epochs))

  def _read(self, epoch, notes):
    if self.store is None:
      return self._held.get(epoch)
    if not self.store.has(_name(epoch)):
      return None
    earlier = self.store.notes(_name(epoch)) or {}
    if any(earlier.get(name) != value for name, value in notes.items()):
      return None
    return (self.store.load_arrays(_name(epoch)) or {}).get("losses")


def check_trace(trace: Any, every: Any, learner: Learner) -> None:
  """Raise unless the arguments `trace` and `every` of `fit` make sense.

  Raises:
    ValueError: the message names the argument.
  """
  if trace is None:
    if every is not None:
      raise ValueError(f"every={every!r} is the step of a trace: pass trace='loss'")
    return
  if trace != "loss":
    raise ValueError(f"trace is {trace!r}; pass 'loss', or None")
  if learner.kind != "classifiers":
    raise ValueError("trace='loss' needs a classifier: leave it out for a GAN")
  if every is not None:
    check_count("fit: every", every)


def default_every(plan: Plan) -> int:
  """Return the epochs between two points that cost about 5% of the training's time.

  On a CPU, a forward pass over as many records as members took 0.4 (CNN) to 0.7 (MLP)
  of an epoch's time. A trace has at least four points, which cost more in a training of
  fewer than 60 epochs, or with many records that are not members.
  """
  each = _FORWARD * plan.num_records / plan.num_members
  points = max(_LEAST, int(_SHARE * plan.epochs / each))
  return max(1, -(-plan.epochs // (points - 1)))


def _name(epoch):
  return f"{_FOLDER}/epoch-{epoch:05d}"

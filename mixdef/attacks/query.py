"""Ask an ensemble about every record: aligned views in, `Signals` out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mixdef.attacks._per_record import statistics
from mixdef.attacks.signals import Signals
from mixdef.attacks.views import identity
from mixdef.core import validate
from mixdef.data import Dataset
from mixdef.training import Ensemble
from mixdef.training.progress import Progress

_RECORDS = 256  # asked about at once; outputs [S,B,Q,K] of a block are what is held


def signals(
  ensemble: Ensemble,
  *,
  queries: Callable[[np.ndarray], np.ndarray] = identity,
  population: Dataset | None = None,
  log_probs: bool = True,
  progress: bool = False,
) -> Signals:
  """Query the released models about every record.

  Streams over records: outputs of one block are held, then only three numbers per
  model, record and view, and the log-probabilities of view 0.

  Args:
    ensemble: S trained models.
    queries: x [B,...] -> [B,Q,...], the Q views of each record; the same for every
      model, view 0 the record itself.
    population: records that no model trained on and that are not among the ensemble's,
      for attacks that calibrate on them; `ensemble.data.test`, for one.
    log_probs: keep the log-probabilities [S,N,K] of view 0, which entropies and trained
      attack models read; never the population's.
    progress: show a progress bar (on a terminal) or lines.

  Returns:
    `Signals` over S models, the N records of the ensemble's data and Q views; only the
    data's audited records are marked as such.

  Raises:
    ValueError: if a model answers NaN, the views have another shape, or the population
      holds records of another shape or type. Copies are `data.duplicate_records`'s
      business.
  """
  data, others = ensemble.data, None
  records = len(data)
  if population is not None:
    validate.same_records(data.x, population.x)
    records += len(population)
  shown = Progress(len(ensemble) * records, unit="record", shown=progress)
  if population is not None:
    nobody = np.zeros((len(ensemble), len(population)), bool)
    # No attack reads a population's log-probabilities.
    parts = _ask(ensemble, population, queries, False, shown)
    others = Signals(**parts, keep=nobody, labels=population.y)
  parts = _ask(ensemble, data, queries, log_probs, shown)
  shown.close()
  return Signals(
    **parts,
    keep=ensemble.keep,
    labels=data.y,
    audited=data.audited,
    ids=data.ids,
    population=others,
  )


def _ask(ensemble, data, queries, log_probs, progress) -> dict[str, Any]:
  """Statistics [S,N,Q] and, if wanted, log-probabilities [S,N,K] of one data set."""
  stacks = {}

  def put(name, models, rows, block):
    if name not in stacks:
      shape = (len(ensemble), len(data), *block.shape[2:])
      stacks[name] = np.empty(shape, block.dtype)
    stacks[name][models, rows] = block

  for models, predict in ensemble.chunks():
    for first in range(0, len(data), _RECORDS):
      rows = slice(first, first + _RECORDS)
      views = _views(queries, data.x[rows])
      outputs = predict(views.reshape(-1, *views.shape[2:]))
      _refuse_nan(outputs, models.start)
      outputs = outputs.reshape(len(outputs), *views.shape[:2], -1)
      if log_probs:
        put("log_probs", models, rows, outputs[:, :, 0])
      for s, answers in enumerate(outputs, models.start):
        for name, block in statistics(answers, data.y[rows, None]).items():
          put(name, slice(s, s + 1), rows, block[None])
      progress.advance(len(outputs) * len(views))
  return stacks


def _views(queries, x):
  """The views [B,Q,...] of records x [B,...], refused if they have another shape."""
  views = queries(x)
  if views.shape[0] != len(x) or views.shape[2:] != x.shape[1:]:
    raise ValueError(
      f"queries made {views.shape} of records {x.shape}: return [B,Q,...] with the "
      f"records' own shape"
    )
  return views


def _refuse_nan(outputs, first):
  broken = first + np.flatnonzero(np.isnan(outputs).any((1, 2)))
  if broken.size:
    raise ValueError(
      f"models {broken.tolist()} answer NaN: they diverged; train them with a lower "
      f"learning rate, or leave them out"
    )

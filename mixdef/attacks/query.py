"""Query an ensemble on every record and condense the outputs to `Signals`."""

import functools
from typing import Any

import numpy as np

from mixdef.attacks._kept import kept
from mixdef.attacks._per_record import statistics
from mixdef.attacks.signals import Signals
from mixdef.attacks.views import Views, identity
from mixdef.core import registry, validate
from mixdef.data import Dataset
from mixdef.training import Ensemble
from mixdef.training.progress import Progress

STACKS = ("phi", "hinge", "correct", "log_probs")
_RECORDS = 256  # records per block; outputs [S,B,Q,K] of one block are held


@functools.partial(registry.SIGNALS.register, name="classifiers")
@kept(Signals, STACKS)
def classifier_signals(
  ensemble: Ensemble,
  *,
  population: Dataset | None = None,
  views: Views | None = None,
  log_probs: bool = True,
  progress: bool = False,
) -> Signals:
  """Query released classifiers on every record; called by `Ensemble.signals`.

  Records are streamed: only the outputs of one block are held in full. Of all others,
  three numbers per model, record and view are kept, and the log-probabilities of view
  0.

  Args:
    ensemble: S trained models.
    population: records that no model trained on and that are not among the ensemble's,
      such as `ensemble.data.test`, for attacks that calibrate on them.
    views: x [B,...] -> [B,Q,...], the Q views of each record; the same for every model,
      with the record itself as view 0, its only one by default.
    log_probs: whether to keep the log-probabilities [S,N,K] of view 0, which entropies
      and trained attack models read; the population's are never kept.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    `Signals` of S models, the N records of the ensemble's data and Q views. Only the
    audited records of the data are marked as audited.

  Raises:
    ValueError: if a model outputs NaN, the views have another shape, or the population
      has records of another shape or type. Duplicates are not checked; use
      `data.duplicate_records`.
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
    parts = _query(ensemble, population, views, False, shown)
    others = Signals(
      **parts, members=nobody, labels=population.y, groups=population.groups
    )
  parts = _query(ensemble, data, views, log_probs, shown)
  shown.close()
  return Signals(
    **parts,
    members=ensemble.members,
    labels=data.y,
    audited=data.audited,
    ids=data.ids,
    groups=data.groups,
    population=others,
  )


def _query(ensemble, data, views, log_probs, progress) -> dict[str, Any]:
  """Return statistics [S,N,Q] and, if wanted, log-probabilities [S,N,K]."""
  stacks = {}

  def put(name, models, rows, block):
    if name not in stacks:
      shape = (len(ensemble), len(data), *block.shape[2:])
      stacks[name] = np.empty(shape, block.dtype)
    stacks[name][models, rows] = block

  for models, predict in ensemble.chunks():
    for first in range(0, len(data), _RECORDS):
      rows = slice(first, first + _RECORDS)
      x = _views_of(data.x[rows], views or identity)
      outputs = predict(x.reshape(-1, *x.shape[2:]))
      _refuse_nan(outputs, models.start)
      outputs = outputs.reshape(len(outputs), *x.shape[:2], -1)
      if log_probs:
        put("log_probs", models, rows, outputs[:, :, 0])
      for s, answers in enumerate(outputs, models.start):
        for name, block in statistics(answers, data.y[rows, None]).items():
          put(name, slice(s, s + 1), rows, block[None])
      progress.advance(len(outputs) * len(x))
  return stacks


def _views_of(x, views):
  """Return the views [B,Q,...] of records x [B,...]; reject any other shape."""
  made = views(x)
  if made.shape[0] != len(x) or made.shape[2:] != x.shape[1:]:
    raise ValueError(
      f"views made {made.shape} of records {x.shape}: return [B,Q,...] with the shape "
      "of the records"
    )
  return made


def _refuse_nan(outputs, first):
  broken = first + np.flatnonzero(np.isnan(outputs).any((1, 2)))
  if broken.size:
    raise ValueError(
      f"models {broken.tolist()} output NaN because they diverged; train them with a "
      "lower learning rate, or exclude them"
    )

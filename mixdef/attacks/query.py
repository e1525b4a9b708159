"""Ask an ensemble about every record: aligned views in, `Signals` out."""

from collections.abc import Callable

import numpy as np

from mixdef.attacks.per_record import statistics
from mixdef.attacks.signals import Signals
from mixdef.training import Ensemble

_RECORDS = 256  # asked about at once; outputs [S,B,Q,K] of a block are what is held


def identity(x: np.ndarray) -> np.ndarray:
  """Ask about the records as they are: x [B,...] -> [B,1,...]."""
  return x[:, None]


def mirror(x: np.ndarray) -> np.ndarray:
  """Ask about images and their mirror images: x [B,H,W,C] -> [B,2,H,W,C].

  Raises:
    ValueError: if x holds no images.

  >>> mirror(np.arange(2.0).reshape(1, 1, 2, 1)).ravel().tolist()
  [0.0, 1.0, 1.0, 0.0]
  """
  if x.ndim != 4:
    raise ValueError(f"records of shape {x.shape[1:]} are no images [H,W,C]: no mirror")
  return np.stack([x, x[:, :, ::-1]], 1)


def signals(
  ensemble: Ensemble, *, queries: Callable[[np.ndarray], np.ndarray] = identity
) -> Signals:
  """Query the released models about every record.

  Streams over records: outputs of one block are held, then only four float64 numbers
  per model, record and view.

  Args:
    ensemble: S trained models.
    queries: x [B,...] -> [B,Q,...], the Q views of each record; the same for every
      model, view 0 the record itself.

  Returns:
    `Signals` over S models, the N records of the ensemble's data and Q views; the
    defender's reference rows are not audited.

  Raises:
    ValueError: if a model answers NaN, or the views have another shape.
  """
  data, stacks = ensemble.data, {}
  for models, predict in ensemble.chunks():
    for first in range(0, len(data), _RECORDS):
      rows = slice(first, first + _RECORDS)
      views = _views(queries, data.x[rows])
      outputs = predict(views.reshape(-1, *views.shape[2:]))
      _refuse_nan(outputs, models.start)
      outputs = outputs.reshape(len(outputs), *views.shape[:2], -1)
      for s, log_probs in enumerate(outputs, models.start):
        for name, block in statistics(log_probs, data.y[rows, None]).items():
          if name not in stacks:
            stacks[name] = np.empty((len(ensemble), len(data), views.shape[1]))
          stacks[name][s, rows] = block
  return Signals(**stacks, keep=ensemble.keep, labels=data.y, audited=data.audited)


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

"""Helpers for attacks that perturb inputs: batching and valid input ranges."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._targets import Unavailable
from mixdef.core import validate
from mixdef.data import Dataset, to_float
from mixdef.training.progress import Progress

_BLOCK = 128  # records per block; one size means one program and equal outputs
_READ = 2**13  # records that are read at once to find extremes


def refuse_nan(values: np.ndarray) -> None:
  """Raise a ValueError if the target's outputs hold NaN."""
  if np.isnan(values).any():
    raise ValueError(
      "the target outputs NaN because it diverged; train it with a lower learning "
      "rate, or exclude it"
    )


def score_in_blocks(
  data: Dataset,
  rows: np.ndarray,
  function: Callable[[np.ndarray, np.ndarray], ArrayLike],
  *,
  progress: bool,
) -> np.ndarray:
  """Score selected records in padded blocks of one size.

  Args:
    data: the records.
    rows: int [R], the records to score.
    function: (x [B,...] as the network reads it, y [B]) -> scores [B]; each score
      depends only on its own record.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    Scores float64 [N]; NaN where not selected.

  Raises:
    ValueError: if a score is NaN.
  """
  scores = np.full(len(data), np.nan)
  shown = Progress(len(rows), unit="record", shown=progress)
  for start in range(0, len(rows), _BLOCK):
    block = rows[start : start + _BLOCK]
    padded = np.resize(block, _BLOCK)
    answers = function(to_float(data.x[padded]), data.y[padded])
    scores[block] = np.asarray(answers, np.float64)[: len(block)]
    refuse_nan(scores[block])
    shown.advance(len(block))
  shown.close()
  return scores


def valid_range(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """Return the lowest and highest value that an entry of a record may take.

  Args:
    data: images are uint8, or [H,W,C] floats in [0,1]; everything else is a table.

  Returns:
    float32 low and high that broadcast against records [B,...]: 0 and 1 for images, as
    the network reads them; otherwise the extremes [1,...] of each feature over the
    audited records.

  Raises:
    Unavailable: for categorical integers, such as token ids.

  >>> table = Dataset.from_arrays([[0., 5.], [-2., 9.]], [0, 1])
  >>> [bound.tolist() for bound in valid_range(table)]
  [[[-2.0, 5.0]], [[0.0, 9.0]]]
  """
  validate.quantities(data.x, "the attack", error=Unavailable)
  unit = np.zeros((), np.float32), np.ones((), np.float32)
  if data.x.dtype == np.uint8:
    return unit
  rows = np.flatnonzero(data.audited)
  blocks = [rows[first : first + _READ] for first in range(0, len(rows), _READ)]
  ends = [(x.min(0), x.max(0)) for x in (data.x[block] for block in blocks)]
  low = np.min([low for low, _ in ends], 0, keepdims=True)
  high = np.max([high for _, high in ends], 0, keepdims=True)
  if data.x.ndim == 4 and low.min() >= 0 and high.max() <= 1:
    return unit
  return low, high

"""Moments of each record's outputs over its references, on either side.

An attack on each of S models in turn would read S - 1 references every time. Where the
references are the same for all records, models are summed in groups of about sqrt(S)
that all targets share, and only the target's own group is summed anew. Its output and
membership are never added and taken out again, because the rounding would tell them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdef.attacks.signals import Signals

_BLOCK = 2**17  # elements per block: 1 MiB of float64, which stays in cache
_FEWEST = 64  # models from which groups save time, and less memory than their values


class Moments(NamedTuple):
  """Outputs of the references on one side, per record.

  Attributes:
    count: int [N, 1].
    mean: [N, Q], 0 where count is 0.
    squares: [N, Q], sum of squares about the mean.
  """

  count: np.ndarray
  mean: np.ndarray
  squares: np.ndarray


def moments(values: np.ndarray, chosen: np.ndarray) -> Moments:
  """Return count, mean and sum of squares of the chosen models, per record.

  Args:
    values: [S, N, Q].
    chosen: bool [S, N].

  >>> side = moments(np.array([[[2.]], [[4.]], [[9.]]]), np.array([[1], [1], [0]]) > 0)
  >>> side.count.item(), side.mean.item(), side.squares.item()
  (2, 3.0, 2.0)
  """
  models, records, queries = values.shape
  mean = np.empty((records, queries))
  squares = np.empty((records, queries))
  # Use blocks of near-equal size: numpy sums a single last record in another order, so
  # equal records would not get equal scores.
  blocks = -(-records * models * queries // _BLOCK)
  edges = np.linspace(0, records, min(blocks, records) + 1).astype(int)
  for rows in map(slice, edges[:-1], edges[1:]):
    x, use = values[:, rows], chosen[:, rows, None]
    count = use.sum(0)
    centre = mean[rows] = (x * use).sum(0) / np.maximum(count, 1)
    around = (np.square(x - centre) * use).sum(0)
    squares[rows] = _varied(around, count, centre)
  return Moments(chosen.sum(0)[:, None], mean, squares)


def merged(parts: Sequence[Moments]) -> Moments:
  """Return the moments of all values behind several moments.

      n = sum_g n_g,   m = sum_g n_g m_g/n,   SS = sum_g SS_g + n_g (m_g - m)^2

  Reference: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
  """
  count = np.sum([part.count for part in parts], axis=0)
  mean, squares = np.zeros((2, *parts[0].mean.shape))
  for part in parts:
    mean += part.count * part.mean
  mean /= np.maximum(count, 1)
  for part in parts:
    squares += part.squares + part.count * np.square(part.mean - mean)
  return Moments(count, mean, _varied(squares, count, mean))


def of_references(
  signals: Signals, target: int, *, member: bool, score: str, averaged: bool = False
) -> Moments:
  """Return the moments over the references that did, or did not, train on a record.

  Args:
    signals: of S models.
    target: index of the attacked model, excluded regardless of its membership.
    member: which side.
    score: "phi", "hinge" or "loss".
    averaged: whether to take the mean over views of each model, as one query.

  Raises:
    Unavailable: if no model can be a reference.
  """
  values = signals.statistic(score)
  if averaged and values.shape[2] > 1:
    values = signals.once(f"mean {score}", lambda: values.mean(2, keepdims=True))
  side = signals.members == member
  return grouped(
    signals,
    target,
    f"moments {score} {member} {averaged}",
    lambda models, usable: moments(values[models], usable & side[models]),
    merged,
  )


def grouped(
  signals: Signals,
  target: int,
  name: str,
  part: Callable[[slice, np.ndarray], Any],
  merge: Callable[[Sequence[Any]], Any],
) -> Any:
  """Return a sum over the references of a target, made of groups of models.

  Args:
    signals: of S models.
    target: index of the attacked model.
    name: of the sum, which identifies it among all that these signals keep.
    part: `(models, usable) -> sum` over some models, of which bool `usable`, [S', N] or
      [S', 1], says which may be read.
    merge: sums to the sum of all.

  Raises:
    Unavailable: if no model can be a reference.
  """
  models, excluded = len(signals.members), signals.excluded_models(target)
  if excluded is None or models < _FEWEST:
    return part(slice(None), signals.references(target))
  size = math.isqrt(models)
  usable = np.ones((models, 1), bool)

  def of_group(first: int) -> Any:
    rows = slice(first, first + size)
    return part(rows, usable[rows])

  starts = range(0, models, size)
  shared = signals.once(name, lambda: [of_group(first) for first in starts])
  usable[excluded] = False
  own = {model // size for model in excluded}
  return merge(
    [of_group(first) if i in own else shared[i] for i, first in enumerate(starts)]
  )


def _varied(squares: np.ndarray, count: np.ndarray, mean: np.ndarray) -> np.ndarray:
  """Return sums of squares, 0 where equal values left a mere rounding residue."""
  residue = count * np.square(count * np.finfo(np.float64).eps * mean)
  return np.where(squares > residue, squares, 0.0)

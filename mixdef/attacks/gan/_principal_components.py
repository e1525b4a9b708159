"""Project records to their principal components, to reduce dimension and noise."""

from typing import NamedTuple

import numpy as np

from mixdef.attacks.gan._distances import flat
from mixdef.data import Dataset, to_float


class Projection(NamedTuple):
  """A linear map of records to their C principal components, in float64.

  `mean` [D], `axes` [D,C] orthonormal, `spread` [C] the standard deviations along the
  axes, in descending order.
  """

  mean: np.ndarray
  axes: np.ndarray
  spread: np.ndarray

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Return the components [B,C] of records [B,...]."""
    return (flat(to_float(x)).astype(np.float64) - self.mean) @ self.axes


def principal_components(x: np.ndarray, components: int) -> Projection:
  """Fit the principal components of records.

  Args:
    x: [R,...], R >= 2.
    components: C >= 1; fewer are returned where the records vary in fewer directions.

  Raises:
    ValueError: for no components, or if all records are equal.

  >>> line = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
  >>> principal_components(line, 2).spread
  array([5.])
  """
  from scipy.linalg import eigh

  if components < 1:
    raise ValueError(f"components={components} keeps no component; pass at least 1")
  rows = flat(to_float(x)).astype(np.float64)
  mean = rows.mean(0)
  rows -= mean
  wide = rows.shape[1] > len(rows)
  product = rows @ rows.T if wide else rows.T @ rows
  last = len(product) - 1
  first = max(0, last + 1 - components)
  values, vectors = eigh(product, subset_by_index=(first, last))
  values, vectors = np.flip(values), np.flip(vectors, 1)
  known = values > 1e-9 * values[0]
  if not known.any():
    raise ValueError(
      f"all {len(rows)} records are equal, so they have no principal components"
    )
  values, vectors = values[known], vectors[:, known]
  axes = rows.T @ vectors / np.sqrt(values) if wide else vectors
  return Projection(mean, axes, np.sqrt(values / (len(rows) - 1)))


def known_to_anyone(data: Dataset) -> np.ndarray:
  """Return records to fit on that reveal nothing about membership.

  These are the held-out records or, if there are none, all audited records, members or
  not.
  """
  return data.x[data.audited] if data.test is None else data.test.x

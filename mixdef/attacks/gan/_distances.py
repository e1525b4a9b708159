"""Distances between many records and many samples, computed in tiles."""

from collections.abc import Iterator

import numpy as np

_TILE = 1024  # records by samples: 8 MB per tile, regardless of their numbers


def tiles(
  x: np.ndarray, points: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
  """Yield the squared L2 distances of x [R,D] to points [M,D], tile by tile.

  Distances are computed in float64, because ||x||^2 + ||p||^2 - 2 x.p loses half its
  digits where x is almost p, as for memorized records.

  Yields:
    The tile's rows of x, its rows of points, and float64 [r,m], at least 0.
  """
  for columns in _slices(len(points)):
    some = points[columns].astype(np.float64)
    lengths, doubled = np.einsum("md,md->m", some, some), -2 * some
    for rows in _slices(len(x)):
      own = x[rows].astype(np.float64)
      squares = own @ doubled.T
      squares += lengths
      squares += np.einsum("rd,rd->r", own, own)[:, None]
      yield rows, columns, np.maximum(squares, 0, out=squares)


def nearest_distances(x: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Return the L2 distance of each row of x [R,D] to the nearest of points [M,D].

  >>> nearest_distances(np.array([[0.0], [5.0]]), np.array([[1.0], [3.0]]))
  array([1., 2.])
  """
  least = np.full(len(x), np.inf)
  for rows, _, squares in tiles(x, points):
    np.minimum(least[rows], squares.min(1), out=least[rows])
  return np.sqrt(least)


def flat(x: np.ndarray) -> np.ndarray:
  """Reshape records [B,...] to rows [B,D]."""
  return x.reshape(len(x), -1)


def _slices(count):
  return (slice(first, first + _TILE) for first in range(0, count, _TILE))

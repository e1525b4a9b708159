"""Validation of metric inputs: records in range, and features of equal width."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def records(x: Any, what: str) -> np.ndarray:
  """Return records as float32: images [N,H,W,C] in [0,1], or rows [N,D] of any range.

  Raises:
    ValueError: for integers, values that are not finite, images outside [0,1], or
      another number of axes.
  """
  x = np.asarray(x)
  if x.ndim not in (2, 4) or not x.size:
    raise ValueError(f"{what} has shape {x.shape}; pass images [N,H,W,C] or rows [N,D]")
  if x.dtype.kind != "f":
    raise ValueError(
      f"{what} has type {x.dtype}; metrics read float32: x / 255 for uint8 images"
    )
  low, high = float(x.min()), float(x.max())
  if not np.isfinite(low + high):
    raise ValueError(f"{what} has values that are not finite; remove such records")
  if x.ndim == 4 and not 0 <= low <= high <= 1:
    raise ValueError(
      f"{what} spans [{low:.4g}, {high:.4g}]; images are in [0, 1]: (x + 1) / 2 for a "
      "generator in [-1, 1]"
    )
  return x.astype(np.float32)


def training_records(x: np.ndarray, what: str) -> None:
  """Reject training records of a classifier that metrics cannot pass to it.

  A learner divides uint8 images by 255 itself; floats must be as in `records`.

  Raises:
    ValueError: as `records` does.
  """
  if x.dtype != np.uint8:
    records(x, what)


def feature_pair(
  a: ArrayLike, b: ArrayLike, names: tuple[str, str], *, at_least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
  """Return two sets of features [N,F] and [M,F] as float64.

  Raises:
    ValueError: for another shape, unequal widths, too few rows, or values that are not
      finite.
  """
  first, second = (
    _features(values, name) for values, name in zip((a, b), names, strict=True)
  )
  if first.shape[1] != second.shape[1]:
    raise ValueError(
      f"{names[0]} has {first.shape[1]} features and {names[1]} {second.shape[1]}; use "
      "one extractor for both"
    )
  for values, name in zip((first, second), names, strict=True):
    if len(values) < at_least:
      raise ValueError(f"{name} has {len(values)} rows; at least {at_least} are needed")
  return first, second


def _features(values: ArrayLike, name: str) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 2:
    raise ValueError(f"{name} has shape {values.shape}; pass features [N,F]")
  if not np.isfinite(values).all():
    row = int(np.argmax(~np.isfinite(values).all(1)))
    raise ValueError(f"{name}[{row}] is not finite; remove such records")
  return values

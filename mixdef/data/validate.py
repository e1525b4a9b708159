"""Checks of a user's arrays: each error names the value, the place and the fix."""

from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def inputs(x: ArrayLike, what: str) -> np.ndarray:
  """Return `x` as uint8 or finite float32 with at least two axes."""
  x = _array(x, what)
  if x.ndim < 2:
    raise ValueError(f"{what} has shape {x.shape}; reshape it to [records, features]")
  if 0 in x.shape:
    raise ValueError(f"{what} has shape {x.shape}; every axis needs at least one entry")
  if x.dtype == np.uint8:
    if x.max() == 1:
      raise ValueError(
        f"{what} is uint8 with values 0 and 1, but uint8 means images of 0..255;"
        " pass it as float32"
      )
    return x
  if x.dtype.kind in "cOSUMm":
    raise ValueError(f"{what} has type {x.dtype}; convert it to numbers (float32)")
  with np.errstate(over="ignore"):
    x = x.astype(np.float32)
  if not np.isfinite(x).all():
    at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
    raise ValueError(
      f"{what}{list(at)} is {x[at]} in float32; remove or impute such records"
    )
  return x


def labels(y: ArrayLike, what: str) -> np.ndarray:
  """Return `y` as a non-negative int32 vector."""
  y = _array(y, what)
  if y.ndim != 1:
    raise ValueError(
      f"{what} has shape {y.shape}; labels are one integer a record: y.argmax(1) for"
      " one-hot rows, y.ravel() for a column"
    )
  if y.size and y.dtype.kind not in "bui":
    raise ValueError(f"{what} has type {y.dtype}; labels are integers: y.astype(int)")
  if y.size and (y.min() < 0 or y.max() > np.iinfo(np.int32).max - 1):
    at = int(np.argmax((y < 0) | (y > np.iinfo(np.int32).max - 1)))
    raise ValueError(f"{what}[{at}] is {y[at]}; labels run from 0 to num_classes - 1")
  return y.astype(np.int32)


def label_range(y: np.ndarray, num_classes: int, what: str) -> None:
  """Refuse labels that `num_classes` does not reach."""
  if y.max() >= num_classes:
    at = int(y.argmax())
    raise ValueError(
      f"{what}[{at}] is {y[at]} but num_classes is {num_classes};"
      f" labels run from 0 to {num_classes - 1}"
    )


def lengths(x: Sized, y: Sized, **columns: Any) -> None:
  """Refuse arrays that disagree about the number of records."""
  if len(x) != len(y):
    raise ValueError(f"x has {len(x)} records but y has {len(y)}; give one label each")
  for name, column in columns.items():
    if len(column) != len(x):
      raise ValueError(
        f"{name} has {len(column)} entries but x has {len(x)} records; give one each"
      )


def same_records(x: np.ndarray, test_x: np.ndarray) -> None:
  """Refuse held-out records of another shape or type than the training records."""
  if (x.shape[1:], x.dtype) != (test_x.shape[1:], test_x.dtype):
    raise ValueError(
      f"test x holds {test_x.dtype} {test_x.shape[1:]} but x holds"
      f" {x.dtype} {x.shape[1:]}; prepare both alike"
    )


def mask(values: ArrayLike, shape: tuple[int, ...], what: str) -> np.ndarray:
  """Return `values` as a bool array of this shape."""
  values = np.asarray(values)
  if values.dtype != bool:
    raise ValueError(
      f"{what} has type {values.dtype}; give bool, for example weights > 0"
    )
  if values.shape != shape:
    raise ValueError(f"{what} has shape {values.shape}; give {list(shape)}")
  return values


def rows(index: ArrayLike, num_records: int) -> np.ndarray:
  """Return an index array of a mask or of indices into `num_records` records."""
  index = np.asarray(index)
  if index.dtype == bool:
    index = np.flatnonzero(mask(index, (num_records,), "the mask"))
  if not index.size:
    raise ValueError("rows selects 0 records; select at least one")
  if index.dtype.kind not in "ui" or index.ndim != 1:
    raise ValueError(
      f"rows has type {index.dtype} and shape {index.shape}; give integer indices [M]"
      " or a bool mask [N]"
    )
  if index.min() < 0 or index.max() >= num_records:
    at = int(np.argmax((index < 0) | (index >= num_records)))
    raise ValueError(
      f"rows[{at}] is {index[at]}; the records are 0 to {num_records - 1}"
    )
  return index


def _array(values: ArrayLike, what: str) -> np.ndarray:
  try:
    return np.asarray(values)
  except ValueError as error:
    raise ValueError(f"{what} is ragged; give every record the same shape") from error

"""Checks of the names of records and of persons; each error names the fix."""

from typing import Any

import numpy as np


def ids(values: Any, what: str = "ids") -> np.ndarray:
  """Return the ids of records [N], integers or text, checked to be unique."""
  names = groups(values, what)
  values, counts = np.unique(names, return_counts=True)
  if counts.max(initial=0) > 1:
    raise ValueError(
      f"{what} contain {values[counts.argmax()]!s} {counts.max()} times; pass a unique "
      "id for every record"
    )
  return names


def groups(values: Any, what: str = "groups") -> np.ndarray:
  """Return the groups of records [N], integers or text."""
  if np.ma.isMaskedArray(values):
    raise ValueError(f"{what} are a masked array; fill it: values.filled(...)")
  try:
    names = np.asarray(values)
  except ValueError as error:
    raise ValueError(f"{what} are ragged; pass [N] integers or text") from error
  if names.dtype.kind not in "iuUT" or names.ndim != 1:
    raise ValueError(f"{what} have type {names.dtype}; pass [N] integers or text")
  return names


def same_kind(first: np.ndarray, second: np.ndarray, what: str) -> None:
  """Raise if names of two sides are text on one and integers on the other."""
  if (first.dtype.kind in "iu") != (second.dtype.kind in "iu"):
    raise ValueError(
      f"{what} are {first.dtype} on one side and {second.dtype} on the other; pass "
      "integers on both sides, or text"
    )


def separate_groups(train: np.ndarray, test: np.ndarray) -> None:
  """Raise if a group has both training records and held-out records."""
  same_kind(train, test, "groups")
  both = np.intersect1d(train, test)
  if both.size:
    raise ValueError(
      f"group {both[0]!s} has training records and test records; keep all records of a "
      f"group on one side ({both.size} are on both)"
    )

"""Conversion of labels from their common forms to integers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate

_FEW = 20  # number of classes that is plausible for any number of records
_SIGNS = ("-1", "1")
Classes = tuple[str, ...] | None


def read(y: ArrayLike, test_y: ArrayLike | None = None) -> tuple[Any, Any, Classes]:
  """Return labels as integers, and the names of the classes.

  Integers in [0, K) are kept. One-hot rows [N, K] become the position of the one, a
  column [N, 1] becomes a vector, -1 and +1 become 0 and 1, and text becomes its
  position among the sorted names of both arguments.

  Args:
    y: [N], [N, 1] or one-hot [N, K] labels.
    test_y: labels of held-out records in the same form, or None.

  Returns:
    y int32 [N], `test_y` in the same form or None, and the names, which only text and
    signs have.

  Raises:
    ValueError: naming the first bad label and the fix.

  >>> read([[0, 1], [1, 0]])[0].tolist()
  [1, 0]
  >>> read(["cat", "ant"], ["cat"])
  (array([1, 0], dtype=int32), array([1], dtype=int32), ('ant', 'cat'))
  """
  parts = {"y": y} if test_y is None else {"y": y, "test y": test_y}
  found, classes = read_all(parts)
  return found["y"], found.get("test y"), classes


def read_all(parts: Mapping[str, ArrayLike]) -> tuple[dict[str, np.ndarray], Classes]:
  """Return several arrays of labels as integers of the same classes; see `read`.

  Args:
    parts: labels by their name in messages.

  Raises:
    ValueError: naming the first bad label and the fix.
  """
  plain = {what: _vector(part, what) for what, part in parts.items()}
  every = [part for part in plain.values() if part is not None]
  if len(every) < len(parts):
    plain, every = parts, []  # `validate.labels` raises the error
  if every and all(map(_is_text, every)):
    names, numbers = np.unique(np.concatenate(every), return_inverse=True)
    for what, part in zip(parts, every, strict=True):
      if (empty := np.flatnonzero(part == "")).size:
        raise ValueError(f"{what}[{empty[0]}] is empty; remove records without a label")
    ends = np.cumsum([len(part) for part in every])[:-1]
    found = np.split(numbers.astype(np.int32), ends)
    return dict(zip(parts, found, strict=True)), tuple(map(str, names))
  if every and _are_signs(every):
    ones = [(part > 0).astype(np.int32) for part in every]
    return dict(zip(parts, ones, strict=True)), _SIGNS
  return {what: validate.labels(part, what) for what, part in plain.items()}, None


def _vector(y: ArrayLike, what: str) -> np.ndarray | None:
  """Return labels as an array, one-hot rows and columns as vectors; None if ragged."""
  try:
    array = np.asarray(y)
  except (ValueError, TypeError, RuntimeError):
    return None
  if np.ma.isMaskedArray(y):
    return None
  if array.ndim == 2 and array.shape[1] == 1:
    return array[:, 0]
  if array.ndim != 2 or array.dtype.kind not in "biuf":
    return array
  one_hot = ((array == 0) | (array == 1)).all(axis=1) & (array.sum(axis=1) == 1)
  if one_hot.all():
    return array.argmax(axis=1)
  at = int(one_hot.argmin())
  raise ValueError(
    f"{what} has shape {array.shape} and row {at} is not one-hot: "
    f"{array[at].tolist()!s:.60}; labels are one class per record, for scores "
    "y.argmax(1)"
  )


def _is_text(array: np.ndarray) -> bool:
  if array.dtype.kind == "O" and array.ndim == 1:
    return bool(len(array)) and all(isinstance(value, str) for value in array)
  return array.dtype.kind in "UT" and array.ndim == 1


def _are_signs(arrays: list[np.ndarray]) -> bool:
  """Return whether labels are -1 and +1, which both occur."""
  if any(array.ndim != 1 or array.dtype.kind not in "if" for array in arrays):
    return False
  return set(np.unique(np.concatenate(arrays))) == {-1, 1}


def classes_of(values: np.ndarray, what: str) -> tuple[str, ...]:
  """Return the classes of a column of a table, its distinct values in order.

  Args:
    values: [N] integers, finite whole floats, bools or text.
    what: the column, for error messages.

  Raises:
    ValueError: there is a single class, or nearly as many as records.
  """
  names = np.unique(values)
  if len(names) < 2:
    raise ValueError(
      f"{what} is {_name(names[0])} in every record; a classifier needs two classes"
    )
  if len(names) > max(_FEW, len(values) / 2):
    raise ValueError(
      f"{what} has {len(names):,} distinct values in {len(values):,} records, and only "
      "classification is supported: name another column, or bin it into classes"
    )
  return tuple(map(_name, names))


def positions(values: np.ndarray, classes: tuple[str, ...], what: str) -> np.ndarray:
  """Return the position of each value among the classes, int32 [N].

  Raises:
    ValueError: for a value that is not a class.
  """
  place = {name: i for i, name in enumerate(classes)}
  names, inverse = np.unique(values, return_inverse=True)
  found = np.array([place.get(_name(name), -1) for name in names], np.int32)[inverse]
  if (found < 0).any():
    at = int((found < 0).argmax())
    raise ValueError(
      f"{what} is {_name(values[at])!r} in row {at}, which is not a class of the "
      f"training records ({', '.join(classes)!s:.60}); drop such rows"
    )
  return found


def numbered_alike(part: Any, classes: Classes, what: str) -> Any:
  """Return held-out records whose labels have the numbers of given classes.

  Text that is read apart is numbered by its own classes, of which some may be missing.

  Args:
    part: a `Dataset` of these records.
    classes: names of the classes of the training records, or None.
    what: what the records are, for error messages.

  Raises:
    ValueError: if only one side has names, or for a class that the other side lacks.
  """
  if part.classes == classes:
    return part
  if part.classes is None or classes is None:
    named = ", ".join(part.classes or classes or ())
    raise ValueError(
      f"the labels of {what} and of the training records are text ({named!s:.60}) on "
      "one side and numbers on the other; pass the same on both"
    )
  y = positions(np.array(part.classes)[part.y], classes, f"the label of {what}")
  return dataclasses.replace(
    part, y=y, num_classes=len(classes), classes=classes, test=None
  )


def _name(value: Any) -> str:
  """Return the text of a class; 1, 1.0 and True all become "1"."""
  if isinstance(value, (bool, np.bool_, int, float, np.number)):
    return str(int(value))
  return str(value)

"""Checks of user-supplied arrays; each error names the value, its place and the fix."""

import operator
from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.mapped import MappedRecords, kept_in_file

_TEXT = "convert it to numbers: it holds text"

_FIXES = {
  "c": "pass real numbers, for example its .real if the imaginary parts are 0",
  "O": "convert it to numbers: it holds Python objects",
  "M": "convert it to numbers: it holds dates",
  "m": "convert it to numbers: it holds durations",
  "V": "numpy.savez writes bfloat16 in this way; save it as float32",
}
"""The fix for non-numeric types, by dtype kind."""


def numbers(values: Any, what: str, *, text: str = _TEXT) -> np.ndarray:
  """Return `values` as a plain array of bools, integers or floats.

  bfloat16 and similar types become float32. `text` is the fix to suggest for text.

  Raises:
    ValueError: for masked arrays and types that are not numeric, with the fix.
  """
  parts = values if isinstance(values, (list, tuple)) else (values,)
  if any(map(np.ma.isMaskedArray, parts)):
    raise ValueError(
      f"{what} is a masked array, whose mask would be lost; remove the masked "
      "records, or fill them: values.filled(...)"
    )
  try:
    array = np.asarray(values)
  except (ValueError, TypeError, RuntimeError) as error:
    if "inhomogeneous" in str(error):
      raise ValueError(f"{what} is ragged; all records need the same shape") from error
    reason = str(error).splitlines()[0]
    raise ValueError(f"{what} cannot be read as an array: {reason}") from error
  kind = array.dtype.kind
  if kind == "V" and not issubclass(array.dtype.type, np.void):
    return array.astype(np.float32)
  if kind == "O" and not array.ndim and array.item() is None:
    raise ValueError(f"{what} is None; pass an array")
  if array.dtype.names:
    raise ValueError(
      f"{what} has the fields {', '.join(array.dtype.names)}; pass an array of one type"
    )
  fix = text if kind in "SUT" else _FIXES.get(kind)
  if fix:
    raise ValueError(f"{what} has type {array.dtype}; {fix}")
  return array


def integer(value: Any, name: str, *, least: int = 0) -> int:
  """Return an integer of at least `least`; True, 2.0 and None are rejected."""
  try:
    whole = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
  except TypeError:
    whole = None
  if whole is None:
    raise ValueError(f"{name}={_line(value)}; pass an integer of at least {least}")
  if whole < least:
    raise ValueError(f"{name}={whole}; pass at least {least}")
  return whole


def real(value: Any, name: str) -> float:
  """Return a real number; text, None and True are rejected."""
  try:
    if isinstance(value, (bool, np.bool_, str, bytes)):
      raise TypeError
    return float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{name}={_line(value)}; pass a number") from None


def _line(value: Any) -> str:
  """Return the text of a value in one short line."""
  words = " ".join(repr(value).split())
  return words if len(words) <= 60 else f"{words[:57]}..."


_BITS = (
  "is uint8 with values 0 and 1, but uint8 means images of 0..255; pass it as float32"
)


def inputs(x: Any, what: str) -> Any:
  """Return `x` as uint8, int32 or finite float32 with at least two axes.

  A memory-mapped array is checked in blocks, and returned as `MappedRecords`.
  """
  x = kept_in_file(x)
  x = x if isinstance(x, MappedRecords) else numbers(x, what)
  if x.ndim < 2:
    raise ValueError(f"{what} has shape {x.shape}; reshape it to [records, features]")
  if 0 in x.shape:
    raise ValueError(f"{what} has shape {x.shape}; every axis needs at least one entry")
  if isinstance(x, MappedRecords):
    return _mapped_inputs(x, what)
  if x.dtype == np.uint8:
    if x.max() == 1:
      raise ValueError(f"{what} {_BITS}")
    return x
  if x.dtype.kind in "iu":
    limits = np.iinfo(np.int32)
    if x.min() < limits.min or x.max() > limits.max:
      raise ValueError(
        f"{what} holds integers from {x.min()} to {x.max()}, which int32 cannot "
        "represent; renumber them, or pass quantities as float32"
      )
    return x.astype(np.int32)
  with np.errstate(over="ignore"):
    x = x.astype(np.float32)
  _refuse_infinite(x, what)
  return x


def _refuse_infinite(x: np.ndarray, what: str, first: int = 0) -> None:
  """Raise if an entry is not finite; `first` is the position of the first record."""
  if np.isfinite(x).all():
    return
  row, *place = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
  raise ValueError(
    f"{what}{[first + row, *place]} is {x[row, *place]} in float32; remove or impute "
    "such records"
  )


def _mapped_inputs(x: MappedRecords, what: str) -> MappedRecords:
  """Return mapped records, which cannot be converted, after checking their values."""
  if x.dtype not in (np.uint8, np.int32, np.float32):
    kind = "int32" if x.dtype.kind in "iu" else "float32"
    raise ValueError(
      f"{what} is mapped from {x.path}, of type {x.dtype}; write the file as {kind}, "
      "or as uint8 if it holds images of 0..255"
    )
  first = 0
  for block in x.blocks():
    if x.dtype == np.uint8 and block.max() > 1:
      return x
    _refuse_infinite(block, what, first)
    first += len(block)
  if x.dtype == np.uint8 and x.max() == 1:
    raise ValueError(f"{what} {_BITS}")
  return x


def are_names(x: Any) -> bool:
  """Return whether records are categorical integers, such as token ids."""
  return np.issubdtype(x.dtype, np.integer) and x.dtype != np.uint8


def quantities(x: Any, part: str, *, error: type[ValueError] = ValueError) -> None:
  """Raise if records are categorical integers, which `part` cannot compute with."""
  if are_names(x):
    raise error(
      f"{part} computes with records, but these are {x.dtype}, categories such as "
      "token ids; remove it, or pass quantities as float32"
    )


def in_memory(x: Any, part: str, *, error: type[ValueError] = ValueError) -> None:
  """Raise if records stay in a file, and `part` needs all of them in memory."""
  if isinstance(x, MappedRecords):
    raise error(
      f"{part} needs all records in memory, but they stay in {x.path}: leave it out, "
      "or select fewer records and read them, Dataset.from_arrays(numpy.array(x), y)"
    )


def labels(y: Any, what: str) -> np.ndarray:
  """Return `y` as a non-negative int32 vector."""
  text = f"labels are integers: np.unique({what}, return_inverse=True)[1]"
  y = numbers(y, what, text=text)
  if y.ndim != 1:
    raise ValueError(
      f"{what} has shape {y.shape}; labels are one integer per record: y.argmax(1) "
      "for one-hot rows, y.ravel() for a column"
    )
  if y.size and y.dtype.kind == "f":
    _refuse_float_labels(y, what)
  if y.size and (y.min() < 0 or y.max() > np.iinfo(np.int32).max - 1):
    at = int(np.argmax((y < 0) | (y > np.iinfo(np.int32).max - 1)))
    raise ValueError(
      f"{what}[{at}] is {y[at]}; labels run from 0 to num_classes - 1: pass "
      f"np.unique({what}, return_inverse=True)[1]"
    )
  return y.astype(np.int32)


def _refuse_float_labels(y: np.ndarray, what: str) -> None:
  """Raise for float labels, and say how to convert them to classes."""
  broken = ~np.isfinite(y)
  if broken.any():
    at = int(broken.argmax())
    raise ValueError(f"{what}[{at}] is {y[at]}; remove records without a label")
  if (y == np.floor(y)).all():
    raise ValueError(f"{what} has type {y.dtype}; labels are integers: y.astype(int)")
  at = int((y != np.floor(y)).argmax())
  raise ValueError(
    f"{what}[{at}] is {y[at]} of type {y.dtype}: only classification is supported; "
    "convert real numbers to classes, for example by np.digitize(y, edges)"
  )


def label_range(y: np.ndarray, num_classes: int, what: str) -> None:
  """Raise if a label is not below `num_classes`."""
  if y.max() >= num_classes:
    at = int(y.argmax())
    raise ValueError(
      f"{what}[{at}] is {y[at]} but num_classes is {num_classes};"
      f" labels run from 0 to {num_classes - 1}"
    )


def lengths(x: Sized, y: Sized, **columns: Any) -> None:
  """Raise if arrays differ in the number of records."""
  if len(x) != len(y):
    raise ValueError(
      f"x has {len(x)} records but y has {len(y)}; pass one label per record"
    )
  for name, column in columns.items():
    if len(column) != len(x):
      raise ValueError(
        f"{name} has {len(column)} entries but x has {len(x)} records; pass one per "
        "record"
      )


def same_records(x: Any, test_x: Any) -> None:
  """Raise if held-out records differ from the training records in shape or type."""
  if (x.shape[1:], x.dtype) != (test_x.shape[1:], test_x.dtype):
    raise ValueError(
      f"test x holds {test_x.dtype} {test_x.shape[1:]} but x holds {x.dtype} "
      f"{x.shape[1:]}; preprocess both in the same way"
    )


def queries(x: Any, known: Any) -> Any:
  """Return query records [B,...], checked to be on the scale of the training records.

  Args:
    x: uint8 or floats in [0,1] if `known` is uint8, which models read as x / 255;
      numbers other than uint8 if `known` is float32; integers if it is categorical.
    known: the training records [N,...].

  Raises:
    ValueError: for another shape, type or scale, for which models would silently return
      wrong outputs.
  """
  x = x if isinstance(x, MappedRecords) else numbers(x, "x")
  shape = known.shape[1:]
  if x.shape == shape:
    raise ValueError(f"x is a single record of shape {shape}; pass a batch: x[None]")
  if x.shape[1:] != shape or not x.ndim:
    raise ValueError(
      f"x has shape {x.shape}, but the models were trained on records of shape {shape};"
      f" reshape it to {['B', *shape]}".replace("'", "")
    )
  if not len(x):
    raise ValueError("x has 0 records; pass at least one")
  if x.dtype == known.dtype:
    return x
  trained = f"x is {x.dtype}, but the models were trained on {known.dtype}"
  if isinstance(x, MappedRecords):
    raise ValueError(f"{trained}; write {x.path} in this type")
  if are_names(known):
    if x.dtype.kind not in "iu":
      raise ValueError(
        f"{trained}, categories such as token ids; pass x.astype(np.int32)"
      )
    return inputs(x.astype(np.int64), "x")
  if x.dtype == np.uint8:
    raise ValueError(
      f"{trained}; uint8 would be read as x / 255: pass x.astype(np.float32), scaled as"
      " the training records were"
    )
  if known.dtype == np.uint8 and not (
    x.dtype.kind == "f" and x.min() >= 0 and x.max() <= 1
  ):
    raise ValueError(
      f"{trained} images, read as x / 255; values from {x.min():g} to {x.max():g} are "
      "on a different scale: pass x.astype(np.uint8), or floats in [0,1]"
    )
  return x.astype(np.float32)


def asked(population: Any, views: Any) -> None:
  """Raise unless a population is a `Dataset`, and views are a function, or None."""
  if population is not None and not hasattr(population, "x"):
    raise ValueError(
      f"population is a {type(population).__name__}; pass a Dataset, "
      "Dataset.from_arrays(x, y)"
    )
  if views is not None and not callable(views):
    raise ValueError(
      f"views={_line(views)} is not a function; pass one such as "
      "mixdef.attacks.VIEWS['shifts'](x)"
    )


def bools(values: Any, what: str) -> np.ndarray:
  """Return `values` as a bool array."""
  values = numbers(values, what)
  if values.dtype != bool:
    fix = "weights > 0"
    if np.isin(values, (0, 1)).all():
      fix = f"{what}.astype(bool)"
    raise ValueError(f"{what} has type {values.dtype}; pass bool, for example {fix}")
  return values


def mask(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
  """Return `values` as a bool array of this shape."""
  values = bools(values, what)
  if values.shape != shape:
    fix = ""
    if values.shape == shape[::-1]:
      fix = f": {what}.T"
    elif (1, *values.shape) == shape:
      fix = f": {what}[None]"
    raise ValueError(f"{what} has shape {values.shape}; pass {list(shape)}{fix}")
  return values


def membership(members: Any, records: int) -> np.ndarray:
  """Return the membership matrix, bool [S, N]: which model trained on which record."""
  members = numbers(members, "members")
  models = 1
  if members.ndim == 2:
    transposed = members.shape[0] == records != members.shape[1]
    models = max(1, members.shape[1 if transposed else 0])
  return mask(members, (models, records), "members")


def scored(scores: Any, members: Any, name: str = "members") -> tuple[Any, np.ndarray]:
  """Return scores float64 [N] or [S, N] and membership, bool of the same shape."""
  scores = numbers(scores, "scores")
  if scores.ndim not in (1, 2):
    raise ValueError(f"scores have shape {scores.shape}; pass [N] or [S, N]")
  if scores.dtype == bool and np.asarray(members).dtype != bool:
    raise ValueError(
      f"scores are bool but {name} is not; pass scores first, then {name}"
    )
  return scores.astype(np.float64), mask(members, scores.shape, name)


def rows(index: ArrayLike, num_records: int) -> np.ndarray:
  """Return an index array from a mask or from indices into `num_records` records."""
  if np.ma.isMaskedArray(index):
    raise ValueError("rows is a masked array; pass the indices that are not masked")
  index = np.asarray(index)
  if index.dtype == bool:
    index = np.flatnonzero(mask(index, (num_records,), "the mask"))
  if not index.size:
    raise ValueError("rows selects 0 records; select at least one")
  if index.dtype.kind not in "ui" or index.ndim != 1:
    raise ValueError(
      f"rows has type {index.dtype} and shape {index.shape}; pass integer indices [M]"
      " or a bool mask [N]"
    )
  if index.min() < 0 or index.max() >= num_records:
    at = int(np.argmax((index < 0) | (index >= num_records)))
    raise ValueError(
      f"rows[{at}] is {index[at]}; the records are 0 to {num_records - 1}"
    )
  counts = np.bincount(index, minlength=num_records)
  if counts.max() > 1:
    raise ValueError(
      f"rows contain {counts.argmax()} {counts.max()} times; select each record once"
    )
  return index

"""Reader of random-access sources of examples, such as those of grain."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from mixdef.core.files import on_bucket, path_of, whole_file
from mixdef.data import columns
from mixdef.data.columns import Columns

_MOST = 2**31  # records; a source that repeats itself has a larger length


def columns_of(
  source: Any, place: str, file: str | os.PathLike[str] | None = None
) -> Columns:
  """Read all examples into columns; see `Dataset.from_grain`.

  Raises:
    ValueError: naming the example and the fix.
    TypeError: the source has no length or no items.
  """
  if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
    raise TypeError(
      f"{place} is a {type(source).__name__}; pass a grain data source or MapDataset, "
      "with a length and items"
    )
  if not 0 < len(source) < _MOST:
    raise ValueError(f"{place} has {len(source)} records; pass some, without repeat()")
  gathered: dict[str, Any] = {}

  def arrays():
    """Gather everything but the array of each example, which is yielded."""
    for i, example in enumerate(_examples(source, place)):
      found = [key for key, value in example.items() if np.ndim(value)]
      if len(found) != 1:
        raise ValueError(
          f"{place}: example {i} has {len(found)} arrays ({', '.join(found)}); with "
          "file=, map each example to one array and numbers or text"
        )
      for key, value in example.items():
        gathered.setdefault(key, [] if key not in found else None)
        if key not in found:
          gathered[key].append(value)
      yield example[found[0]]

  if file is not None:
    mapped = write_records(file, arrays(), len(source), place)
    for key, values in gathered.items():
      gathered[key] = mapped if values is None else _stacked(key, values, place)
    return columns.of_frame(gathered, place)
  for example in _examples(source, place):
    for key, value in example.items():
      gathered.setdefault(key, []).append(value)
  stacked = {key: _stacked(key, values, place) for key, values in gathered.items()}
  return columns.of_frame(stacked, place)


def write_records(
  path: str | os.PathLike[str], records: Iterable[Any], count: int, place: str
) -> np.memmap:
  """Write records to an npy file, one after another, and memory-map it.

  Args:
    path: the file, on this machine. It is written completely or not at all.
    records: arrays of one shape and type; floats become float32, and integers other
      than uint8 become int32.
    count: number of records.
    place: the source, for error messages.

  Raises:
    ValueError: naming the first record of another shape or type.
  """
  where = path_of(path, "file")
  if on_bucket(where):
    raise ValueError(f"file={str(where)!r} is on a bucket: pass a path of this machine")
  first: Any = None
  dtype = np.dtype(np.float32)
  with whole_file(where) as file:
    for i, record in enumerate(records):
      record = np.asarray(record)
      if first is None:
        first, dtype = record, _type_of(record, place)
        header = {
          "descr": npy.dtype_to_descr(dtype),
          "fortran_order": False,
          "shape": (count, *record.shape),
        }
        npy.write_array_header_1_0(file, header)
      if (record.shape, record.dtype) != (first.shape, first.dtype):
        raise ValueError(
          f"{place}: example {i} is {record.dtype} {record.shape}, and example 0 is "
          f"{first.dtype} {first.shape}; give all one shape and type"
        )
      file.write(np.ascontiguousarray(record, dtype).data)
  return np.load(where, mmap_mode="r")


def _type_of(record: np.ndarray, place: str) -> np.dtype:
  """Return the type in which records are stored."""
  if record.dtype == np.uint8:
    return record.dtype
  kinds = {"b": np.int32, "i": np.int32, "u": np.int32, "f": np.float32}
  if record.dtype.kind not in kinds:
    raise ValueError(f"{place} has arrays of type {record.dtype}; pass numbers")
  return np.dtype(kinds[record.dtype.kind])


def _examples(source: Any, place: str) -> Iterator[dict[str, Any]]:
  """Yield the examples as dicts, checked to have the same keys."""
  first: Any = None
  for i in range(len(source)):
    example = source[i]
    if isinstance(example, tuple | list) and len(example) == 2:
      example = dict(zip(("x", "y"), example, strict=True))
    if not isinstance(example, Mapping):
      raise ValueError(
        f"{place}: example {i} is a {type(example).__name__}; map it to a dict of "
        "arrays and numbers, or to a pair (x, y)"
      )
    example = {str(key): value for key, value in example.items()}
    first = example.keys() if first is None else first
    if example.keys() != first:
      raise ValueError(
        f"{place}: example {i} has {', '.join(example)}, and example 0 has "
        f"{', '.join(first)}; give all the same keys"
      )
    yield example


def _stacked(key: str, values: list, place: str) -> Any:
  """Return the values of a key, as one array if they have axes."""
  if isinstance(values[0], str | bytes | os.PathLike) or np.ndim(values[0]) == 0:
    return [
      value.item() if isinstance(value, np.generic) else value for value in values
    ]
  shapes = [np.shape(value) for value in values]
  for i, shape in enumerate(shapes):
    if shape != shapes[0]:
      raise ValueError(
        f"{place}: {key!r} of example {i} has shape {shape}, and of example 0 "
        f"{shapes[0]}; pad or cut all to one shape"
      )
  return np.stack([np.asarray(value) for value in values])

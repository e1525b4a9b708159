"""Records that stay in a file and are read in parts, because memory may not hold them.

`numpy.memmap` is the only form: a format without random access is written to such a
file once.
"""

import math
import mmap
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 2**24  # bytes that are read at once
_HELD = 2**26  # bytes of pages that are kept before they are returned to the system
_AROUND = 2**16  # bytes of pages that the system provides around each record


class MappedRecords:
  """A read-only array [N,...] in a file, or a selection of its rows.

  An index returns an array in memory, and `select` another `MappedRecords` without
  reading anything. `numpy.asarray` reads all records.

  Args:
    base: the array in the file, as `numpy.load(path, mmap_mode="r")` returns it.
    rows: int [M], rows of the array, or None for all.
    changed: rows of the array, int [C] ascending, and their content [C,...], which is
      in memory and replaces that of the file.
  """

  def __init__(
    self,
    base: np.memmap,
    rows: np.ndarray | None = None,
    changed: tuple[np.ndarray, np.ndarray] | None = None,
  ):
    self._base, self._rows, self._changed, self._read = base, rows, changed, 0
    self._array = np.asarray(base)  # the same memory, without the methods of a memmap
    self._pages: Any = getattr(base, "_mmap")  # noqa: B009 - it has no public name
    self.dtype, self.ndim = base.dtype, base.ndim
    self.shape = (len(self), *base.shape[1:])

  @property
  def size(self) -> int:
    """Number of entries."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Number of bytes in memory, if all records were read."""
    return self.size * self.dtype.itemsize

  @property
  def path(self) -> pathlib.Path | str:
    """The file that holds the records."""
    name = self._base.filename
    return "an unnamed file" if name is None else pathlib.Path(name)

  def __len__(self) -> int:
    return len(self._base) if self._rows is None else len(self._rows)

  def __repr__(self) -> str:
    return f"MappedRecords({self.shape} {self.dtype}, {self.path})"

  def __getitem__(self, key: Any) -> np.ndarray:
    """Return the records of an index, a slice, a mask [N] or an int array in memory."""
    if isinstance(key, slice) and self._rows is None and self._changed is None:
      found = np.array(self._array[key])
      self._count(found.nbytes)
      return found
    return self.take(_positions(key, len(self)))

  def __iter__(self) -> Iterator[np.ndarray]:
    for block in self.blocks():
      yield from block

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if copy is False:
      raise ValueError("mapped records cannot be an array without a copy")
    return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

  def take(self, rows: Any, axis: int = 0, out: Any = None, mode: str = "") -> Any:
    """Read rows, int [...], in the order of the file; a subset of `numpy.take`.

    Args:
      rows: the rows, in [0, N).
      axis: 0, the only axis that can be read.
      out: array to read into, or None for a new one.
      mode: not used: rows are not checked.
    """
    del axis, mode
    rows = self._in_file(rows)
    shape = (*rows.shape, *self._base.shape[1:])
    found = np.empty(shape, self.dtype) if out is None else out
    flat, rows = found.reshape(-1, *shape[rows.ndim :]), rows.ravel()
    if (rows[1:] >= rows[:-1]).all():
      self._read_sorted(rows, flat)
    else:
      order = np.argsort(rows, kind="stable")
      flat[order] = self._read_sorted(rows[order], np.empty_like(flat))
    return found

  def _read_sorted(self, rows, out):
    touched = self._array[:1].nbytes + _AROUND
    each = max(1, _HELD // touched)
    for first in range(0, len(rows), each):
      part = slice(first, first + each)
      self._array.take(rows[part], axis=0, out=out[part], mode="clip")
      self._count(len(rows[part]) * touched)
    if self._changed is not None:
      places, content = self._changed
      nearest = np.searchsorted(places, rows).clip(max=len(places) - 1)
      hit = places[nearest] == rows
      out[hit] = content[nearest[hit]]
    return out

  def select(self, rows: np.ndarray) -> "MappedRecords":
    """Return a selection of rows, int [M], without reading them."""
    return MappedRecords(self._base, self._in_file(rows), self._changed)

  def replace(self, rows: np.ndarray, content: np.ndarray) -> "MappedRecords":
    """Return the records with others in some rows, int [C]; the file is unchanged.

    Raises:
      ValueError: if some rows were replaced before.
    """
    if self._changed is not None:
      raise ValueError("some records were replaced before: replace all at once")
    places = self._in_file(rows)
    order = np.argsort(places)
    changed = places[order], np.asarray(content, self.dtype)[order]
    return MappedRecords(self._base, self._rows, changed)

  def _in_file(self, rows):
    rows = np.asarray(rows)
    return rows if self._rows is None else self._rows[rows]

  def blocks(self) -> Iterator[np.ndarray]:
    """Yield all records in blocks of a few megabytes."""
    for first, end in _bounds(self):
      yield self[first:end]

  def min(self) -> Any:
    """Return the smallest entry."""
    return min(block.min() for block in self.blocks())

  def max(self) -> Any:
    """Return the largest entry."""
    return max(block.max() for block in self.blocks())

  def _count(self, touched: int) -> None:
    """Return the pages that were read to the system from time to time.

    The system would take them when memory is short, but until then they count as memory
    of this process.
    """
    self._read += touched
    if self._read > _HELD and hasattr(mmap, "MADV_DONTNEED"):
      self._pages.madvise(mmap.MADV_DONTNEED)
      self._read = 0


def blocks_of(x: Any) -> Iterator[np.ndarray]:
  """Yield an array or mapped records in blocks along the first axis."""
  if isinstance(x, MappedRecords):
    yield from x.blocks()
  elif not x.ndim or x.nbytes <= BLOCK:
    yield x
  else:
    for first, end in _bounds(x):
      yield x[first:end]


def _bounds(x: Any) -> Iterator[tuple[int, int]]:
  """Yield the bounds of blocks of `BLOCK` bytes, and of at least one record."""
  each = max(1, BLOCK * len(x) // max(1, x.nbytes))
  for first in range(0, len(x), each):
    yield first, first + each


def _positions(key: Any, count: int) -> np.ndarray:
  """Return the positions that an index selects among `count` records."""
  if isinstance(key, slice):
    return np.arange(*key.indices(count))
  rows = np.asarray(key)
  if rows.dtype == bool:
    if rows.shape != (count,):
      raise IndexError(f"a mask of shape {rows.shape} for {count} records")
    return np.flatnonzero(rows)
  if rows.size and not -count <= rows.min() <= rows.max() < count:
    raise IndexError(f"record {rows.min()} or {rows.max()} of {count} records")
  return rows % count


def kept_in_file(x: Any) -> Any:
  """Return `MappedRecords` of a memory-mapped array; anything else is unchanged."""
  mapped = isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None
  return MappedRecords(x) if mapped else x

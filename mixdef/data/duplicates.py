"""Detection of duplicate records, within a data set or across data sets."""

import hashlib
from typing import NamedTuple

import numpy as np

from mixdef.data.dataset import Dataset

_DIGEST = 16  # bytes


class Duplicate(NamedTuple):
  """Two records with equal inputs; each is (index of its set, row in that set)."""

  first: tuple[int, int]
  copy: tuple[int, int]


def duplicate_records(*parts: Dataset) -> list[Duplicate]:
  """List the records that duplicate an earlier record, in the order of the sets.

  A record of the population or the test file that also occurs in the training set is
  not a non-member, and leaving out a member has no detectable effect if a copy of it
  stays in the training set.

  Args:
    *parts: data sets with records of the same shape and type, for example
      `(data, population)`; numbered from 0.

  Returns:
    One `Duplicate` per record that equals an earlier one: `first` is the earliest
    occurrence, `copy` the record itself. Labels are not compared, so a mislabelled copy
    is a copy.

  Raises:
    ValueError: the records differ in shape or type.

  Deviation: equality is that of the values' bytes, by a 128-bit hash; near-duplicates
    are not found.

  >>> data = Dataset.from_arrays([[1.0], [2.0], [1.0]], [0, 1, 1])
  >>> test = Dataset.from_arrays([[2.0], [3.0]], [0, 1])
  >>> for pair in duplicate_records(data, test):
  ...   print(pair)
  Duplicate(first=(0, 0), copy=(0, 2))
  Duplicate(first=(0, 1), copy=(1, 0))
  """
  hashes, starts = bytearray(), [0]
  for place, part in enumerate(parts):
    _same_kind(parts[0], part, place)
    for record in part.x:
      hashes += hashlib.blake2b(_bytes(record), digest_size=_DIGEST).digest()
    starts.append(starts[-1] + len(part))
  every = np.frombuffer(hashes, f"S{_DIGEST}")
  _, first, inverse = np.unique(every, return_index=True, return_inverse=True)
  earliest = first[inverse]
  copies = np.flatnonzero(earliest != np.arange(len(every)))

  def place_of(record):
    place = int(np.searchsorted(starts, record, side="right")) - 1
    return place, int(record) - starts[place]

  return [Duplicate(place_of(earliest[copy]), place_of(copy)) for copy in copies]


def _bytes(record: np.ndarray) -> bytes:
  # Adding zero converts -0.0, which equals 0.0, to the same bytes.
  return (record + record.dtype.type(0)).tobytes()


def _same_kind(first: Dataset, part: Dataset, place: int) -> None:
  if (first.x.shape[1:], first.x.dtype) != (part.x.shape[1:], part.x.dtype):
    raise ValueError(
      f"data set {place} has records {part.x.dtype} {part.x.shape[1:]} but data set 0 "
      f"has {first.x.dtype} {first.x.shape[1:]}; preprocess all in the same way"
    )

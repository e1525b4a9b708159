"""Checks that loaded records match the known properties of the official files."""

import hashlib
import os
import pathlib

import numpy as np
from absl import logging
from numpy.typing import ArrayLike

from mixdef.data import files
from mixdef.data.dataset import Dataset


def check_count(path: pathlib.Path, found: int, expected: int, what: str) -> None:
  """Raise if a file does not hold as many records as the official one.

  Args:
    path: path of the file.
    found: number of records in it.
    expected: number of records in the official file.
    what: name of the records in the error message.
  """
  if found != expected:
    raise ValueError(
      f"{path} is truncated or another file{files.instead(path)}: it has {found:,} "
      f"{what}, not {expected:,}; put the official file there, or load custom records "
      "by Dataset.from_arrays(x, y)"
    )


def check_classes(
  place: os.PathLike[str], y: np.ndarray, name: str, num_classes: int
) -> None:
  """Raise if the labels have fewer classes than the set `name`."""
  if y.size and y.max() < num_classes - 1:
    raise ValueError(
      f"{place} is not {name}: it has {y.max() + 1} classes, not {num_classes}; put the"
      f" official file of {name} there"
    )


def dataset(
  place: os.PathLike[str],
  x: ArrayLike,
  y: ArrayLike,
  *,
  name: str,
  num_classes: int,
  num_records: tuple[int, int] | None = None,
  balanced: bool = False,
  content: str | None = None,
  test: tuple[ArrayLike, ArrayLike] | None = None,
) -> Dataset:
  """Create a `Dataset` from loaded arrays, and log its size.

  Args:
    place: file or folder that was read.
    x: [N, ...] inputs.
    y: [N] labels.
    name: canonical name of the set.
    num_classes: number of classes K.
    num_records: number of records of the official training and test file (0 without a
      test file), or None if unknown.
    balanced: whether the official files hold equally many records of each class.
    content: `digest` of the official records, or None if unknown.
    test: held-out inputs and labels.

  Raises:
    ValueError: the arrays are not those of the set; the line names the place.
  """
  with files.named(place):
    data = Dataset.from_arrays(x, y, name=name, test=test, num_classes=num_classes)
  parts = [("training", data)] + ([("test", data.test)] if data.test else [])
  found = (len(data), len(data.test) if data.test else 0)
  if num_records and num_records != found:
    raise ValueError(
      f"{place} is not the complete {name}: it has {found[0]:,} + {found[1]:,} "
      f"records, not {num_records[0]:,} + {num_records[1]:,}; put the official files "
      "there, or load custom records by Dataset.from_arrays(x, y)"
    )
  for part, records in parts if balanced else ():
    sizes = np.bincount(records.y, minlength=num_classes)
    if np.ptp(sizes):
      raise ValueError(
        f"{place} does not have the files of {name}: {sizes.min():,} {part} records "
        f"are of class {sizes.argmin()} and {sizes.max():,} of class "
        f"{sizes.argmax()}, but the official classes are of equal size; put each "
        "official file there once"
      )
  if content and digest(data) != content:
    raise ValueError(
      f"{place} does not have the records of {name}: their number is right, but their "
      "content or labels differ; put each file there once under its own name"
    )
  shape = data.x.shape[1:]
  features = f"{shape[0]} features" if len(shape) == 1 else " x ".join(map(str, shape))
  logging.info(
    "%s: %d records of %s in %s (%d classes, %d test records)",
    *(name, len(data), features, place, num_classes, found[1]),
  )
  return data


def digest(data: Dataset) -> str:
  """Return a SHA-256 of the records and labels of both files, regardless of order."""
  state = hashlib.sha256()
  for part in filter(None, (data, data.test)):
    records = (
      hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=16).digest()
      for x, y in zip(part.x, part.y, strict=True)
    )
    state.update(hashlib.sha256(b"".join(sorted(records))).digest())
  return state.hexdigest()

"""Reader of the official binary files of STL-10."""

import pathlib

import numpy as np

from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

FOLDER = "stl10_binary"
NAMES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
_SIDE, _CLASSES = 96, 10


def read(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (5_000, 8_000)
) -> Dataset | None:
  """Return the `Dataset` of the four binary files, or None if none of them exists.

  An image is 3 planes of 96 x 96 bytes, each stored column by column. The labels run
  from 1 to 10 in the files and from 0 to 9 here. The unlabelled images are not read.

  Args:
    data_dir: the files are in data_dir/stl10_binary, data_dir/stl10 or data_dir itself.
    num_records: number of records of the training and the test file.

  Returns:
    A `Dataset` of uint8 [N, 96, 96, 3].

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.

  Reference: Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised
    Feature Learning", 2011.
  """
  paths = files.find(data_dir, (FOLDER, "stl10", ""), NAMES)
  if paths is None:
    return None
  x, test_x = map(_read_images, paths[::2], num_records)
  y, test_y = map(_read_labels, paths[1::2], num_records)
  return counts.dataset(
    *(paths[0].parent, x, y),
    name="stl10",
    num_classes=_CLASSES,
    num_records=num_records,
    balanced=True,
    test=(test_x, test_y),
  )


def _read_images(path: pathlib.Path, count: int) -> np.ndarray:
  raw = np.frombuffer(files.read_bytes(path), np.uint8)
  record = 3 * _SIDE * _SIDE
  if not raw.size or raw.size % record:
    raise files.damaged(path, f"{raw.size} bytes are not a multiple of {record}")
  planes = raw.reshape(-1, 3, _SIDE, _SIDE)
  counts.check_count(path, len(planes), count, "images")
  # The last axis of a plane runs down a column, so both axes are swapped.
  return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def _read_labels(path: pathlib.Path, count: int) -> np.ndarray:
  y = np.frombuffer(files.read_bytes(path), np.uint8)
  counts.check_count(path, len(y), count, "labels")
  wrong = np.flatnonzero((y < 1) | (y > _CLASSES))
  if wrong.size:
    raise files.damaged(
      path,
      f"label {wrong[0]} is {y[wrong[0]]}; labels run from 1 to {_CLASSES}",
    )
  return y - 1

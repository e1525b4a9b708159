"""Read the official binary files of STL-10."""

import pathlib

import numpy as np

from mixdef.data import files
from mixdef.data.dataset import Dataset

FOLDER = "stl10_binary"
NAMES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
_SIDE, _CLASSES = 96, 10


def read(data_dir: pathlib.Path) -> Dataset | None:
  """Return the `Dataset` of the four binary files, or None if none of them is there.

  An image is 3 planes of 96 x 96 bytes, each stored column by column. The labels run
  from 1 to 10 in the files and from 0 to 9 here. The unlabelled images are not read.

  Args:
    data_dir: the files lie in data_dir/stl10_binary or data_dir/stl10.

  Returns:
    A `Dataset` of uint8 [N, 96, 96, 3], officially 5,000 + 8,000.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.

  Reference: Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised
    Feature Learning", 2011.
  """
  paths = files.find((data_dir / FOLDER, data_dir / "stl10"), NAMES)
  if paths is None:
    return None
  x, test_x = (_read_images(path) for path in paths[::2])
  y, test_y = (_read_labels(path) for path in paths[1::2])
  for images, labels, path in ((x, y, paths[1]), (test_x, test_y, paths[3])):
    if len(images) != len(labels):
      raise ValueError(
        f"{path} holds {len(labels)} labels for {len(images)} images;"
        " download the four files again"
      )
  with files.named(paths[0].parent):
    return Dataset.from_arrays(
      x, y, name="stl10", test=(test_x, test_y), num_classes=_CLASSES
    )


def _read_images(path: pathlib.Path) -> np.ndarray:
  raw = np.fromfile(path, np.uint8)
  record = 3 * _SIDE * _SIDE
  if not raw.size or raw.size % record:
    raise ValueError(
      f"{path} is damaged: {raw.size} bytes are no multiple of {record};"
      " download it again"
    )
  planes = raw.reshape(-1, 3, _SIDE, _SIDE)
  # The last axis of a plane runs down a column, so both orders turn round.
  return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def _read_labels(path: pathlib.Path) -> np.ndarray:
  y = np.fromfile(path, np.uint8)
  wrong = np.flatnonzero((y < 1) | (y > _CLASSES))
  if wrong.size:
    raise ValueError(
      f"{path} is damaged: label {wrong[0]} is {y[wrong[0]]}; labels run from 1 to"
      f" {_CLASSES}"
    )
  return y - 1

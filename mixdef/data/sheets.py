"""Reader of sets whose images are tiles of a few large lossless pictures."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from mixdef.core import validate
from mixdef.data import counts, files
from mixdef.data.dataset import Dataset


def read(
  data_dir: pathlib.Path,
  name: str,
  *,
  side: int,
  columns: int,
  mode: str,
  num_classes: int,
  num_records: tuple[int, int],
  content: str | None = None,
  train: Sequence[str] = ("train",),
  labels: tuple[str, str] = ("y_train", "y_test"),
) -> Dataset | None:
  """Return the `Dataset` of the sheets in data_dir/name, or None if none exists.

  A sheet consists of square tiles, row-major; the last row may be padded. The sheets
  are WebP or PNG, and `labels.npz` is next to them. A line in the log states that these
  are not the official files.

  Args:
    data_dir: folder that contains the folder of the set.
    name: canonical name of the set.
    side: height and width of a tile in pixels.
    columns: tiles per row.
    mode: "RGB" or "L" (gray).
    num_classes: number of classes K.
    num_records: number of records of the training and the test file.
    content: `counts.digest` of the official records, or None if unknown.
    train: names of the training sheets without suffix; the test sheet is `test`.
    labels: names of the training and the test labels in labels.npz.

  Returns:
    A `Dataset` of uint8 [N, side, side, 3 or 1] with a test file.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.
  """
  suffix = "png" if files.find(data_dir, (name,), ("test.png",)) else "webp"
  names = [*(f"{stem}.{suffix}" for stem in (*train, "test")), "labels.npz"]
  paths = files.find(data_dir, (name,), names)
  if paths is None:
    return None
  *train_paths, test_path, labels_path = paths
  table = files.read_npz(labels_path, labels)
  with files.named(labels_path):
    y, test_y = map(validate.labels, map(table.get, labels), ("y", "test y"))
  x = _tiles(train_paths, len(y), side, columns, mode)
  test_x = _tiles([test_path], len(test_y), side, columns, mode)
  place = labels_path.parent
  logging.info("%s: image sheets in %s, not the official files", name, place)
  return counts.dataset(
    *(labels_path, x, y),
    name=name,
    num_classes=num_classes,
    num_records=num_records,
    content=content,
    test=(test_x, test_y),
  )


def _tiles(
  paths: Sequence[pathlib.Path], count: int, side: int, columns: int, mode: str
) -> np.ndarray:
  x = np.concatenate([_read_sheet(path, side, columns, mode) for path in paths])
  # Only the last row is padded, so a missing row means that the file is damaged.
  if not 0 <= len(x) - count < columns:
    raise ValueError(
      f"{paths[0].parent} holds {len(x)} {paths[0].stem.split('_')[0]} tiles for "
      f"{count} labels; download the sheets again"
    )
  return x[:count]


def _read_sheet(path: pathlib.Path, side: int, columns: int, mode: str) -> np.ndarray:
  sheet = np.atleast_3d(files.read_picture(path, mode))
  height, width, channels = sheet.shape
  if height % side or width != side * columns:
    raise ValueError(
      f"{path} is {height} x {width} pixels; a sheet is {side * columns} wide and a"
      f" multiple of {side} high"
    )
  tiles = sheet.reshape(-1, side, columns, side, channels).swapaxes(1, 2)
  return tiles.reshape(-1, side, side, channels)

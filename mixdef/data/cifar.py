"""Read CIFAR: the official binary files, or lossless sheets of tiles."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from mixdef.data import files
from mixdef.data.dataset import Dataset

CIFAR10_NAMES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR100_NAMES = ("train.bin", "test.bin")
_SIDE, _TILES_A_ROW, _TRAIN_SHEETS = 32, 100, 5


def read_binary(
  data_dir: pathlib.Path,
  name: str,
  *,
  folder: str,
  names: Sequence[str],
  label_bytes: int,
  num_classes: int,
) -> Dataset | None:
  """Return the `Dataset` of the official binary files, or None if none is there.

  A record is `label_bytes` labels, the finest last, and 3 planes of 32 x 32 bytes.

  Args:
    data_dir: the files lie in data_dir/name or data_dir/folder.
    name: canonical name of the set.
    folder: name of the folder in the official archive.
    names: file names, the test file last.
    label_bytes: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, fine).
    num_classes: number of classes K.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.
  """
  paths = files.find((data_dir / name, data_dir / folder), names)
  if paths is None:
    return None
  *train, test = (_read_records(path, label_bytes, num_classes) for path in paths)
  x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
  return Dataset.from_arrays(x, y, name=name, test=test, num_classes=num_classes)


def read_sheets(data_dir: pathlib.Path, name: str = "cifar10") -> Dataset | None:
  """Return the `Dataset` of data_dir/name/{train_0..4, test}.webp, or None.

  A sheet shows tiles of 32 x 32 pixels in rows of 100, row-major; the last row may be
  padded. `labels.npz` holds `train` and `test`. PNG sheets are read as well. A line in
  the log tells that these are not the official files.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.
  """
  folder = data_dir / name
  suffix = "png" if (folder / "test.png").is_file() else "webp"
  stems = [*(f"train_{i}" for i in range(_TRAIN_SHEETS)), "test"]
  names = [*(f"{stem}.{suffix}" for stem in stems), "labels.npz"]
  paths = files.find((folder,), names)
  if paths is None:
    return None
  *train, test, labels_path = paths
  labels = files.read_npz(labels_path, ("train", "test"))
  x = _tiles(train, len(labels["train"]))
  test_x = _tiles([test], len(labels["test"]))
  logging.info("%s: image sheets in %s, not the official files", name, folder)
  with files.named(labels_path):
    return Dataset.from_arrays(
      x, labels["train"], name=name, test=(test_x, labels["test"]), num_classes=10
    )


def _read_records(
  path: pathlib.Path, label_bytes: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  raw = np.fromfile(path, np.uint8)
  record = label_bytes + 3 * _SIDE * _SIDE
  if not raw.size or raw.size % record:
    raise ValueError(
      f"{path} is damaged: {raw.size} bytes are no multiple of {record};"
      " download it again"
    )
  rows = raw.reshape(-1, record)
  y = rows[:, label_bytes - 1]
  if y.max() >= num_classes:
    raise ValueError(
      f"{path} is damaged: record {y.argmax()} has label {y.max()};"
      f" labels run from 0 to {num_classes - 1}"
    )
  planes = rows[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), y


def _tiles(paths: Sequence[pathlib.Path], count: int) -> np.ndarray:
  x = np.concatenate([_read_sheet(path) for path in paths])
  # Padding fills the last row only, so a whole missing row is a damaged file.
  if not 0 <= len(x) - count < _TILES_A_ROW:
    raise ValueError(
      f"{paths[0].parent} holds {len(x)} {paths[0].stem.split('_')[0]} tiles for"
      f" {count} labels; get the sheets again"
    )
  return x[:count]


def _read_sheet(path: pathlib.Path) -> np.ndarray:
  import PIL.Image

  try:
    with PIL.Image.open(path) as image:
      sheet = np.asarray(image.convert("RGB"))
  except (OSError, SyntaxError) as error:
    raise ValueError(f"{path} is damaged: {error}; get it again") from error
  height, width, _ = sheet.shape
  if height % _SIDE or width != _SIDE * _TILES_A_ROW:
    raise ValueError(
      f"{path} is {height} x {width} pixels; a sheet is {_SIDE * _TILES_A_ROW} wide and"
      f" a multiple of {_SIDE} high"
    )
  tiles = sheet.reshape(-1, _SIDE, _TILES_A_ROW, _SIDE, 3).swapaxes(1, 2)
  return tiles.reshape(-1, _SIDE, _SIDE, 3)

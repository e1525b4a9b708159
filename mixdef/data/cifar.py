"""Read the official binary files of CIFAR-10 and CIFAR-100."""

import pathlib
from collections.abc import Sequence

import numpy as np

from mixdef.data import files
from mixdef.data.dataset import Dataset

CIFAR10_NAMES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR100_NAMES = ("train.bin", "test.bin")
_SIDE = 32


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

"""Reader of the official binary files of CIFAR-10 and CIFAR-100."""

import pathlib
from collections.abc import Sequence

import numpy as np

from mixdef.data import counts, files
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
  num_records: tuple[int, int],
) -> Dataset | None:
  """Return the `Dataset` of the official binary files, or None if none exists.

  A record is `label_bytes` labels, the finest last, and 3 planes of 32 x 32 bytes.

  Args:
    data_dir: the files are in data_dir/name, data_dir/folder or data_dir itself.
    name: canonical name of the set.
    folder: name of the folder in the official archive.
    names: file names, the test file last.
    label_bytes: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, fine).
    num_classes: number of classes K.
    num_records: total number of records of the training files, and of the test file.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged; the line names it.
  """
  paths = files.find(data_dir, (name, folder, ""), names)
  if paths is None:
    return None
  train, test = num_records
  sizes = [*[train // (len(names) - 1)] * (len(names) - 1), test]
  *parts, held_out = (
    _read_records(path, label_bytes, num_classes, count)
    for path, count in zip(paths, sizes, strict=True)
  )
  x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  return counts.dataset(
    *(paths[0].parent, x, y),
    name=name,
    num_classes=num_classes,
    num_records=num_records,
    balanced=True,
    test=held_out,
  )


def _read_records(
  path: pathlib.Path, label_bytes: int, num_classes: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  raw = np.frombuffer(files.read_bytes(path), np.uint8)
  record, other = (n + 3 * _SIDE * _SIDE for n in (label_bytes, 3 - label_bytes))
  if raw.size and not raw.size % other and raw.size % record:
    raise ValueError(
      f"{path} has records of {other} bytes, like "
      f"{'cifar100' if label_bytes == 1 else 'cifar10'}, not {record}; keep each data "
      "set in a folder of its name"
    )
  if not raw.size or raw.size % record:
    raise files.damaged(path, f"{raw.size} bytes are not a multiple of {record}")
  rows = raw.reshape(-1, record)
  counts.check_count(path, len(rows), count, "records")
  y = rows[:, label_bytes - 1]
  if y.max() >= num_classes:
    raise files.damaged(
      path,
      f"record {y.argmax()} has label {y.max()}; labels run from 0 to"
      f" {num_classes - 1}",
    )
  planes = rows[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), y

"""Read the idx files of MNIST and Fashion-MNIST."""

import gzip
import pathlib
import zlib

import numpy as np

from mixdef.data import files, validate
from mixdef.data.dataset import Dataset

NAMES = (
  "train-images-idx3-ubyte.gz",
  "train-labels-idx1-ubyte.gz",
  "t10k-images-idx3-ubyte.gz",
  "t10k-labels-idx1-ubyte.gz",
)
# Both sets use the same file names: their first labels tell them apart.
_FIRST_LABELS = {
  "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
  "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
}


def read(data_dir: pathlib.Path, name: str) -> Dataset | None:
  """Return the `Dataset` of the four idx files, or None if none of them is there.

  Args:
    data_dir: the files lie in data_dir/name or in data_dir itself.
    name: canonical name of the set.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged or of the other set; the line names it.
  """
  paths = files.find((data_dir / name, data_dir), NAMES)
  if paths is None:
    return None
  x, y, test_x, test_y = (read_idx(path) for path in paths)
  for images, labels, path in ((x, y, paths[1]), (test_x, test_y, paths[3])):
    if len(images) != len(labels):
      raise ValueError(
        f"{path} holds {len(labels)} labels for {len(images)} images;"
        " download the four files again"
      )
    validate.label_range(labels, 10, str(path))
  for other, first in _FIRST_LABELS.items():
    if other != name and y[:10].tolist() == first:
      raise ValueError(
        f"{paths[1]} holds {other}, not {name}; keep each set in a folder of its name"
      )
  with files.named(paths[0].parent):
    return Dataset.from_arrays(
      x[..., None], y, name=name, test=(test_x[..., None], test_y), num_classes=10
    )


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Return the uint8 array of one idx file, compressed or not.

  The header is two zero bytes, the type (8 = unsigned byte), the number of axes (3 in
  a file of images, 1 in one of labels), and each axis as a big-endian int32.
  """
  try:
    raw = path.read_bytes()
    if path.suffix == ".gz":
      raw = gzip.decompress(raw)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise _damaged(path, f"it does not decompress ({error})") from error
  axes = 3 if "idx3" in path.name else 1
  start = 4 + 4 * axes
  if raw[:4] != bytes([0, 0, 8, axes]) or len(raw) < start:
    raise _damaged(path, f"it starts with {raw[:4].hex()}, not 0000080{axes}")
  shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">i4"))
  if min(shape) < 1:
    raise _damaged(path, f"shape {shape} holds no record")
  expected = int(np.prod(shape))
  if len(raw) - start != expected:
    raise _damaged(
      path, f"shape {shape} needs {expected} bytes, not {len(raw) - start}"
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _damaged(path: pathlib.Path, why: str) -> ValueError:
  return ValueError(f"{path} is damaged: {why}; download it again")

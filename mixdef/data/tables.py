"""Reader of tables of binary features, with bits packed in an npz file."""

import pathlib

import numpy as np

from mixdef.data import counts, files
from mixdef.data.dataset import Dataset


def read_packed(
  data_dir: pathlib.Path,
  *,
  name: str,
  num_features: int,
  num_classes: int,
  num_records: int,
) -> Dataset:
  """Return the `Dataset` of data_dir/name.npz or data_dir/name/name.npz.

  The file holds `x` (bits packed along axis 1), `n_features` and labels `y`.

  Args:
    data_dir: folder of the file, or the folder above it.
    name: canonical name of the set.
    num_features: number of features of the set.
    num_classes: number of classes K.
    num_records: number of records of the set.

  Returns:
    A `Dataset` of float32 zeros and ones without a test file.

  Raises:
    FileNotFoundError: the file is not there.
    ValueError: the file is damaged or of another set; the line names it.
  """
  found = files.find(data_dir, ("", name), (f"{name}.npz",))
  if found is None:
    raise FileNotFoundError(
      f"{name}: {data_dir / name}.npz is missing; put it there (arrays x of packed"
      " bits, n_features, y), or set data_dir or MIXDEF_DATA"
      f" ({files.contents(data_dir)})"
    )
  (path,) = found
  table = files.read_npz(path, ("x", "y", "n_features"))
  packed, width = table["x"], num_features
  if table["n_features"].shape or table["n_features"] != width:
    raise ValueError(
      f"{path} is not {name}: n_features is {table['n_features'].tolist()!r},"
      f" not {width}"
    )
  if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-width // 8):
    raise ValueError(
      f"{path} is damaged: x is {packed.dtype} {packed.shape}, but {width} features "
      f"pack into {-(-width // 8)} bytes per record"
    )
  counts.check_count(path, len(packed), num_records, "records")
  x = np.unpackbits(packed, axis=1, count=width).astype(np.float32)
  data = counts.dataset(path, x, table["y"], name=name, num_classes=num_classes)
  counts.check_classes(path, data.y, name, num_classes)
  return data

"""Reader of arrays in an npz file, or of npy files in a folder."""

import pathlib

import numpy as np
from absl import logging

from mixdef.core import reading
from mixdef.data import columns, files
from mixdef.data.columns import Columns, Roles
from mixdef.data.dataset import Dataset

_FIX = "write it with numpy.savez(path, x=x, y=y)"
_FIX_OF_FOLDER = "write it with numpy.save(path, array)"
_MAPPED = 2**30  # bytes from which an array stays in its file


def is_folder(path: pathlib.Path) -> bool:
  """Return whether a folder holds arrays."""
  return any((path / f"{name}.npy").exists() for name in ("x", "x_train"))


def dataset(
  path: pathlib.Path, roles: Roles, *, name: str, test: pathlib.Path | None
) -> Dataset:
  """Return the `Dataset` of the arrays x [N, ...] and y of an npz file or a folder.

  Arrays named x_train and y_train are read in the same way. x_test and y_test are
  held-out records, unless `test` is another file. Records of at least 1 GiB stay in
  their file, unless it is compressed.

  Args:
    path: the npz file, or a folder of npy files with the names of their arrays.
    roles: names of the arrays of labels, groups and ids; labels default to "y".
    name: name of the data set.
    test: another file with held-out records, or None.

  Raises:
    ValueError: naming the file, the array and the fix.
  """
  roles = roles._replace(label=roles.label or "y")
  arrays = _read(path)
  held_out = None
  if test is not None:
    held_out = _chosen(_read(test), roles, str(test)), str(test)
  elif "x_test" in arrays:
    names = [key for key in ("x", roles.label) if f"{key}_test" in arrays]
    given = {key: arrays.pop(f"{key}_test") for key in names}
    held_out = (
      _chosen(given, Roles(roles.label), str(path)),
      f"{path}, held-out records",
    )
  train = {key.removesuffix("_train"): value for key, value in arrays.items()}
  return columns.dataset(
    _chosen(train, roles, str(path)), roles, str(path), name=name, test=held_out
  )


def _read(path: pathlib.Path) -> dict:
  if path.is_dir():
    found = {
      file.stem: reading.read_npy(file, fix=_FIX_OF_FOLDER, mapped_from=_MAPPED)
      for file in files.entries(path)
      if file.suffix == ".npy"
    }
  else:
    found = reading.read_npz(path, fix=_FIX, mapped_from=_MAPPED)
  for name, array in found.items():
    if isinstance(array, np.memmap):
      logging.info("%s: %s stays there (%.3g GB)", path, name, array.nbytes / 1e9)
  return found


def _chosen(arrays: dict, roles: Roles, place: str) -> Columns:
  wanted = ["x", *filter(None, roles)]
  for key in wanted:
    if key not in arrays:
      raise ValueError(
        f"{place} has no array {key!r}; it holds {', '.join(arrays) or 'none'}: {_FIX}"
      )
  if unread := sorted(set(arrays) - set(wanted)):
    logging.info("%s: %s are not read", place, ", ".join(unread))
  if arrays["x"].ndim < 2:
    raise ValueError(
      f"{place}: x has shape {arrays['x'].shape}; reshape it to [records, features]"
    )
  return columns.of_frame({key: arrays[key] for key in wanted}, place)

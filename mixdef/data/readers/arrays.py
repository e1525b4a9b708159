"""Reader of arrays in an npz file."""

import pathlib

from absl import logging

from mixdef.core import reading
from mixdef.data import columns
from mixdef.data.columns import Columns, Roles
from mixdef.data.dataset import Dataset

_FIX = "write it with numpy.savez(path, x=x, y=y)"


def dataset(
  path: pathlib.Path, roles: Roles, *, name: str, test: pathlib.Path | None
) -> Dataset:
  """Return the `Dataset` of the arrays x [N, ...] and y of an npz file.

  Arrays named x_train and y_train are read in the same way. x_test and y_test are
  held-out records, unless `test` is another file.

  Args:
    path: the file.
    roles: names of the arrays of labels, groups and ids; labels default to "y".
    name: name of the data set.
    test: another file with held-out records, or None.

  Raises:
    ValueError: naming the file, the array and the fix.
  """
  roles = roles._replace(label=roles.label or "y")
  arrays = reading.read_npz(path, fix=_FIX)
  held_out = None
  if test is not None:
    held_out = _chosen(reading.read_npz(test, fix=_FIX), roles, str(test)), str(test)
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

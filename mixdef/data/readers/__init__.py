"""Readers of custom data, one module per format."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

from mixdef.core.files import exists, path_of
from mixdef.data import files
from mixdef.data.columns import Columns, Roles, dataset
from mixdef.data.dataset import Dataset
from mixdef.data.readers import arrays, huggingface, pictures, tables, tensorflow

TABLES: dict[str, Callable[[pathlib.Path], Columns]] = {
  ".csv": tables.read_csv,
  ".csv.gz": tables.read_csv,
  ".tsv": tables.read_csv,
  ".parquet": tables.read_parquet,
}
ARRAYS = ".npz"
HUBS = (huggingface.PREFIX, tensorflow.PREFIX)


def read(
  path: str | os.PathLike[str], *, roles: Roles, test: Any = None, schema: Any = None
) -> Dataset:
  """Read a file or a folder.

  Args:
    path: a table (.csv, .tsv, .parquet), arrays (.npz), a folder of arrays (x.npy,
      y.npy), or a folder of pictures with a subfolder for each class.
    roles: the columns that are not features.
    test: path of held-out records of the same format, or None.
    schema: how the columns of a table become features; see `read_schema`.

  Returns:
    A `Dataset` with the name of the file, without its suffix.

  Raises:
    ValueError: naming the file, the column or row, and the fix.
    FileNotFoundError: there is no such file.
  """
  path = _existing(path, "dataset")
  test = None if test is None else _existing(test, "test")
  if path.is_dir() and not arrays.is_folder(path):
    _refuse(path, "a folder of pictures has no columns", roles, schema)
    return pictures.dataset(path, name=path.name, test=test)
  name = path.name.split(".")[0]
  if path.is_dir() or path.name.lower().endswith(ARRAYS):
    kind = "this folder" if path.is_dir() else "an npz"
    _refuse(path, f"{kind} holds arrays", Roles(), schema)
    return arrays.dataset(path, roles, name=name, test=test)
  read = _reader(path)
  held_out = None if test is None else (_reader(test)(test), str(test))
  return dataset(read(path), roles, str(path), name=name, schema=schema, test=held_out)


def is_path(name: Any) -> bool:
  """Return whether a name has the form of a path.

  >>> [is_path(name) for name in ("digits", "my.csv", "runs/x.npz", "mod:make")]
  [False, True, True, False]
  """
  if isinstance(name, os.PathLike):
    return True
  return "/" in name or os.sep in name or name.lower().endswith((*TABLES, ARRAYS))


def _existing(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  place = path_of(path, what)
  if not exists(place):
    raise FileNotFoundError(
      f"{place} is missing; pass a file or a folder ({files.contents(place.parent)})"
    )
  return place


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Columns]:
  for suffix, reader in TABLES.items():
    if path.name.lower().endswith(suffix):
      return reader
  raise ValueError(
    f"{path} has an unknown format: pass .csv, .tsv, .parquet, .npz, a folder of x.npy "
    "and y.npy, or of pictures with a subfolder for each class, or read it with pandas "
    "and pass it to Dataset.from_dataframe"
  )


def _refuse(path: pathlib.Path, why: str, roles: Roles, schema: Any) -> None:
  given = {**roles._asdict(), "schema": schema}
  for name, value in given.items():
    if value is not None:
      raise ValueError(f"{path}: {why}: drop {name}={value!r}")


__all__ = ["HUBS", "Roles", "huggingface", "is_path", "read", "tensorflow"]

"""Find and open the files of a set under a data folder."""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def find(
  folders: Iterable[pathlib.Path], names: Sequence[str]
) -> list[pathlib.Path] | None:
  """Return the paths of `names` in the first folder that holds any of them.

  Args:
    folders: in order of preference.
    names: of the files; each may also be present without its `.gz`.

  Returns:
    A list of paths as long as `names`, or None if no folder holds one of them.

  Raises:
    FileNotFoundError: a folder holds some of the files only.
  """
  for folder in folders:
    found = {name: path for name in names if (path := _either(folder, name))}
    missing = [name for name in names if name not in found]
    if found and missing:
      raise FileNotFoundError(
        f"{folder} lacks {', '.join(missing)}; put all {len(names)} files there"
      )
    if found:
      return list(found.values())
  return None


def read_npz(path: pathlib.Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
  """Return {key: array} of an npz file without pickled objects."""
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      missing = [key for key in keys if key not in archive]
      if missing:
        raise ValueError(f"it has no array {missing[0]!r}")
      return {key: archive[key] for key in keys}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is damaged: {first_line(error)}; get it again") from error


@contextlib.contextmanager
def named(place: os.PathLike[str]) -> Iterator[None]:
  """Say in a `ValueError` about arrays which file or folder they were read from."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from error


def first_line(error: Exception) -> str:
  """Return the first line of an error of another library, for a line of ours."""
  return str(error).split("\n", 1)[0]


def _either(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  paths = (folder / name, folder / name.removesuffix(".gz"))
  return next((path for path in paths if path.is_file()), None)

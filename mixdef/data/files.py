"""Find and open the files of a set under a data folder."""

import contextlib
import csv
import gzip
import io
import os
import pathlib
import zipfile
import zlib
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


def read_text(path: pathlib.Path) -> str:
  """Return the text of a file, compressed or not."""
  try:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
  except (ValueError, OSError, EOFError, zlib.error) as error:
    raise ValueError(f"{path} is damaged: {first_line(error)}; get it again") from error


def csv_rows(path: pathlib.Path) -> list[tuple[int, list[str]]]:
  """Return (line number, fields) of the rows of a csv file that are not empty."""
  lines = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
  try:
    return [(lines.line_num, row) for row in lines if row]
  except csv.Error as error:
    raise ValueError(f"{path} is damaged: {error}; get it again") from error


def read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """Return the rows of a csv file with a header, reduced to these columns.

  Args:
    path: of the file, compressed or not.
    columns: names; capital letters make no difference.

  Raises:
    ValueError: a column or a field is missing; the line names the file.
  """
  (_, header), *rows = csv_rows(path) or [(1, [])]
  header = [name.strip().lower() for name in header]
  if missing := [name for name in columns if name.lower() not in header]:
    raise ValueError(f"{path} is damaged: it has no column {missing[0]}; get it again")
  for line, row in rows:
    if len(row) != len(header):
      raise ValueError(
        f"{path} is damaged: line {line} has {len(row)} fields, not {len(header)};"
        " get it again"
      )
  places = [header.index(name.lower()) for name in columns]
  return [tuple(row[place] for place in places) for _, row in rows]


def missing(
  name: str, folder: pathlib.Path, wanted: str, advice: str
) -> FileNotFoundError:
  """Return the error that says what a set needs, where, and how to get it.

  Args:
    name: canonical name of the set.
    folder: that should hold the files.
    wanted: the files.
    advice: where they come from and on what terms.
  """
  return FileNotFoundError(
    f"{name}: {folder} needs {wanted}; {advice}, or set data_dir or MIXDEF_DATA"
  )


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

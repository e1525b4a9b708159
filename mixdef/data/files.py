"""Functions that find and open the files of a set under a data folder.

All readers use them, so that any problem with a file, or with its folder, is reported
in one line with the path and the fix.
"""

import contextlib
import csv
import errno
import gzip
import io
import os
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mixdef.core import extras, reading
from mixdef.core import files as core_files
from mixdef.core.files import is_clutter
from mixdef.core.reading import Damaged

_SHOWN = 6  # maximal number of file names in a message
_DELIMITERS = ",;\t"
_PICTURES = (".jpg", ".jpeg")


def find(
  data_dir: pathlib.Path, folders: Sequence[str], names: Sequence[str]
) -> list[pathlib.Path] | None:
  """Return the paths of `names` in the first folder that holds all of them.

  Case, hyphens, underscores and dots are ignored. A file may be one folder deeper, as
  some archives unpack, and `data_dir` may itself be one of the folders.

  Args:
    data_dir: folder of all sets.
    folders: subfolders of `data_dir`, in order of preference; "" is `data_dir` itself.
    names: names of the files; each may also be present without its `.gz`.

  Returns:
    A list of paths as long as `names`, or None if no folder holds any of them.

  Raises:
    FileNotFoundError: a folder holds some of the files only.
    ValueError: a file is none, but a folder or a device.
  """
  incomplete = None
  for folder in _places(data_dir, folders):
    found = {name: path for name in names if (path := _variant(folder, name))}
    if len(found) == len(names):
      return [_checked(path) for path in found.values()]
    if found and not incomplete:
      lacking = ", ".join(name for name in names if name not in found)
      incomplete = FileNotFoundError(
        f"{folder} lacks {lacking}; put all {len(names)} files there"
        f" ({contents(folder)})"
      )
  if incomplete:
    raise incomplete
  return None


def child(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """Return folder/name if it exists, ignoring case."""
  exact = folder / name
  # `lexists`, so that a broken link is found and can be reported.
  there = core_files.exists if core_files.on_bucket(exact) else os.path.lexists
  if there(exact):
    return exact
  alike = (path for path in entries(folder) if _plain(path.name) == _plain(name))
  return next(alike, None)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the sorted entries of a folder, without files created by desktops."""
  try:
    found = sorted(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise unreadable(folder, error) from error
  return [path for path in found if not is_clutter(path)]


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the folders in a folder, sorted."""
  return [path for path in entries(folder) if path.is_dir()]


def pictures(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the sorted JPEG files in a folder, or else those one folder deeper."""
  here = [path for path in entries(folder) if path.suffix.lower() in _PICTURES]
  deeper = folder / folder.name  # as some archives unpack
  return pictures(deeper) if not here and deeper.is_dir() else here


def contents(folder: pathlib.Path) -> str:
  """Describe the content of a folder, for the message that a file is missing."""
  if not folder.is_dir():
    kind = "it is a file" if folder.exists() else "there is no such folder"
    above = folder.parent
    return f"{kind}; {above}: {contents(above)}" if above.is_dir() else kind
  # Names may contain unprintable characters, line ends or bytes that are not UTF-8.
  names = [re.sub(r"[^ -~\w]", "?", path.name) for path in entries(folder)]
  if not names:
    return "it is empty"
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f"it contains {', '.join(names[:_SHOWN])}{more}"


def missing(
  name: str, folder: pathlib.Path, wanted: str, advice: str
) -> FileNotFoundError:
  """Return the error for missing files, with the folder and how to get them.

  Args:
    name: canonical name of the set.
    folder: folder that should hold the files.
    wanted: the missing files.
    advice: their source and terms of use.
  """
  return FileNotFoundError(
    f"{name}: {folder} needs {wanted}; {advice}, or set data_dir or MIXDEF_DATA"
    f" ({contents(folder)})"
  )


@contextlib.contextmanager
def decoding(path: pathlib.Path, fix: str = "download it again") -> Iterator[None]:
  """Convert any error of a reader into one line with the path and the fix.

  Args:
    path: path of the file that is read.
    fix: what to do about a damaged file.

  Raises:
    ValueError: the file is damaged.
    OSError: it is whole, for all one knows, but cannot be read.
  """
  try:
    if path.exists():
      _checked(path)
    yield
  except Damaged:
    raise
  except OSError as error:
    # For damaged content, decoders raise an OSError without errno, or seek to an
    # invalid offset.
    if error.errno not in (None, errno.EINVAL):
      raise unreadable(path, error) from error
    raise damaged(path, first_line(error), fix) from error
  except Exception as error:
    raise damaged(path, first_line(error), fix) from error


def damaged(path: pathlib.Path, why: str, fix: str = "download it again") -> Damaged:
  """Return the error for a file with damaged content."""
  return Damaged(f"{path} is damaged: {why}{instead(path)}; {fix}")


def unreadable(path: pathlib.Path, error: OSError) -> OSError:
  """Return the error for a file that cannot be read, regardless of its content."""
  fix = "fix the cause and run again: the file may be intact"
  if isinstance(error, PermissionError):
    fix = f"give this user the right to read it: chmod -R u+rX '{path}'"
  return type(error)(f"{path} cannot be read: {error.strerror}; {fix}")


def instead(path: pathlib.Path) -> str:
  """Describe what often takes the place of a file, for the error message."""
  try:
    with core_files.opened(path) as file:
      head = file.read(200).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  except OSError:
    return ""
  if not head:
    return " (it is empty)"
  if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
    return " (it is a web page: the server sent a message instead of the file)"
  if head.startswith(b"version https://git-lfs"):
    return " (it is a pointer of Git LFS: run git lfs pull)"
  return ""


def read_bytes(path: pathlib.Path) -> bytes:
  """Return the bytes of a file."""
  with decoding(path):
    return core_files.read_bytes(path)


def decompressed(path: pathlib.Path) -> bytes:
  """Return the bytes of a file, decompressing gzip regardless of the file's name."""
  raw = read_bytes(path)
  with decoding(path):
    return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw


def read_npz(path: pathlib.Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
  """Return {key: array} of an npz file without pickled objects."""
  what, fix = f"is damaged{instead(path)}", "download it again"
  with decoding(path):
    arrays = reading.read_npz(path, what=what, fix=fix)
  if lacking := [key for key in keys if key not in arrays]:
    raise damaged(path, f"it has no array {lacking[0]!r}")
  return {key: arrays[key] for key in keys}


def read_text(path: pathlib.Path, fix: str = "download it again") -> str:
  """Return the text of a file, compressed or not, without a byte order mark."""
  raw = decompressed(path)
  utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
  with decoding(path, fix):
    text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:
      raise ValueError("it contains zero bytes, so it is not UTF-8 text")
    return text


def read_picture(path: pathlib.Path, mode: str | None = None) -> np.ndarray:
  """Return the pixels of a picture: [H, W] for mode "L", [H, W, 3] for "RGB"."""
  content = io.BytesIO(read_bytes(path))
  with decoding(path):
    return decode_picture(content, path, mode)


def decode_picture(
  content: Any, place: str | os.PathLike[str], mode: str | None = None
) -> np.ndarray:
  """Return the pixels of an encoded picture, as `read_picture` does.

  Args:
    content: the encoded picture, a file opened for reading bytes.
    place: the file or row, for the error message.
    mode: "L", "RGB", or None to keep that of the picture.

  Raises:
    ValueError: it has more than 8 bits per channel where a mode is given.
  """
  extras.require("PIL")
  import PIL.Image

  with warnings.catch_warnings():
    # Damaged metadata causes only warnings. It can also turn a small picture into a
    # huge one.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
    with PIL.Image.open(content) as picture:
      picture.verify()  # checks PNG checksums; nothing can be read afterwards
    with PIL.Image.open(content) as picture:
      if mode and picture.mode[0] in "IF":
        raise Damaged(
          f"{place} has more than 8 bits per channel; save it with 8, as RGB or gray"
        )
      return np.asarray(picture.convert(mode) if mode else picture)


def delimiter(text: str) -> str:
  """Return the delimiter of a csv file: comma, semicolon or tab, by its first line."""
  first = text.lstrip().partition("\n")[0]
  return max(_DELIMITERS, key=first.count)


def csv_rows(path: pathlib.Path) -> list[tuple[int, list[str]]]:
  """Return (line number, fields) of the nonempty rows of a csv file.

  The fields are separated by commas, semicolons or tabs, and stripped of spaces.
  """
  text = read_text(path)
  lines = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter(text), skipinitialspace=True
  )
  with decoding(path):
    rows = [(lines.line_num, [field.strip() for field in row]) for row in lines]
  return [(line, row) for line, row in rows if any(row)]


def read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """Return the given columns of a csv file with a header, row by row.

  Args:
    path: path of the file, compressed or not.
    columns: names of the columns; case is ignored.

  Raises:
    ValueError: a column or a field is missing; the line names the file.
  """
  (_, header), *rows = csv_rows(path) or [(1, [])]
  header = [name.lower() for name in header]
  if lacking := [name for name in columns if name.lower() not in header]:
    raise damaged(path, f"it has no column {lacking[0]}")
  for line, row in rows:
    if len(row) != len(header):
      raise damaged(path, f"line {line} has {len(row)} fields, not {len(header)}")
  places = [header.index(name.lower()) for name in columns]
  return [tuple(row[place] for place in places) for _, row in rows]


@contextlib.contextmanager
def named(place: str | os.PathLike[str]) -> Iterator[None]:
  """Add the file or folder that arrays were read from to any `ValueError`."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from error


def first_line(error: Exception) -> str:
  """Return the first line of another library's error, for use in a message."""
  return str(error).strip().split("\n", 1)[0].rstrip(":") or type(error).__name__


def _places(data_dir: pathlib.Path, folders: Sequence[str]) -> Iterator[pathlib.Path]:
  for name in folders:
    if not name or _plain(data_dir.name) == _plain(name):
      yield data_dir
    if name and (folder := child(data_dir, name)):
      yield folder
      yield from subfolders(folder)


def _plain(name: str) -> str:
  return re.sub("[-_. ]", "", name).lower()


def _variant(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  path = child(folder, name) or child(folder, name.removesuffix(".gz"))
  # Some archives unpack each file into a folder with the file's name.
  return (child(path, path.name) or path) if path and path.is_dir() else path


def _checked(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    return path
  if path.is_dir():
    raise Damaged(f"{path} is a folder; put the file of that name in its place")
  if path.is_symlink():
    raise FileNotFoundError(
      f"{path} links to {os.readlink(path)}, which does not exist; fix the link"
    )
  raise Damaged(f"{path} is not a regular file; put the file of that name in its place")

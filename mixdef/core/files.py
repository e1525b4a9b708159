"""User-supplied paths, and atomic file writes."""

import contextlib
import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

_CLUTTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r")


def local_path(path: str | os.PathLike, name: str = "path") -> pathlib.Path:
  """Return a user-supplied path with `~` expanded.

  Args:
    path: path of a file or folder.
    name: name of the argument, for the error message.

  Raises:
    ValueError: if it is empty, or starts with the name of an unknown user.
    TypeError: if it is not a path.

  >>> local_path("runs/digits").as_posix()
  'runs/digits'
  """
  if not isinstance(path, str | os.PathLike):
    raise TypeError(f"{name}={path!r} must be a path, as text or pathlib.Path")
  if not os.fspath(path):
    raise ValueError(f"{name} is empty: pass the path of a file or folder, or omit it")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise ValueError(f"{name}={str(path)!r}: {error}") from None


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a temporary file next to `path`, and rename it once it is fully written.

  Args:
    path: destination; an existing file is kept until the new one is complete.

  Yields:
    The file, open for writing bytes.

  Raises:
    OSError: if `path` cannot be written or the disk is full; no partial file remains.
  """
  fresh = path.with_name(f"new-{path.name}")
  try:
    try:
      with fresh.open("wb") as file:
        yield file
      os.replace(fresh, path)
    finally:
      fresh.unlink(missing_ok=True)
  except OSError as error:
    if error.filename not in (None, str(fresh)):
      raise  # the error concerns another file, which the caller was reading
    reason = (
      f"{error.strerror}: nothing was changed there, so fix the cause and run again"
    )
    raise OSError(error.errno, reason, str(path)) from None


def write_text(path: pathlib.Path, text: str) -> None:
  """Write text as UTF-8; see `whole_file`."""
  with whole_file(path) as file:
    file.write(text.encode())


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Write a table with a header; values missing from a row are left empty."""
  text = io.StringIO(newline="")
  table = csv.DictWriter(text, columns)
  table.writeheader()
  table.writerows(rows)
  write_text(path, text.getvalue())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Write JSON; see `whole_file`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def save_figure(figure: Any, path: str | pathlib.Path) -> None:
  """Save a matplotlib figure; the file's suffix selects the format."""
  path = local_path(path)
  with whole_file(path) as file:
    figure.savefig(file, format=path.suffix[1:], dpi=150)


def is_clutter(path: str | os.PathLike[str]) -> bool:
  """Return whether a file or folder was created by the operating system, without data.

  Args:
    path: path of a file or folder; only its name matters.

  Returns:
    True for hidden files, such as macOS's `.DS_Store` and `._name`, for its folder
    `__MACOSX`, and for Windows' `Thumbs.db` and `desktop.ini`.

  >>> [name for name in ("._1.jpg", "Thumbs.db", "1.jpg") if not is_clutter(name)]
  ['1.jpg']
  """
  name = pathlib.PurePath(path).name
  return name.startswith(".") or name.lower() in _CLUTTER

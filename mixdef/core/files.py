"""Paths that users give, and files of which a reader never finds half."""

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
  """Return a path that a user gave, with `~` expanded.

  Args:
    path: of a file or folder.
    name: of the argument, for the message.

  Raises:
    ValueError: if it is empty, or starts with the name of an unknown user.
    TypeError: if it is no path.

  >>> local_path("runs/digits").as_posix()
  'runs/digits'
  """
  if not isinstance(path, str | os.PathLike):
    raise TypeError(f"{name}={path!r} must be a path, as text or pathlib.Path")
  if not os.fspath(path):
    raise ValueError(f"{name} is empty: name a file or folder, or leave it out")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise ValueError(f"{name}={str(path)!r}: {error}") from None


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a file beside `path`, and move it there once all of it is written.

  Args:
    path: where the file belongs; one that is there stays until the new one is whole.

  Yields:
    The file, open for writing bytes.

  Raises:
    OSError: naming `path`, if it cannot be written or the disk is full; nothing half
      written stays behind.
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
      raise  # of another file, which the caller was reading
    reason = f"{error.strerror}: nothing was changed there, so mend that and run again"
    raise OSError(error.errno, reason, str(path)) from None


def write_text(path: pathlib.Path, text: str) -> None:
  """Write text as UTF-8; see `whole_file`."""
  with whole_file(path) as file:
    file.write(text.encode())


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Write a table with a header; a value that a row lacks stays empty."""
  text = io.StringIO(newline="")
  table = csv.DictWriter(text, columns)
  table.writeheader()
  table.writerows(rows)
  write_text(path, text.getvalue())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Write JSON; see `whole_file`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def save_figure(figure: Any, path: str | pathlib.Path) -> None:
  """Draw a matplotlib figure into a file of the format of its suffix."""
  path = local_path(path)
  with whole_file(path) as file:
    figure.savefig(file, format=path.suffix[1:], dpi=150)


def is_clutter(path: str | os.PathLike[str]) -> bool:
  """Tell whether a desktop made this file or folder: it is nobody's data.

  Args:
    path: of a file or folder; only its name counts.

  Returns:
    True for hidden files, such as macOS's `.DS_Store` and `._name`, for its folder
    `__MACOSX`, and for Windows' `Thumbs.db` and `desktop.ini`.

  >>> [name for name in ("._1.jpg", "Thumbs.db", "1.jpg") if not is_clutter(name)]
  ['1.jpg']
  """
  name = pathlib.PurePath(path).name
  return name.startswith(".") or name.lower() in _CLUTTER

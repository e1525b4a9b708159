"""Write a file so that a reader finds the old one or the new one, never half of one."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any


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
  fresh = path.with_name(path.name + ".new")
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


def write_json(path: pathlib.Path, value: Any) -> None:
  """Write JSON; see `whole_file`."""
  write_text(path, json.dumps(value, indent=2) + "\n")

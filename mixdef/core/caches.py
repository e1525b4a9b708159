"""Where work is kept that would only be done again: compiled programs, libraries."""

import functools
import os
import pathlib

from absl import logging


@functools.cache
def folder(name: str) -> pathlib.Path | None:
  """Return a folder under ~/.cache/mixdef, made if it is not there.

  Args:
    name: what is kept there.

  Returns:
    The folder; None, with one line in the log, where there is no home folder or
    nothing can be written to it.
  """
  try:
    path = pathlib.Path.home() / ".cache" / "mixdef" / name
    if not path.is_absolute():
      raise OSError(f"HOME={os.environ.get('HOME')!r} is no folder")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      raise PermissionError(f"{path} cannot be written")
  except (
    OSError,
    RuntimeError,
  ) as error:  # RuntimeError: nobody's home folder is known
    logging.info("nothing is kept in a cache of %s: %s", name, error)
    return None
  return path

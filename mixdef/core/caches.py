"""Cache folders on disk, for compiled programs and libraries."""

import functools
import os
import pathlib

from absl import logging


@functools.cache
def folder(name: str) -> pathlib.Path | None:
  """Return a folder under ~/.cache/mixdef, creating it if necessary.

  Args:
    name: name of the cache.

  Returns:
    The folder, or None (with one line in the log) if there is no home folder or it is
    not writable.
  """
  try:
    path = pathlib.Path.home() / ".cache" / "mixdef" / name
    if not path.is_absolute():
      raise OSError(f"HOME={os.environ.get('HOME')!r} is not a folder")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      raise PermissionError(f"{path} cannot be written")
  except (
    OSError,
    RuntimeError,
  ) as error:  # RuntimeError: the home folder cannot be determined
    logging.info("%s are not cached: %s", name, error)
    return None
  return path

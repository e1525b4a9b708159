"""A lock that admits one writer per folder, released when its process ends."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Lock a folder for exclusive use by this process.

  The system releases the lock of a killed process. Without `fcntl` (on Windows) nothing
  is locked.

  Raises:
    BlockingIOError: if another process holds it, naming that one.
  """
  try:
    import fcntl
  except ImportError:
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "lock"
  with path.open("a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "another process"
      raise BlockingIOError(
        f"{folder} is being written by {holder}: wait for it, stop it, or choose "
        f"another out folder"
      ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    yield

"""The lock of a run folder: one job at a time writes there.

On this machine it is a lock of the operating system, which releases that of a killed
process at once. On a bucket it is an object that its holder rewrites every few seconds,
as a heartbeat. A process that finds such an object waits for it to change, and measures
the time by its own clock, so that clocks of different hosts are never compared. The
objects are numbered, and each is created by a request that fails if it already exists.
If several processes find the holder dead, only one of them therefore takes the lock.
"""

import contextlib
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from mixdef.core import files

_HEARTBEAT = 10.0  # seconds between two heartbeats of a holder
_TIMEOUT = 60.0  # seconds without a heartbeat after which a holder counts as dead
_POLL = 1.0  # seconds between two reads of the lock of another process


class Lock:
  """A lock of a folder on a bucket, renewed by a thread until it is released.

  Args:
    folder: the run folder.

  Raises:
    BlockingIOError: if another process holds it; the message names that process.
  """

  def __init__(self, folder: Any):
    self._folder = folder
    self._own = _taken(folder)
    self._lost = ""
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raise if another process has taken the lock, after heartbeats were missing.

    Raises:
      BlockingIOError: if it has; the message names that process.
    """
    if self._lost:
      raise _held(self._folder, self._lost)

  def release(self) -> None:
    """Release the lock."""
    self._ended.set()
    self._thread.join()
    if not self._lost:
      files.write_text(self._own, "")

  def _renew(self) -> None:
    count = 0
    while not self._ended.wait(_HEARTBEAT):
      count += 1
      try:
        newest = _newest(self._folder)
        if newest is not None and newest.name > self._own.name:
          self._lost = _holder(_read(newest) or "")
          return
        files.write_text(self._own, f"{_this()}\n{count}")
      except OSError as error:
        logging.warning("the lock of %s was not renewed: %s", self._folder, error)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[Lock | None]:
  """Lock a folder for exclusive use by this process.

  Without `fcntl` (on Windows) only folders on buckets are locked.

  Yields:
    The lock of a folder on a bucket; None on this machine, where it cannot be lost.

  Raises:
    BlockingIOError: if another process holds it; the message names that process.
  """
  if files.on_bucket(folder):
    lock = Lock(folder)
    try:
      yield lock
    finally:
      lock.release()
    return
  files.make_folder(folder)
  with (folder / "lock").open("a+", encoding="utf-8") as file:
    _lock_file(folder, file)
    yield None


def _lock_file(folder, file):
  try:
    import fcntl
  except ImportError:
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise _held(folder, file.read().strip() or "another process") from None
  file.truncate(0)
  file.write(_this())
  file.flush()


def _taken(folder) -> Any:
  """Take the lock of a folder on a bucket, and return its object."""
  while True:
    newest = _newest(folder)
    if newest is not None and not _free(folder, newest):
      continue  # it was removed, because another process has taken the lock
    number = 1 if newest is None else int(newest.name) + 1
    own = folder / "lock" / f"{number:09d}"
    if not files.created(own, f"{_this()}\n0".encode()):
      continue
    others = _all(folder)
    if others[-1].name == own.name:
      for path in others[:-1]:
        files.remove(path)
      return own
    files.remove(own)  # other processes have taken the lock in the meantime


def _free(folder, path) -> bool:
  """Return whether a lock is released or its holder dead; False if it was removed.

  Raises:
    BlockingIOError: if its holder is alive.
  """
  first = text = _read(path)
  if first:
    logging.info(
      "%s is locked by %s: waiting up to %.0f s for a heartbeat",
      *(folder, _holder(first), _TIMEOUT),
    )
  started = time.monotonic()
  while text and time.monotonic() - started < _TIMEOUT:
    time.sleep(_POLL)
    text = _read(path)
    if text and text != first:
      raise _held(folder, _holder(text))
  return text is not None


def _all(folder) -> list[Any]:
  return files.listed(folder, "lock/*")


def _newest(folder) -> Any:
  return max(_all(folder), key=str, default=None)


def _read(path) -> str | None:
  try:
    return files.read_bytes(path).decode(errors="replace")
  except FileNotFoundError:
    return None


def _holder(text) -> str:
  return text.partition("\n")[0] or "another process"


def _held(folder, holder) -> BlockingIOError:
  return BlockingIOError(
    f"{folder} is being written by {holder}: wait for it, stop it, or choose another "
    "out folder"
  )


def _this() -> str:
  return f"process {os.getpid()} on {socket.gethostname()}"

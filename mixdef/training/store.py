"""A run folder that survives a kill: finished models, work in progress, metrics.

```
<folder>/lock               the process that is writing
<folder>/metrics.jsonl      one row per epoch and chunk
<folder>/signature.json     fingerprint of the inputs of all models
<folder>/noise.json         the secret noise seed, if an epsilon is stated
<folder>/strategy.json      execution strategy
<folder>/models/00042/      a finished model, with digests of its own inputs
<folder>/signals-.../00042/  its outputs for the queries with this digest
<folder>/unfinished/...     checkpoints of models in training
```
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import logging

from mixdef.core.files import is_clutter, write_text
from mixdef.core.reading import Damaged, check_form, parse_json
from mixdef.training import entry

METRICS = "metrics.jsonl"
_ROW = {"models": str, "count": int, "epoch": int}


@dataclasses.dataclass(frozen=True)
class Store:
  """Entries named by paths inside one folder, and the rows of its metrics."""

  folder: pathlib.Path

  def save(self, name: str, tree, **notes) -> None:
    """Write a pytree and notes about it, replacing an entry of the same name.

    Raises:
      OSError: if the folder cannot be written or the disk is full.
    """
    path = self._path(name)
    try:
      entry.write(path, tree, {"entry": name, **notes})
    except OSError as error:
      reason = f"{error.strerror}: what is there is whole, so mend that and resume"
      raise OSError(error.errno, reason, str(path)) from None

  def load(self, name: str, template):
    """Load a pytree; a damaged entry is removed with a warning and gives None.

    Args:
      name: name of the entry.
      template: structure, shapes and types of the tree.
    """
    return self._or_drop(name, lambda path: entry.read(path, template))

  def load_arrays(self, name: str) -> dict | None:
    """Load an entry that was a flat dict; damaged entries are handled as in `load`."""
    return self._or_drop(name, entry.read_arrays)

  def notes(self, name: str, form: Any = dict) -> dict | None:
    """Return the notes of an entry; damaged entries are handled as in `load`.

    Args:
      name: name of the entry.
      form: required form of the notes, as in `check_form`.
    """
    return self._or_drop(name, lambda path: entry.read_notes(path, form))

  def has(self, name: str) -> bool:
    """Return whether an entry of that name exists."""
    return self._path(name).exists()

  def forget(self, name: str) -> None:
    """Remove an entry, if it exists."""
    path = self._path(name)
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)

  def names(self, pattern: str) -> list[str]:
    """Return the names of the entries that match a pattern."""
    found = sorted(self.folder.glob(pattern))
    # Entries still being written have a dot in their name.
    return [
      str(path.relative_to(self.folder))
      for path in found
      if "." not in path.name and not is_clutter(path)
    ]

  def read_metrics(self) -> list[dict]:
    """Return the rows of all processes; damaged rows are skipped with a warning.

    A last line truncated by a kill is skipped without a warning.
    """
    rows = {}
    for path in sorted(self.folder.glob(f"{METRICS}*")):
      damaged = 0
      for line in path.read_bytes().split(b"\n")[:-1]:
        try:
          row = parse_json(line, _ROW, finite=False)
          check_form(row.get("seconds", 0.0), float, "seconds")
          rows[row["models"], row["count"], row["epoch"]] = row
        except ValueError:
          damaged += 1
      if damaged:
        logging.warning("%s: %d rows are damaged and left out", path, damaged)
    return list(rows.values())

  def write_metrics(self, rows: Iterable[dict]) -> None:
    """Replace the rows by these; process 0 writes for all processes.

    Rows that other processes have added since are read after these and are kept.
    """
    if jax.process_index() == 0:
      lines = "".join(json.dumps(row) + "\n" for row in rows)
      write_text(self.folder / METRICS, lines)

  def gather_metrics(self) -> None:
    """Merge the rows of all processes into one file."""
    others = list(self.folder.glob(f"{METRICS}.*"))
    if others:
      self.write_metrics(self.read_metrics())
      for path in others:
        path.unlink(missing_ok=True)

  def append_metrics(self, row: dict) -> None:
    """Append a row to the metrics of this process."""
    own = f".{jax.process_index()}" if jax.process_index() else ""
    with (self.folder / (METRICS + own)).open("ab+") as file:
      file.seek(0)
      whole = file.read()
      file.truncate(whole.rfind(b"\n") + 1)  # a kill may have truncated a line
      file.write(json.dumps(row).encode() + b"\n")

  def _or_drop(self, name, read):
    try:
      return read(self._path(name))
    except Damaged as error:
      logging.warning("%s", error)
      self.forget(name)

  def _path(self, name):
    return (self.folder / name).resolve()


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

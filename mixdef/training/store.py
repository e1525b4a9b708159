"""A run folder that survives a kill: finished models, work in progress, metrics.

```
<folder>/lock                   the process that is writing; see `lock`
<folder>/metrics.jsonl          one row per epoch and chunk
<folder>/metrics/...            rows of the chunks of the current run
<folder>/signature.json         fingerprint of the inputs of all models
<folder>/noise.json             the secret noise seed, if an epsilon is stated
<folder>/strategy.json          execution strategy
<folder>/models/00042.npz       a finished model, with digests of its own inputs
<folder>/signals-.../00042.npz  its outputs for the queries with this digest
<folder>/unfinished/...         checkpoints of models in training
```

The folder may be on a bucket. Every file is written completely or not at all, and no
file of a bucket is renamed or appended to.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from absl import logging

from mixdef.core import files
from mixdef.core.reading import Damaged, check_form, parse_json
from mixdef.training import entry
from mixdef.training.lock import Lock

METRICS = "metrics.jsonl"
_PARTS = "metrics/*.jsonl"
_ROW = {"models": str, "count": int, "epoch": int}


@dataclasses.dataclass(frozen=True)
class Store:
  """Entries named by paths inside one folder, and the rows of its metrics.

  Attributes:
    folder: the run folder.
    lock: the lock of the folder, if this process holds it.
  """

  folder: pathlib.Path
  lock: Lock | None = None

  def save(self, name: str, tree, **notes) -> None:
    """Write a pytree and notes about it, replacing an entry of the same name.

    Raises:
      OSError: if the folder cannot be written, the disk is full, or another process
        has taken the lock.
    """
    if self.lock:
      self.lock.check()
    entry.write(self._path(name), tree, {"entry": name, **notes})

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
    return files.exists(self._path(name))

  def forget(self, name: str) -> None:
    """Remove an entry, or a folder of entries, if it exists."""
    files.remove(self._path(name))
    files.remove(self.folder / name)

  def names(self, pattern: str) -> list[str]:
    """Return the names of the entries that match a pattern."""
    return [
      f"{path.parent.name}/{path.stem}"
      for path in files.listed(self.folder, f"{pattern}.npz")
    ]

  def read_metrics(self) -> list[dict]:
    """Return the rows of all processes, those of teachers first.

    Damaged rows are skipped with a warning.
    """
    rows = {}
    for path in [self.folder / METRICS, *files.listed(self.folder, _PARTS)]:
      damaged = 0
      try:
        lines = files.read_bytes(path).splitlines()
      except FileNotFoundError:
        continue
      for line in lines:
        try:
          row = parse_json(line, _ROW, finite=False)
          check_form(row.get("seconds", 0.0), float, "seconds")
          rows[row["models"], row["count"], row["epoch"]] = row
        except ValueError:
          damaged += 1
      if damaged:
        logging.warning("%s: %d rows are damaged and ignored", path, damaged)
    return [rows[key] for key in sorted(rows, key=_place)]

  def write_metrics(self, rows: Iterable[dict]) -> None:
    """Replace all rows by these."""
    _write_rows(self.folder / METRICS, rows)
    files.remove(self.folder / "metrics")

  def gather_metrics(self) -> None:
    """Merge the rows of all chunks into one file."""
    if files.listed(self.folder, _PARTS):
      self.write_metrics(self.read_metrics())

  def write_chunk(self, rows: Sequence[dict]) -> None:
    """Write the rows of a chunk in training, replacing those of its earlier epochs."""
    name = f"{rows[0]['models']}-{rows[0]['count']}"
    _write_rows(self.folder / "metrics" / f"{name}.jsonl", rows)

  def _or_drop(self, name, read):
    try:
      return read(self._path(name))
    except Damaged as error:
      logging.warning("%s", error)
      self.forget(name)

  def _path(self, name):
    return self.folder / f"{name}.npz"


def _place(key):
  name, count, epoch = key
  return not name.startswith("teachers"), name, count, epoch


def _write_rows(path, rows):
  files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

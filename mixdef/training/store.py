"""A run folder that survives being killed: Orbax entries, metrics, a signature."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np


def digest(*arrays) -> str:
  """Hash the content, shape and type of arrays to 16 hexadecimal digits."""
  state = hashlib.sha256()
  for array in arrays:
    array = np.ascontiguousarray(array)
    state.update(f"{array.dtype}{array.shape}".encode())
    state.update(array.tobytes())
  return state.hexdigest()[:16]


def write_json(path: pathlib.Path, value) -> None:
  """Write JSON so that a reader sees the old or the new file, never half of one."""
  fresh = path.with_name(path.name + ".new")
  fresh.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(fresh, path)


class AnotherRun(ValueError):
  """A folder holds a run that differs in something that matters."""


def same_or_refuse(
  path: pathlib.Path, found: dict, *, fix: str, environment: dict | None = None
) -> None:
  """Write `found` to `path`, or compare it with what an earlier run wrote there.

  Args:
    path: a JSON file.
    found: what must be equal.
    fix: what to do about a difference, for the message.
    environment: written with it but never compared: versions, devices.

  Raises:
    AnotherRun: naming each field that differs, with both values.
  """
  found = json.loads(json.dumps(found))
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    noted = {"environment": environment} if environment else {}
    write_json(path, {**found, **noted})
    return
  earlier = json.loads(path.read_text())
  earlier.pop("environment", None)
  differing = [
    f"{name} was {earlier.get(name)!r}, now {found.get(name)!r}"
    for name in sorted({*earlier, *found})
    if earlier.get(name) != found.get(name)
  ]
  if differing:
    raise AnotherRun(f"{path} is of another run: {'; '.join(differing)}. {fix}")


@dataclasses.dataclass(frozen=True)
class Store:
  """Named pytrees and a metrics file in one folder.

  Entries are written by Orbax, which renames a finished entry into place: one that
  exists is whole.
  """

  folder: pathlib.Path

  def save(self, name: str, tree) -> None:
    """Write a pytree of arrays, replacing an entry of the same name."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(self._path(name), tree, force=True)

  def load(self, name: str, template):
    """Read an entry; `template` gives its tree, shapes and dtypes."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(self._path(name), template)

  def has(self, name: str) -> bool:
    """Say whether a finished entry of that name exists."""
    return self._path(name).exists()

  def epochs(self, name: str) -> list[int]:
    """Epochs of the unfinished entries `<name>-epoch-<number>`, ascending."""
    prefix = f"{name}-epoch-"
    found = self._path(name).parent.glob(f"{prefix}*")
    tails = (path.name.removeprefix(prefix) for path in found)
    return sorted(int(tail) for tail in tails if tail.isdigit())

  def forget_epochs(self, name: str, *, before: int | None = None) -> None:
    """Remove the unfinished entries of a name, or those before an epoch."""
    for epoch in self.epochs(name):
      if before is None or epoch < before:
        shutil.rmtree(self._path(f"{name}-epoch-{epoch}"))

  def read_metrics(self) -> list[dict]:
    """Return the rows of metrics.jsonl; a line that a kill cut short is dropped."""
    path = self.folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]

  def write_metrics(self, rows: list[dict]) -> None:
    """Replace metrics.jsonl by these rows."""
    fresh = self.folder / "metrics.jsonl.new"
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(fresh, self.folder / "metrics.jsonl")

  def append_metrics(self, row: dict) -> None:
    """Add a row to metrics.jsonl."""
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write(json.dumps(row) + "\n")

  def _path(self, name):
    return (self.folder / "checkpoints" / name).resolve()

"""Digests that tie a report to the model, the records and the code behind it."""

import pathlib
from typing import Any

from mixdef.auditing.released import Released
from mixdef.core.reading import digest, digest_file


def made_from(model: Released) -> dict[str, str | None]:
  """Return digests of what an audit of one model has read.

  Args:
    model: the released model, its members and its hold-out.

  Returns:
    "outputs" of the model on members and hold-out, "membership", "records" (None if
    only outputs are known) and "code", the source of mixdef.
  """
  signals, data = model.signals, model.data
  return {
    "outputs": digest(signals.phi, signals.labels),
    "membership": digest(signals.members),
    "records": None if data is None else digest(data.x, data.y),
    "code": code_digest(),
  }


def code_digest() -> str:
  """Return a digest of the source of mixdef."""
  root = pathlib.Path(__file__).parents[1]
  files = sorted(root.rglob("*.py"))
  parts: list[Any] = []
  for path in files:
    parts += [path.relative_to(root).as_posix(), digest_file(path, fix="reinstall it")]
  return digest(*parts)


def differences(
  report: dict[str, Any], found: dict[str, str | None]
) -> dict[str, tuple[str | None, str | None]]:
  """Return the digests of a report that differ from those found now, by name."""
  kept = report.get("made_from", {})
  return {
    name: (kept.get(name), value)
    for name, value in found.items()
    if value is not None and kept.get(name) != value
  }

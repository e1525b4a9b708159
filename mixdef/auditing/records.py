"""Facts and limits of a report that concern the records: classes and encoding."""

from collections.abc import Sequence
from typing import Any

from mixdef.data import Dataset

_MOST_CLASSES = 20  # of which the names are listed


def class_name(label: int, classes: Sequence[str] | None) -> str | int:
  """Return the name of a class, or its number if the classes have no names.

  >>> class_name(1, ("no", "yes")), class_name(1, None)
  ('yes', 1)
  """
  return int(label) if classes is None else classes[label]


def record_facts(data: Dataset) -> dict[str, Any]:
  """Return facts about the records, for the setting of a report.

  >>> data = Dataset.from_arrays([[0.5], [1.0]], ["no", "yes"], groups=[3, 3])
  >>> record_facts(data)
  {'classes': ['no', 'yes']}
  """
  facts: dict[str, Any] = {}
  if data.classes is not None and len(data.classes) <= _MOST_CLASSES:
    facts["classes"] = list(data.classes)
  if data.schema is not None:
    facts["encoding"] = data.schema.origin
  return facts


def record_limits(data: Dataset) -> list[str]:
  """Return what the audit does not cover because of the encoding of the records."""
  lines = []
  if data.schema is not None and data.schema.fitted:
    lines.append(
      "Means, spreads, lists of values and marks of missing entries were computed from "
      f"all records, for the columns {', '.join(data.schema.fitted)!s:.200}: they are "
      "released with the model and are the same in every model, so the attacks do not "
      "measure what they leak, and epsilon does not cover it; a schema from public "
      "knowledge avoids this."
    )
  return lines

"""What a report says about the records: their groups and the encoding of a table."""

from typing import Any

from mixdef.data import Dataset

_MOST_CLASSES = 20  # that are named


def record_facts(data: Dataset) -> dict[str, Any]:
  """Return what is known of the records, for the setting of a report.

  >>> data = Dataset.from_arrays([[0.5], [1.0]], ["no", "yes"], groups=[3, 3])
  >>> record_facts(data)
  {'classes': ['no', 'yes'], 'num_groups': 1}
  """
  facts: dict[str, Any] = {}
  if data.classes is not None and len(data.classes) <= _MOST_CLASSES:
    facts["classes"] = list(data.classes)
  if data.groups is not None:
    facts["num_groups"] = int(data.units.max()) + 1
  if data.schema is not None:
    facts["encoding"] = data.schema.origin
  return facts


def record_limits(data: Dataset) -> list[str]:
  """Return what the audit cannot say because of groups or the encoding."""
  lines = []
  if data.groups is not None:
    lines.append(
      "Records of a group are members together, but each is attacked by itself and "
      "counted as independent: an attacker who combines the records of a person finds "
      "more, the intervals are too narrow, and an epsilon is that of a record."
    )
  if data.schema is not None and data.schema.fitted:
    lines.append(
      "Means, spreads, lists of values and marks of missing entries were read from all "
      f"records, for the columns {', '.join(data.schema.fitted)!s:.200}: they are part "
      "of what is released, are the same in every model, and leak what the attacks do "
      "not measure and an epsilon does not cover; a schema from public knowledge "
      "avoids this."
    )
  return lines

"""Report sections that plug-ins register, validated for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixdef.attacks import Signals
from mixdef.auditing.running import Findings
from mixdef.core.registry import SECTIONS

_PARTS = ("text", "columns", "rows")


def added_sections(findings: Findings, signals: Signals) -> list[dict[str, Any]]:
  """Return the content of every registered section that has one.

  Args:
    findings: scores [S, N] and metrics of the attacks that ran.
    signals: the signals that they were run on.

  Returns:
    For each section its `name`, its `title`, `text` (paragraphs), and the `columns` and
    `rows` of a table; empty lists where it has none.

  Raises:
    ValueError: for content of another form, naming the section.
  """
  sections = []
  for name, measure in SECTIONS.items():
    content = measure(findings, signals)
    if content is not None:
      sections.append(
        {"name": name, "title": measure.__dict__["title"], **_checked(name, content)}
      )
  return sections


def _checked(name: str, content: Any) -> dict[str, list]:
  if not isinstance(content, Mapping) or set(content) - set(_PARTS):
    raise ValueError(
      f"section {name}: return None or a dict of {', '.join(_PARTS)}, not {content!r}"
    )
  found = {part: content.get(part, ()) for part in _PARTS}
  for part, value in found.items():
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
      raise ValueError(f"section {name}: {part} is {value!r}; return a list")
  width = len(found["columns"])
  if any(len(row) != width for row in found["rows"]):
    raise ValueError(f"section {name}: every row needs {width} cells, one per column")
  return {part: list(value) for part, value in found.items()}

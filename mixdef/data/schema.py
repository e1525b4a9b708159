"""Schemas: how the columns of a table become features."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import reading
from mixdef.core.files import path_of

KINDS = ("numeric", "date", "ordinal", "categorical", "drop")
DAY = 86_400  # seconds
_ENTRIES = {
  "numeric": ("mean", "spread", "missing"),
  "date": ("mean", "spread", "missing"),
  "ordinal": ("values", "missing"),
  "categorical": ("values",),
  "drop": (),
}


@dataclasses.dataclass(frozen=True)
class Column:
  """How a column becomes features.

  Attributes:
    kind: "numeric" or "date", which become (x - mean) / spread; "ordinal", which
      becomes the position among `values` scaled to [0, 1]; "categorical", which becomes
      a feature per value, 1 for the value of the record; "drop", which is omitted.
    mean: subtracted from a number, or from a date in days since 1970.
    spread: positive divisor of a number, or of a date in days.
    values: text of each value, in order if the column is ordinal.
    missing: whether a further feature marks missing entries. A missing number or date
      becomes the mean, a missing ordinal value 0.5, and a missing category zeros.
  """

  kind: str
  mean: float | None = None
  spread: float | None = None
  values: tuple[str, ...] | None = None
  missing: bool = False


@dataclasses.dataclass(frozen=True)
class Schema:
  """How the columns of a table become the features of records.

  Attributes:
    columns: `Column` by name, in the order of the features.
    fitted: the columns with a mean, spread, list of values or mark of missing entries
      that was computed from the records. The others were given, and are assumed to be
      public knowledge.
    rescaled: whether the features were standardized afterwards, so that `decode` does
      not apply to them.
  """

  columns: Mapping[str, Column]
  fitted: tuple[str, ...] = ()
  rescaled: bool = False

  @property
  def features(self) -> tuple[str, ...]:
    """Names of the features, F of them.

    >>> Schema({"sex": Column("categorical", values=("f", "m"))}).features
    ('sex=f', 'sex=m')
    """
    names: list[str] = []
    for name, column in self.columns.items():
      if column.kind == "categorical":
        names += [f"{name}={value}" for value in column.values or ()]
      elif column.kind != "drop":
        names += [name, f"{name} is missing"] if column.missing else [name]
    return tuple(names)

  @property
  def origin(self) -> str:
    """Origin of means, spreads and lists of values, for reports.

    >>> Schema({"age": Column("numeric", mean=50.0, spread=20.0)}).origin
    'given'
    """
    if not self.fitted:
      return "given"
    return f"read from the records: {', '.join(self.fitted)}"

  def decode(self, features: ArrayLike) -> dict[str, float | str | None]:
    """Return the content of the columns of a record, None where it is missing.

    Numbers are rounded to six digits, as float32 features hold no more, and dates to
    days.

    Args:
      features: [F], in the order of `features`.

    >>> sex = Column("categorical", values=("f", "m"))
    >>> table = Schema({"age": Column("numeric", mean=50.0, spread=20.0), "sex": sex})
    >>> table.decode([0.2, 0, 1])
    {'age': 54.0, 'sex': 'm'}
    """
    left = iter(np.asarray(features, np.float64).tolist())
    found: dict[str, float | str | None] = {}
    for name, column in self.columns.items():
      if column.kind == "drop":
        continue
      values = column.values or ()
      if column.kind == "categorical":
        marks = [next(left) for _ in values]
        found[name] = values[marks.index(1)] if 1 in marks else None
        continue
      value = next(left)
      if column.missing and next(left) == 1:
        found[name] = None
      elif column.kind == "ordinal":
        place = round(value * (len(values) - 1))
        found[name] = values[min(max(place, 0), len(values) - 1)]
      else:
        number = value * (column.spread or 1.0) + (column.mean or 0.0)
        found[name] = float(f"{number:.6g}")
        if column.kind == "date":
          found[name] = str(np.datetime64(round(number), "D"))
    return found

  def to_json(self) -> dict[str, dict[str, Any]]:
    """Return a dictionary that `schema=` accepts, to be edited and passed again.

    >>> Schema({"age": Column("numeric", mean=50.0, spread=20.0)}).to_json()
    {'age': {'kind': 'numeric', 'mean': 50.0, 'spread': 20.0}}
    """
    written = {}
    for name, column in self.columns.items():
      entry: dict[str, Any] = {"kind": column.kind}
      for key in _ENTRIES[column.kind]:
        value = getattr(column, key)
        if value is not None and value is not False:
          entry[key] = list(value) if isinstance(value, tuple) else value
      if column.kind == "date" and column.mean is not None:
        entry["mean"] = str(np.datetime64(round(column.mean * DAY), "s"))
      written[name] = entry
    return written


def read_schema(schema: Any) -> dict[str, Column]:
  """Return the columns of a schema, which may lack entries.

  Args:
    schema: None, a `Schema`, the path of a JSON file, or a mapping from column to a
      kind or to an object as `Schema.to_json` writes it.

  Raises:
    ValueError: naming the column and the fix.
    FileNotFoundError: there is no such file.

  >>> read_schema({"grade": {"kind": "ordinal", "values": ["low", "high"]}})["grade"]
  Column(kind='ordinal', mean=None, spread=None, values=('low', 'high'), missing=False)
  """
  if schema is None:
    return {}
  if isinstance(schema, Schema):
    return dict(schema.columns)
  place = "schema"
  if isinstance(schema, str | os.PathLike):
    place = str(path_of(schema, "schema"))
    fix = "write {column: {kind: ...}}, as in json.dumps(data.schema.to_json())"
    schema = reading.read_json(place, fix=fix)
  if not isinstance(schema, Mapping):
    raise ValueError(
      f"schema is a {type(schema).__name__}; pass a dict such as {{'age': 'numeric'}}, "
      "or the path of a JSON file"
    )
  return {str(name): _column(name, entry, place) for name, entry in schema.items()}


def _column(name: Any, entry: Any, place: str) -> Column:
  where = f"{place}: {name!r}"
  entry = {"kind": entry} if isinstance(entry, str) else entry
  if isinstance(entry, Column):
    return entry
  if not isinstance(entry, Mapping) or entry.get("kind") not in KINDS:
    kind = entry.get("kind") if isinstance(entry, Mapping) else entry
    raise ValueError(f"{where} has kind {kind!r}; choose from {', '.join(KINDS)}")
  kind = entry["kind"]
  rest: dict[str, Any] = {k: v for k, v in entry.items() if k != "kind"}
  if unknown := sorted(set(rest) - set(_ENTRIES[kind])):
    known = ", ".join(_ENTRIES[kind]) or "nothing else"
    raise ValueError(f"{where} has {unknown[0]!r}; a {kind} column has {known}")
  if "values" in rest:
    rest["values"] = _values(rest["values"], where)
  if kind == "date" and "mean" in rest:
    rest["mean"] = _days(rest["mean"], where)
  if ("mean" in rest) != ("spread" in rest):
    raise ValueError(f"{where} has one of mean and spread; give both, or neither")
  for key in ("mean", "spread"):
    number = rest.get(key, 1)
    good = isinstance(number, int | float) and not isinstance(number, bool)
    if not good or not math.isfinite(number) or (key == "spread" and number <= 0):
      raise ValueError(
        f"{where} has {key} {number!r}; pass a finite number, spread > 0"
      )
  if not isinstance(rest.get("missing", False), bool):
    raise ValueError(f"{where} has missing {rest['missing']!r}; pass true or false")
  return Column(kind, **rest)


def _values(values: Any, where: str) -> tuple[str, ...]:
  listed = isinstance(values, list | tuple) and all(
    isinstance(value, str | int) and not isinstance(value, bool) for value in values
  )
  found = tuple(map(str, values)) if listed else ()
  if not found or len(set(found)) < len(found):
    raise ValueError(
      f"{where} has values {values!r}; list each text or integer that occurs, once"
    )
  return found


def _days(mean: Any, where: str) -> float:
  try:
    return float(np.datetime64(mean, "s").astype(np.int64) / DAY)
  except (ValueError, TypeError):
    raise ValueError(
      f"{where} has mean {mean!r}; write a date such as '2020-01-31'"
    ) from None

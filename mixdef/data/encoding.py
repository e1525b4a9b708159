"""Encoding of the columns of a table as features, by a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epy

from mixdef.data.schema import DAY, Column, Schema

with epy.lazy_imports():
  import pyarrow as pa
  from pyarrow import compute

pc: Any = compute  # most of its functions are made when it is imported

_MOST_VALUES = 100  # of a column of text that is read as categories
_FEW_VALUES = 10
_DROP = "give it the kind 'drop' in the schema to omit it"
_TRUTH = Column("numeric", mean=0.0, spread=1.0)


def fit(
  table: Mapping[str, pa.Array], given: Mapping[str, Column], place: str
) -> Schema:
  """Return a complete schema, with missing entries computed from the records.

  Args:
    table: arrays [N] by name of the column.
    given: the known entries of some of these columns.
    place: the table, for error messages.

  Returns:
    A `Schema` of all columns of the table.

  Raises:
    ValueError: naming the column and the fix.
  """
  columns, fitted = {}, []
  for name, values in table.items():
    where = f"{place}: column {name!r}"
    if not name and name not in given:
      raise ValueError(
        f"{place} has a column without a name, as pandas writes row numbers: write it "
        "with index=False, or give '' the kind 'drop' in the schema"
      )
    known = given[name] if name in given else _inferred(values, where)
    if name not in given and _is_identifier(values):
      logging.warning(
        "%s holds a different integer in each of the %d rows and is read as a quantity:"
        " if it identifies records, pass id=%r (--id=%s), or give it the kind 'drop'",
        *(where, len(values), name, name),
      )
    columns[name] = _completed(known, values, where)
    if columns[name] != known:
      fitted.append(name)
  if all(column.kind == "drop" for column in columns.values()):
    raise ValueError(f"{place} has no column of features: keep one, besides the label")
  return Schema(columns, tuple(fitted))


def encode(table: Mapping[str, pa.Array], schema: Schema, place: str) -> np.ndarray:
  """Return the features of the records of a table.

  A value that `schema` does not list raises an error in a column that was given, where
  it may be a typing error; in a column fitted on other records, it counts as missing.

  Args:
    table: arrays [N] by name of the column.
    schema: a complete schema.
    place: the table, for error messages.

  Returns:
    float32 [N, F], in the order of `schema.features`.

  Raises:
    ValueError: naming the column, the row and the fix.
  """
  features = []
  for name, column in schema.columns.items():
    if column.kind == "drop":
      continue
    where = f"{place}: column {name!r}"
    if name not in table:
      raise ValueError(f"{place} has no column {name!r}; it has {', '.join(table)}")
    lenient = name in schema.fitted
    if column.kind in ("numeric", "date"):
      numbers = _numbers(table[name], column.kind, where)
      gone = np.isnan(numbers)
      mean, spread = column.mean or 0.0, column.spread or 1.0
      features.append(np.where(gone, 0, (numbers - mean) / spread))
    else:
      listed = column.values or ()
      found = _positions(table[name], listed, where, lenient=lenient)
      gone = found < 0
      if column.kind == "categorical":
        features += [found == i for i in range(len(listed))]
        continue
      scaled = found / max(len(listed) - 1, 1)
      features.append(np.where(gone, 0.5, scaled))
    if column.missing:
      features.append(gone)
    elif gone.any() and not lenient:
      raise ValueError(
        f"{where} is missing in row {int(gone.argmax())}: fill it, or write 'missing': "
        "true for the column in the schema"
      )
  with np.errstate(over="ignore"):
    x = np.stack(features, axis=1).astype(np.float32)
  if not np.isfinite(x).all():
    row, at = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
    raise ValueError(
      f"{place}: {schema.features[at]!r} is too large for float32 in row {row}; "
      "rescale the column"
    )
  return x


def _inferred(values: pa.Array, where: str) -> Column:
  """Return the kind of a column by its type."""
  kind = values.type
  if pa.types.is_null(kind) or values.null_count == len(values):
    raise ValueError(f"{where} is empty; {_DROP}")
  if pa.types.is_boolean(kind):
    return _TRUTH
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    return Column("numeric")
  if pa.types.is_decimal(kind):
    return Column("numeric")
  if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
    return Column("date")
  if pa.types.is_dictionary(kind):
    return Column("ordinal" if kind.ordered else "categorical")
  if not _is_text(kind):
    raise ValueError(
      f"{where} has type {kind}; convert it to numbers, text or dates, or {_DROP}"
    )
  _refuse_mixed(values, where)
  count = pc.count_distinct(values).as_py()
  if count > max(_FEW_VALUES, min(_MOST_VALUES, len(values) // 4)):
    raise ValueError(
      f"{where} holds text with {count:,} distinct values in {len(values):,} rows: "
      "give it the kind 'categorical' or 'date' in the schema, or 'drop' to omit it, "
      "or pass it as id= or group= if it identifies records or persons"
    )
  return Column("categorical")


def _is_identifier(values: pa.Array) -> bool:
  """Return whether a column may number the records: integers that never repeat."""
  return (
    pa.types.is_integer(values.type)
    and len(values) >= _FEW_VALUES
    and pc.count_distinct(values, mode="all").as_py() == len(values)
  )


def _refuse_mixed(values: pa.Array, where: str) -> None:
  """Raise if most, but not all, entries of a column of text are numbers."""
  entries = values.to_pylist()
  text = [
    i for i, entry in enumerate(entries) if entry is not None and not _is_number(entry)
  ]
  if text and len(text) < (len(entries) - values.null_count) / 2:
    raise ValueError(
      f"{where} holds numbers, and {entries[text[0]]!r} in row {text[0]}: leave "
      "missing entries empty, or give it the kind 'categorical' in the schema"
    )


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _completed(column: Column, values: pa.Array, where: str) -> Column:
  """Return a column with its missing entries computed from the records."""
  if column.kind in ("numeric", "date") and column.mean is None:
    numbers = _numbers(values, column.kind, where)
    gone = np.isnan(numbers)
    if gone.all():
      raise ValueError(f"{where} is empty; {_DROP}")
    spread = float(numbers[~gone].std()) or 1.0
    mean = float(numbers[~gone].mean())
    return Column(column.kind, mean, spread, None, bool(gone.any()))
  if column.kind == "categorical" and column.values is None:
    return Column("categorical", values=_distinct(values))
  if column.kind == "ordinal" and column.values is None:
    if _is_text(values.type):
      raise ValueError(
        f"{where} holds text, whose order is not known: list its values in order, "
        "{'kind': 'ordinal', 'values': [...]} in the schema"
      )
    missing = bool(values.null_count)
    return Column("ordinal", values=_distinct(values), missing=missing)
  return column


def _distinct(values: pa.Array) -> tuple[str, ...]:
  """Return the distinct values in order, or those that their type declares."""
  if pa.types.is_dictionary(values.type):
    return tuple(_text(values.dictionary, "").to_pylist())
  found = pc.unique(values.drop_null())
  return tuple(_text(found.take(pc.sort_indices(found)), "").to_pylist())


def _numbers(values: pa.Array, kind: str, where: str) -> np.ndarray:
  """Return a column as float64 [N], dates in days since 1970, NaN where missing."""
  try:
    if kind == "date":
      seconds = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
      numbers = seconds.cast(pa.float64()).to_numpy(zero_copy_only=False) / DAY
    else:
      numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{where} is {kind} in the schema: {reason}") from error
  numbers = np.asarray(numbers, np.float64)
  if np.isinf(numbers).any():
    at = int(np.isinf(numbers).argmax())
    raise ValueError(
      f"{where} is {numbers[at]} in row {at}; leave the entry empty, or give it a value"
    )
  return numbers


def _positions(
  values: pa.Array, listed: tuple[str, ...], where: str, *, lenient: bool
) -> np.ndarray:
  """Return the position of each value in a list, [N], and -1 where it is missing."""
  text = _text(values, where)
  found = pc.index_in(text, pa.array(listed, text.type))
  unlisted = pc.and_(pc.is_valid(text), pc.is_null(found))
  if not lenient and pc.any(unlisted).as_py():
    at = pc.index(unlisted, True).as_py()
    raise ValueError(
      f"{where} is {text[at].as_py()!r} in row {at}, which is not among the values of "
      f"the schema, {', '.join(listed)!s:.60}: add it, or leave the entry empty"
    )
  return pc.fill_null(found, -1).to_numpy(zero_copy_only=False)


def decoded(values: pa.Array) -> pa.Array:
  """Return a column without a dictionary, in which NaN counts as missing."""
  if pa.types.is_dictionary(values.type):
    values = values.dictionary_decode()
  if pa.types.is_floating(values.type):
    values = pc.if_else(pc.is_nan(values), None, values)
  return values


def _text(values: pa.Array, where: str) -> pa.Array:
  """Return values as text; whole floats, as of integers with gaps, as integers."""
  values = decoded(values)
  if pa.types.is_floating(values.type):
    whole = pc.all(pc.equal(pc.floor(values), values)).as_py()
    values = values.cast(pa.int64()) if whole else values
  try:
    return values.cast(pa.string())
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    raise ValueError(
      f"{where} has type {values.type}; convert it to text or integers"
    ) from error


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)

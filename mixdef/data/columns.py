"""Data sets from columns: tables, arrays by name, lists of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from mixdef.core import record_names, validate
from mixdef.core.mapped import MappedRecords, kept_in_file
from mixdef.data import encoding, files, labels
from mixdef.data.dataset import Dataset
from mixdef.data.schema import Schema, read_schema

with epy.lazy_imports():
  import pyarrow as pa
  from pyarrow import compute

pc: Any = compute  # most of its functions are made when it is imported

_LABELS = ("label", "y")
_INDEX = "__index_level_"  # pyarrow's name of an index of pandas
Columns = dict[str, Any]


class Roles(NamedTuple):
  """The columns that are not features.

  Attributes:
    label: column of the class; None means "label" or "y".
    group: column of the person that a record belongs to; None without groups.
    id: column of the unique id of a record; None numbers the records.
  """

  label: str | None = None
  group: str | None = None
  id: str | None = None


class Content(NamedTuple):
  """The arrays and names of one table, from which a `Dataset` is made."""

  x: Any
  y: np.ndarray
  groups: np.ndarray | None
  ids: np.ndarray | None
  classes: tuple[str, ...] | None
  schema: Schema | None


def of_frame(frame: Any, place: str) -> Columns:
  """Return the columns of a table by name.

  Args:
    frame: a pandas or polars DataFrame, a pyarrow Table or another object that exports
      the Arrow stream interface, or a mapping from names to arrays or lists.
    place: the table, for error messages.

  Returns:
    pyarrow arrays [N], or numpy arrays or `MappedRecords` [N, ...] for columns with
    further axes.

  Raises:
    ValueError: for an empty or ragged table, and for columns of mixed types.
    TypeError: `frame` is not a table.
  """
  try:
    columns = _read(frame, place)
  except (pa.ArrowException, ValueError, TypeError) as error:
    if str(error).startswith(place):
      raise
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{place} is not a table: {reason:.200}; give every column one type and one name"
    ) from error
  sizes = {name: len(values) for name, values in columns.items()}
  if len(set(sizes.values())) > 1:
    low, high = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    raise ValueError(
      f"{place}: column {low!r} has {sizes[low]} entries and {high!r} has "
      f"{sizes[high]}; pass one per record"
    )
  if not sizes or min(sizes.values()) == 0:
    raise ValueError(f"{place} is empty; it needs a header and at least two records")
  return columns


def dataset(
  columns: Columns,
  roles: Roles,
  place: str,
  *,
  name: str,
  schema: Any = None,
  test: tuple[Columns, str] | None = None,
  names: tuple[str, ...] | None = None,
) -> Dataset:
  """Return the `Dataset` of the columns of a table.

  Args:
    columns: result of `of_frame`.
    roles: the columns that are not features.
    place: the table, for error messages.
    name: name of the data set.
    schema: how columns become features; see `read_schema`.
    test: columns and place of held-out records.
    names: names of the classes, if labels are positions among them.

  Raises:
    ValueError: naming the table, the column, the row and the fix.
  """
  train = content(columns, roles, place, schema=schema, names=names)
  with files.named(place):
    validate.inputs(train.x, "x")
  classes = train.classes
  if classes == tuple(map(str, range(len(classes or ())))):
    classes = None  # the labels were positions
  about: dict[str, Any] = {"classes": classes, "schema": train.schema}
  held_out = None
  if test is not None:
    given, test_place = test
    other = content(given, roles, test_place, schema=schema, like=train, names=names)
    with files.named(test_place):
      x = validate.inputs(other.x, "x")
    held_out = Dataset(x, other.y, 1, name, ids=other.ids, groups=other.groups)
  with files.named(place):
    data = Dataset.from_arrays(
      train.x,
      train.y,
      name=name,
      test=held_out,
      num_classes=None if train.classes is None else len(train.classes),
      ids=train.ids,
      groups=train.groups,
    )
  if data.test is not None:
    about["test"] = dataclasses.replace(data.test, **about)
  return dataclasses.replace(data, **about)


def _read(frame: Any, place: str) -> Columns:
  if isinstance(frame, Mapping):
    return {str(name): _column(values) for name, values in frame.items()}
  if type(frame).__module__.partition(".")[0] == "pandas":
    return _of_table(pa.Table.from_pandas(frame, preserve_index=False), place)
  if hasattr(frame, "__arrow_c_stream__"):
    return _of_table(pa.table(frame), place)
  raise TypeError(
    f"{place} is a {type(frame).__name__}; pass a pandas or polars DataFrame, a "
    "pyarrow Table or a dict of columns"
  )


def _of_table(table: pa.Table, place: str) -> Columns:
  names = table.column_names
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f"{place} has two columns named {twice[0]!r}; rename one")
  return {
    name: _whole(table.column(name)) for name in names if not name.startswith(_INDEX)
  }


def _whole(column: pa.ChunkedArray) -> pa.Array:
  if pa.types.is_string_view(column.type):
    column = column.cast(pa.string())  # few functions read views
  return pa.concat_arrays(
    column.unify_dictionaries().chunks or [column.combine_chunks()]
  )


def _column(values: Any) -> Any:
  values = kept_in_file(values)
  if isinstance(values, MappedRecords):
    return values
  if isinstance(values, pa.Array | pa.ChunkedArray):
    return _whole(values) if isinstance(values, pa.ChunkedArray) else values
  if hasattr(values, "ndim") and values.ndim > 1:
    return np.asarray(values)
  if hasattr(values, "dtype") and not isinstance(values, np.ndarray):
    values = np.asarray(values)
  return pa.array(values, from_pandas=True)


def content(
  columns: Columns,
  roles: Roles,
  place: str,
  *,
  schema: Any = None,
  like: Content | None = None,
  names: tuple[str, ...] | None = None,
) -> Content:
  """Return records, labels, groups and ids of the columns of a table.

  Args:
    columns: result of `of_frame`.
    roles: the columns that are not features.
    place: the table, for error messages.
    schema: how columns become features; see `read_schema`.
    like: the training records, whose schema and classes apply to held-out records.
    names: names of the classes, if labels are positions among them.

  Raises:
    ValueError: naming the column, the row and the fix.
  """
  label = label_of(columns, roles, place)
  others = (label, roles.group, roles.id)
  for name in others:
    _require(columns, name, place)
  y, classes = _labels(columns[label], f"{place}: column {label!r}", like, names)
  features = {name: values for name, values in columns.items() if name not in others}
  groups = _identities(columns, roles.group, place)
  ids = _identities(columns, roles.id, place)
  if ids is not None:
    with files.named(f"{place}: column {roles.id!r}"):
      record_names.ids(ids)
  given = read_schema(schema)
  if unknown := [name for name in given if name not in features]:
    raise ValueError(
      f"{place} has no column {unknown[0]!r} of features, which the schema names; it "
      f"has {', '.join(features)!s:.200}"
    )
  dropped = {name for name, column in given.items() if column.kind == "drop"}
  kept = {name: values for name, values in features.items() if name not in dropped}
  arrays = [name for name, values in kept.items() if _is_array(values)]
  if not arrays:
    tables: dict[str, pa.Array] = features
    known = like.schema if like is not None else encoding.fit(tables, given, place)
    if known is None:
      raise ValueError(f"{place} has numbers and text, but training x is one array")
    x = encoding.encode(tables, known, place)
    return Content(x, y, groups, ids, classes, known)
  if len(kept) > 1:
    raise ValueError(
      f"{place} has features in {', '.join(kept)}, of which {arrays[0]!r} holds arrays;"
      " a record is either one array, or numbers and text: give the other columns the "
      "kind 'drop' in the schema"
    )
  x = as_array(features[arrays[0]], f"{place}: column {arrays[0]!r}")
  return Content(x, y, groups, ids, classes, None)


def as_array(values: Any, where: str) -> Any:
  """Return the arrays of a column as one array [N, ...], or as `MappedRecords`.

  Raises:
    ValueError: for arrays of different sizes, missing entries and text.
  """
  if isinstance(values, np.ndarray | MappedRecords):
    return values
  if _is_picture(values.type):
    from mixdef.data.readers import pictures

    return pictures.of_bytes(values, where)
  shape = [len(values)]
  while isinstance(values, pa.ExtensionArray):
    values = values.storage
  while _is_list(values.type):
    _refuse_missing(values, where, "remove such rows")
    sizes = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(sizes) > 1:
      raise ValueError(
        f"{where} is ragged, with {min(sizes)} to {max(sizes)} entries in a row; pad "
        "or cut all to one length"
      )
    shape.append(sizes[0])
    values = values.flatten()
  if values.null_count:
    raise ValueError(f"{where} has missing entries; fill them, or remove such rows")
  return values.to_numpy(zero_copy_only=False).reshape(shape)


def _refuse_missing(values: pa.Array, where: str, fix: str) -> None:
  if values.null_count:
    at = pc.index(pc.is_null(values), True).as_py()
    raise ValueError(f"{where} is missing in row {at}; {fix}")


def label_of(columns: Columns, roles: Roles, place: str) -> str:
  """Return the name of the column of the label.

  Raises:
    ValueError: none is named, and no column is called "label" or "y".
  """
  if roles.label is not None:
    return roles.label
  found = [name for name in _LABELS if name in columns]
  if not found:
    raise ValueError(
      f"{place}: name the column of the label, one of {', '.join(columns)!s:.200}"
      " (label=..., or --label=...)"
    )
  return found[0]


def _require(columns: Columns, name: str | None, place: str) -> None:
  if name is not None and name not in columns:
    raise ValueError(
      f"{place} has no column {name!r}; it has {', '.join(columns)!s:.200}"
    )


def _labels(values: Any, where: str, like: Content | None, names: Any) -> Any:
  """Return the labels as integers, and the names of their classes."""
  if isinstance(values, np.ndarray) or _is_array(values):
    array = as_array(values, where)
    with files.named(where):
      return labels.read(array)[0], None if like is None else like.classes
  values = encoding.decoded(values)
  _refuse_missing(values, where, "remove rows without a label")
  array = values.to_numpy(zero_copy_only=False)
  if array.dtype.kind == "f":
    broken = array != np.floor(array)
    if broken.any() or np.isinf(array).any():
      at = int((broken | np.isinf(array)).argmax())
      raise ValueError(
        f"{where} is {array[at]:g} in row {at}, and only classification is supported: "
        "name another column, or bin it into classes"
      )
  if array.dtype.kind not in "biufO" or _other_type(array):
    raise ValueError(f"{where} has type {values.type}; labels are integers or text")
  if names is not None:
    if array.min() < 0 or array.max() >= len(names):
      at = int(((array < 0) | (array >= len(names))).argmax())
      raise ValueError(
        f"{where} is {array[at]} in row {at}; remove rows without a label"
      )
    return array.astype(np.int32), names
  if like is not None and like.classes is not None:
    return labels.positions(array, like.classes, where), like.classes
  classes = labels.classes_of(array, where)
  return labels.positions(array, classes, where), classes


def _other_type(array: np.ndarray) -> bool:
  return array.dtype.kind == "O" and not isinstance(array[0], str)


def _identities(columns: Columns, name: str | None, place: str) -> Any:
  """Return a column of ids as integers or text."""
  if name is None:
    return None
  where, values = f"{place}: column {name!r}", columns[name]
  if isinstance(values, np.ndarray) or _is_array(values):
    raise ValueError(f"{where} holds arrays; ids are integers or text")
  values = encoding.decoded(values)
  _refuse_missing(values, where, "every record needs an entry")
  if pa.types.is_integer(values.type):
    return values.to_numpy(zero_copy_only=False)
  return np.array(values.cast(pa.string()).to_pylist())


def _is_array(values: Any) -> bool:
  """Return whether the entries of a column are arrays, not numbers or text."""
  if isinstance(values, np.ndarray | MappedRecords):
    return True
  kind = values.type
  extended = isinstance(kind, pa.BaseExtensionType) and _is_list(kind.storage_type)
  return extended or _is_list(kind) or _is_picture(kind)


def _is_list(kind: pa.DataType) -> bool:
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
  )


def _is_picture(kind: pa.DataType) -> bool:
  """Return whether a type is that of encoded pictures, as Hugging Face stores them."""
  if pa.types.is_struct(kind):
    return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

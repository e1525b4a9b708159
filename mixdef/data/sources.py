"""Constructors of `Dataset` from tables and from collections of examples."""

from __future__ import annotations

import pathlib
from typing import Any


class Sources:
  """The constructors that `Dataset` has besides `from_arrays`."""

  @classmethod
  def from_dataframe(
    cls,
    frame: Any,
    *,
    label: str | None = None,
    group: str | None = None,
    id: str | None = None,
    test: Any = None,
    schema: Any = None,
    name: str = "user",
  ) -> Any:
    """Create a `Dataset` from a table.

    Numbers and dates become (x - mean) / spread, ordered values their position in
    [0, 1], and other values one feature each; see `mixdef.data.Schema`. Entries that
    the schema lacks are computed from the records of `frame`, and their columns are
    listed in `data.schema.fitted`. A single column of lists of equal length, such as
    token ids, becomes `x` unchanged.

    Args:
      frame: a pandas or polars DataFrame, a pyarrow Table, or a dict of columns.
      label: column of the class; None means "label" or "y".
      group: column of the person that a record belongs to.
      id: column of the unique id of a record.
      test: held-out records, a table with the same columns.
      schema: None, a `Schema`, the path of a JSON file, or a dict from column to a
        kind ("numeric", "date", "ordinal", "categorical", "drop") or to a dict as
        `Schema.to_json` returns it.
      name: name printed in reports.

    Returns:
      A `Dataset`, float32 [N, F] unless a column holds arrays.

    Raises:
      ValueError: naming the column, the row and the fix.
      TypeError: `frame` is not a table.

    Guarantee: means, spreads and lists of values of the columns in `schema.fitted` are
      computed without noise from all records, including those outside a model's
      training set. Epsilon does not cover them. Those given in `schema` are assumed to
      be public knowledge.

    >>> frame = {"age": [30, 50], "sex": ["f", "m"], "ill": ["no", "yes"]}
    >>> from mixdef.data import Dataset
    >>> data = Dataset.from_dataframe(frame, label="ill")
    >>> data.x.tolist(), data.classes, data.schema.features
    ([[-1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], ('no', 'yes'), ('age', 'sex=f', 'sex=m'))
    """
    from mixdef.data import columns

    held_out = None if test is None else (columns.of_frame(test, "test"), "test")
    return columns.dataset(
      columns.of_frame(frame, "the table"),
      columns.Roles(label, group, id),
      "the table",
      name=name,
      schema=schema,
      test=held_out,
    )

  @classmethod
  def from_huggingface(
    cls,
    source: Any,
    *,
    label: str | None = None,
    group: str | None = None,
    id: str | None = None,
    schema: Any = None,
    name: str = "user",
  ) -> Any:
    """Create a `Dataset` from a Hugging Face data set.

    Args:
      source: a `datasets.Dataset`; or a `DatasetDict`, whose splits `train` and, if it
        has labels, `test` are read. A column of pictures or of lists of equal length
        becomes `x`; other columns become features as in `from_dataframe`.
      label: as in `from_dataframe`, like `group`, `id` and `schema`.
      group: column of the person that a record belongs to.
      id: column of the unique id of a record.
      schema: how columns become features.
      name: name printed in reports.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: naming the column, the row and the fix.
      TypeError: `source` is neither of the two.
    """
    from mixdef.data.columns import Roles
    from mixdef.data.readers import huggingface

    roles = Roles(label, group, id)
    return huggingface.dataset(source, name=name, roles=roles, schema=schema)

  @classmethod
  def from_grain(
    cls,
    source: Any,
    *,
    label: str | None = None,
    group: str | None = None,
    id: str | None = None,
    test: Any = None,
    schema: Any = None,
    name: str = "user",
    file: Any = None,
  ) -> Any:
    """Create a `Dataset` from a grain data source or `MapDataset`.

    Args:
      source: an object with a length whose items are dicts of arrays and numbers, or
        pairs (x, y).
      label: as in `from_dataframe`, like `group`, `id` and `schema`.
      group: key of the person that a record belongs to.
      id: key of the unique id of a record.
      test: held-out records of the same kind.
      schema: how keys become features.
      name: name printed in reports.
      file: path of an .npy file to which the arrays of the examples are written, one
        after another, and where they stay (those of `test` in a file whose name ends in
        _test), so that memory need not hold them. Existing files are replaced.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: naming the record and the fix.
      TypeError: `source` has no length or no items.

    >>> from mixdef.data import Dataset
    >>> Dataset.from_grain([([0.5, 1.0], 0), ([2.0, 3.0], 1)])
    Dataset(user: 2 x (2,) float32, 2 classes, 0 auxiliary, test none)
    """
    from mixdef.data import columns
    from mixdef.data.readers import examples

    held_out = None
    if test is not None:
      beside = None
      if file is not None:
        beside = pathlib.Path(file).with_stem(f"{pathlib.Path(file).stem}_test")
      held_out = examples.columns_of(test, "test", beside), "test"
    return columns.dataset(
      examples.columns_of(source, "the source", file),
      columns.Roles(label, group, id),
      "the source",
      name=name,
      schema=schema,
      test=held_out,
    )

"""Constructors of `Dataset` from tables and from collections of examples."""

from __future__ import annotations

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
    [0, 1], and other values one feature each; see `mixdef.data.Schema`. What the schema
    does not say is read from the records of `frame`, and listed in
    `data.schema.fitted`. A single column of lists of equal length, such as token ids,
    becomes `x` as it is.

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
      TypeError: `frame` is no table.

    Guarantee: means, spreads and lists of values in `schema.fitted` are read without
      noise from all records, also those outside a model's training set. An epsilon does
      not cover them; those given in `schema` are taken for public knowledge.

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
  def from_huggingface(cls, source: Any, *, name: str = "user", **roles: Any) -> Any:
    """Create a `Dataset` from one of Hugging Face `datasets`.

    Args:
      source: a `datasets.Dataset`, or a `DatasetDict`, of which `train` and, where it
        has labels, `test` are read. Pictures and lists of equal length become `x`,
        other columns features as in `from_dataframe`.
      name: name printed in reports.
      **roles: `label`, `group`, `id` and `schema`, as in `from_dataframe`.

    Raises:
      ValueError: naming the column, the row and the fix.
      TypeError: `source` is none of the two.
    """
    from mixdef.data.readers import huggingface

    return huggingface.dataset(source, name=name, **roles)

  @classmethod
  def from_grain(
    cls, source: Any, *, test: Any = None, name: str = "user", **roles: Any
  ) -> Any:
    """Create a `Dataset` from a grain data source or `MapDataset`.

    Args:
      source: anything with a length whose items are dicts of arrays and numbers, or
        pairs (x, y).
      test: held-out records, of the same kind.
      name: name printed in reports.
      **roles: `label`, `group`, `id` and `schema`, as in `from_dataframe`.

    Raises:
      ValueError: naming the record and the fix.
      TypeError: `source` has no length or no items.

    >>> from mixdef.data import Dataset
    >>> Dataset.from_grain([([0.5, 1.0], 0), ([2.0, 3.0], 1)])
    Dataset(user: 2 x (2,) float32, 2 classes, 0 auxiliary, test none)
    """
    from mixdef.data.readers import examples

    return examples.dataset(source, test=test, name=name, **roles)

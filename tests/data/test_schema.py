"""Columns become features by a schema, completed from the records."""

import json
import logging

import numpy as np
import pytest

from mixdef.data import Column, Dataset, Schema
from mixdef.data.schema import read_schema

FRAME = {
  "age": [20.0, None, 40.0, 60.0],
  "sex": ["f", "m", None, "f"],
  "seen": np.array(["2020-01-01", "2020-01-03", "2020-01-01", "2020-01-03"], "M8[D]"),
  "smoker": [True, False, True, False],
  "size": ["low", "high", "mid", "low"],
  "y": ["no", "yes", "no", "yes"],
}
SIZES = {"kind": "ordinal", "values": ["low", "mid", "high"]}


def made(frame=None, **options):
  options = {"label": "y", **options}
  return Dataset.from_dataframe(FRAME if frame is None else frame, **options)


def test_each_kind_of_column_by_hand():
  data = made(schema={"size": SIZES})
  spread = np.std([20, 40, 60])
  expected = {
    "age": [-20 / spread, 0, 0, 20 / spread],
    "age is missing": [0, 1, 0, 0],
    "sex=f": [1, 0, 0, 1],
    "sex=m": [0, 1, 0, 0],
    "seen": [-1, 1, -1, 1],
    "smoker": [1, 0, 1, 0],
    "size": [0, 1, 0.5, 0],
  }
  assert data.schema.features == tuple(expected)
  np.testing.assert_allclose(data.x.T, list(expected.values()), atol=1e-6)
  assert data.x.dtype == np.float32
  assert (data.y.tolist(), data.classes) == ([0, 1, 0, 1], ("no", "yes"))


def test_decoding_inverts_the_encoding():
  data = made(schema={"size": SIZES})
  decoded = [data.schema.decode(row) for row in data.x]
  for i, row in enumerate(decoded):
    seen = FRAME["seen"][i]
    expected = {name: FRAME[name][i] for name in ("age", "sex", "smoker", "size")}
    assert row == {**expected, "seen": str(seen)}
  public = Dataset.from_arrays(data.x * 3, data.y)
  assert data.standardize(public).schema.rescaled, "features are those of no column"


def test_integers_that_never_repeat_may_be_ids(caplog):
  caplog.set_level(logging.WARNING, logger="absl")
  frame = {"note_id": np.arange(40) * 7, "age": np.arange(40) // 2, "y": [0, 1] * 20}
  made(frame)
  (said,) = [record.getMessage() for record in caplog.records]
  assert "'note_id' holds a different integer in each of the 40 rows" in said
  assert "id='note_id' (--id=note_id), or give it the kind 'drop'" in said
  caplog.clear()
  made(frame, id="note_id")
  made(frame, schema={"note_id": "numeric"})
  assert not caplog.records


def test_columns_fitted_on_the_records_are_listed():
  data = made(schema={"size": SIZES})
  assert data.schema.fitted == ("age", "sex", "seen")
  assert data.schema.origin == "read from the records: age, sex, seen"
  given = made(schema=data.schema)
  assert (given.schema.fitted, given.schema.origin) == ((), "given")
  np.testing.assert_array_equal(given.x, data.x)


def test_a_schema_survives_json(tmp_path):
  schema = made(schema={"size": SIZES}).schema
  path = tmp_path / "schema.json"
  path.write_text(json.dumps(schema.to_json()))
  np.testing.assert_array_equal(made(schema=path).x, made(schema=schema).x)
  assert read_schema(schema.to_json()) == dict(schema.columns)


def test_a_kind_alone_is_completed_from_the_records():
  frame = {"code": [7, 3, 7, 11], "y": [0, 1, 0, 1]}
  data = made(frame, schema={"code": "categorical"})
  assert data.schema.features == ("code=3", "code=7", "code=11")
  assert data.x.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
  ordinal = made(frame, schema={"code": "ordinal"})
  assert ordinal.x.ravel().tolist() == [0.5, 0, 0.5, 1]


def test_integers_with_gaps_name_the_same_categories_as_without():
  whole = made({"code": [7, 3, 7], "y": [0, 1, 0]}, schema={"code": "categorical"})
  gaps = made({"code": [7.0, 3, None], "y": [0, 1, 0]}, schema={"code": "categorical"})
  assert whole.schema.features == gaps.schema.features == ("code=3", "code=7")


def test_held_out_records_take_the_training_schema_and_classes():
  train = {"age": [0.0, 2.0, 0.0, 2.0], "sex": ["f", "m", "f", "m"], "y": [3, 5, 3, 5]}
  test = {"age": [4.0, None], "sex": ["other", "m"], "y": [5, 5]}
  data = made(train, test=test)
  assert data.classes == data.test.classes == ("3", "5")
  assert data.test.y.tolist() == [1, 1]
  assert data.test.x.tolist() == [[3, 0, 0], [0, 0, 1]]
  assert "age" in data.schema.fitted
  with pytest.raises(
    ValueError, match=r"^test: column 'y' is '4' in row 0, which is not"
  ):
    made(train, test={**test, "y": [4, 5]})


def test_dropped_columns_change_nothing():
  frame = {"name": [f"n{i}" for i in range(40)], "age": np.arange(40.0)}
  frame["y"] = np.arange(40) % 2
  data = made(frame, schema={"name": "drop"})
  assert data.schema.features == ("age",)


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    ({}, {"label": "z"}, r"^the table has no column 'z'; it has age, sex, seen"),
    ({}, {"group": "z"}, "^the table has no column 'z'"),
    ({"y": None}, {"label": None}, "name the column of the label, one of age"),
    ({"y": ["a"] * 4}, {}, "column 'y' is a in every record; a classifier needs two"),
    ({"y": ["a", None, "b", "a"]}, {}, "column 'y' is missing in row 1; remove rows"),
    ({"y": [0.0, np.nan, 1.0, 0.0]}, {}, "column 'y' is missing in row 1"),
    ({"y": [0.5, 1, 2, 3]}, {}, r"column 'y' is 0\.5 in row 0, and only classificat"),
    ({"y": FRAME["seen"]}, {}, r"column 'y' has type date32.*; labels are integers or"),
    ({"age": [1, np.inf, 2, 3]}, {}, "column 'age' is inf in row 1; leave the entry"),
    ({"age": [None] * 4}, {}, "column 'age' is empty; give it the kind 'drop'"),
    ({"age": ["1", "2", "?", "3"]}, {}, r"'age' holds numbers, and '\?' in row 2"),
    ({"age": [1, 2, 3]}, {}, "'age' has 3 entries and 'sex' has 4; pass one per"),
    (
      {"age": [1, "two", 3, 4]},
      {},
      "the table is not a table: .*one type and one name",
    ),
    (
      {"age": [1e300, 2e300, 1, 1]},
      {"schema": {"age": {"kind": "numeric", "mean": 0, "spread": 1}}},
      "'age' is too large for float32 in row 0",
    ),
    ({}, {"schema": {"nobody": "drop"}}, "no column 'nobody' of features, which the"),
    ({}, {"schema": {"age": "number"}}, "schema: 'age' has kind 'number'; choose from"),
    ({}, {"schema": {"age": {"kind": "numeric", "mean": 1}}}, "has one of mean and sp"),
    ({}, {"schema": {"age": {"kind": "numeric", "low": 1}}}, "has 'low'; a numeric"),
    (
      {},
      {"schema": {"sex": {"kind": "categorical", "values": ["f"]}}},
      "column 'sex' is 'm' in row 1, which is not among the values of the schema, f",
    ),
    (
      {},
      {"schema": {"age": {"kind": "numeric", "mean": 1, "spread": 1}}},
      "column 'age' is missing in row 1: fill it, or write 'missing': true",
    ),
    (
      {},
      {"schema": {"age": {"kind": "numeric", "mean": 1, "spread": 0}}},
      "spread > 0",
    ),
    ({}, {"schema": {"size": "ordinal"}}, "whose order is not known: list its values"),
    ({}, {"schema": {"sex": "numeric"}}, "column 'sex' is numeric in the schema"),
    ({}, {"schema": {"seen": {"kind": "date", "mean": "soon", "spread": 1}}}, "'soon'"),
    (
      {},
      {"schema": dict.fromkeys(["age", "sex", "seen", "smoker", "size"], "drop")},
      "the table has no column of features",
    ),
    ({}, {"schema": 3}, "schema is a int; pass a dict"),
    ({"id": [1, 1, 2, 3]}, {"id": "id"}, "column 'id': ids contain 1 2 times"),
    ({"id": ["a", None, "b", "c"]}, {"id": "id"}, "column 'id' is missing in row 1"),
  ],
)
def test_errors_are_one_line_and_name_the_column(change, options, message):
  frame = {k: v for k, v in {**FRAME, **change}.items() if v is not None}
  with pytest.raises(ValueError, match=message) as caught:
    made(frame, **{"schema": None, **options})
  assert "\n" not in str(caught.value)


def test_free_text_needs_a_kind():
  frame = {"note": [f"text {i}" for i in range(50)], "y": np.arange(50) % 2}
  with pytest.raises(ValueError, match="'note' holds text with 50 distinct values"):
    made(frame)
  assert made(frame, schema={"note": "categorical"}).x.shape == (50, 50)


def test_labels_that_are_quantities_are_refused():
  frame = {"a": np.arange(60.0), "y": np.arange(60)}
  with pytest.raises(ValueError, match="'y' has 60 distinct values in 60 records"):
    made(frame)


def test_a_constant_column_is_zero_and_a_schema_is_a_value():
  data = made({"a": [5, 5, 5], "y": [0, 1, 0]})
  assert data.x.tolist() == [[0], [0], [0]]
  assert data.schema == Schema({"a": Column("numeric", 5.0, 1.0)}, ("a",))

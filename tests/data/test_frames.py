"""DataFrames, Arrow tables, Hugging Face and grain give the records of arrays."""

import io
import sys
import types

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from mixdef.data import Dataset, load

FRAME = {"age": [20, 40, 60, 40], "sex": ["f", "m", "f", "m"], "y": [0, 1, 1, 0]}


def test_tables_of_arrow_and_dicts_agree():
  usual = Dataset.from_dataframe(FRAME)
  for frame in (pa.table(FRAME), {k: np.array(v) for k, v in FRAME.items()}):
    data = Dataset.from_dataframe(frame, label="y", name="mine")
    np.testing.assert_array_equal(data.x, usual.x)
    assert (data.y.tolist(), data.name) == (FRAME["y"], "mine")
    assert data.classes is None


def test_chunks_and_dictionaries_of_arrow():
  chunks = pa.chunked_array([pa.array(["f", "m"]), pa.array(["f", "m"])])
  table = pa.table({**FRAME, "sex": chunks.dictionary_encode()})
  data = Dataset.from_dataframe(table)
  np.testing.assert_array_equal(data.x, Dataset.from_dataframe(FRAME).x)


def test_dataframes_of_pandas():
  pandas = pytest.importorskip("pandas")
  frame = pandas.DataFrame(FRAME).sample(frac=1, random_state=0)
  frame["grade"] = pandas.Categorical(
    ["low", "mid", "low", "high"], ["low", "mid", "high"], ordered=True
  )
  frame["count"] = pandas.array([1, None, 3, 4], "Int64")
  data = Dataset.from_dataframe(frame, label="y")
  assert data.schema.columns["grade"].kind == "ordinal"
  assert data.schema.features == (
    *("age", "sex=f", "sex=m", "grade", "count", "count is missing"),
  )
  assert data.x[:, 3].tolist() == [0, 0.5, 0, 1]
  assert data.x[:, 5].tolist() == [0, 1, 0, 0]
  mixed = pandas.DataFrame({"a": [1, "b", 2.5], "y": [0, 1, 1]})
  with pytest.raises(ValueError, match=r"^the table is not a table: .*column a"):
    Dataset.from_dataframe(mixed)


def test_dataframes_of_polars():
  polars = pytest.importorskip("polars")
  data = Dataset.from_dataframe(polars.DataFrame(FRAME))
  np.testing.assert_array_equal(data.x, Dataset.from_dataframe(FRAME).x)


def test_views_of_text_are_text():
  table = pa.table({**FRAME, "sex": pa.array(FRAME["sex"], pa.string_view())})
  data = Dataset.from_dataframe(table)
  np.testing.assert_array_equal(data.x, Dataset.from_dataframe(FRAME).x)


@pytest.mark.parametrize("frame", [[[1, 2]], np.ones((2, 2)), None, "people"])
def test_an_error_for_other_objects_than_tables(frame):
  with pytest.raises(TypeError, match=r"^the table is a .*; pass a pandas"):
    Dataset.from_dataframe(frame)


def test_a_record_is_one_array_or_numbers_and_text():
  tokens = {"ids": [[1, 2], [3, 4]], "y": [0, 1]}
  data = Dataset.from_dataframe(tokens)
  assert (data.x.tolist(), data.x.dtype) == ([[1, 2], [3, 4]], np.int32)
  with pytest.raises(ValueError, match="features in ids, age, of which 'ids' ho"):
    Dataset.from_dataframe({**tokens, "age": [1, 2]})
  both = Dataset.from_dataframe({**tokens, "age": [1, 2]}, schema={"age": "drop"})
  np.testing.assert_array_equal(both.x, data.x)
  mixed = {**tokens, "age": [1, 2]}
  held = Dataset.from_dataframe(mixed, schema={"age": "drop"}, test=mixed)
  np.testing.assert_array_equal(held.test.x, data.x)
  numbers = Dataset.from_dataframe(mixed, schema={"ids": "drop"}, test=mixed)
  assert numbers.x.tolist() == numbers.test.x.tolist() == [[-1], [1]]
  with pytest.raises(ValueError, match="no column 'z' of features, which the schema"):
    Dataset.from_dataframe(tokens, schema={"z": "drop"})
  series = Dataset.from_dataframe({"s": [[[1.0, 2.0]] * 3] * 2, "y": [0, 1]})
  assert series.x.shape == (2, 3, 2)
  for ids, message in (
    ([[1, 2], [3]], "column 'ids' is ragged, with 1 to 2 entries in a row; pad"),
    ([[1, 2], None], "column 'ids' is missing in row 1"),
    ([[1, None], [2, 3]], "column 'ids' has missing entries"),
    ([["a"], ["b"]], "x has type object; convert it to numbers"),
  ):
    with pytest.raises(ValueError, match=message):
      Dataset.from_dataframe({"ids": ids, "y": [0, 1]})


class Split:
  """A stand-in for `datasets.Dataset`: the part of its interface that is read."""

  def __init__(self, columns, names=None):
    self.table = pa.table(columns)
    self.column_names = self.table.column_names
    self.features = {"label": types.SimpleNamespace(names=names)} if names else {}

  def __len__(self):
    return len(self.table)

  def with_format(self, kind):
    assert kind == "arrow"
    return _Formatted(self.table)


class _Formatted:
  def __init__(self, table):
    self.table = table

  def __getitem__(self, rows):
    assert rows == slice(None)
    return self.table


def png(value):
  file = io.BytesIO()
  PIL.Image.new("L", (3, 2), value).save(file, "png")
  return {"bytes": file.getvalue(), "path": None}


def test_hugging_face_pictures_with_names_of_classes():
  train = Split({"image": [png(5), png(9)], "label": [1, 0]}, ["cat", "dog"])
  test = Split({"image": [png(7)], "label": [1]}, ["cat", "dog"])
  data = Dataset.from_huggingface({"train": train, "test": test})
  assert (data.x.shape, data.classes) == ((2, 2, 3, 1), ("cat", "dog"))
  assert data.x[:, 0, 0, 0].tolist() == [5, 9]
  assert (data.y.tolist(), data.test.y.tolist()) == ([1, 0], [1])
  hidden = Split({"image": [png(7)], "label": [-1]}, ["cat", "dog"])
  assert Dataset.from_huggingface({"train": train, "test": hidden}).test is None
  broken = Split({"image": [png(5), {"bytes": b"x", "path": None}], "label": [1, 0]})
  with pytest.raises(ValueError, match="column 'image': row 1 is not a picture"):
    Dataset.from_huggingface(broken)
  with pytest.raises(TypeError, match=r"user is a generator; pass a dat"):
    Dataset.from_huggingface(train for _ in range(3))
  with pytest.raises(ValueError, match="no split 'train'; it has test"):
    Dataset.from_huggingface({"test": test})


def test_a_name_of_hugging_face(monkeypatch):
  requests = []

  def load_dataset(path, name):
    requests.append((path, name))
    if path == "nobody/nothing":
      raise ConnectionError("offline\nand more")
    return {"train": Split({"a": [1.0, 2.0], "label": [0, 1]})}

  module = types.ModuleType("datasets")
  module.__spec__ = types.SimpleNamespace()
  module.load_dataset = load_dataset
  monkeypatch.setitem(sys.modules, "datasets", module)
  data = load("hf:owner/set:small")
  assert (requests, data.name, len(data)) == (
    [("owner/set", "small")],
    "owner/set:small",
    2,
  )
  with pytest.raises(
    FileNotFoundError, match=r"^hf:nobody/nothing is not in the cache.*\(offline\)"
  ) as caught:
    load("hf:nobody/nothing")
  assert "\n" not in str(caught.value)


def test_hugging_face_itself(tmp_path):
  datasets = pytest.importorskip("datasets")
  source = datasets.Dataset.from_dict({**FRAME, "label": ["a", "b", "b", "a"]})
  data = Dataset.from_huggingface(source, schema={"y": "drop"})
  np.testing.assert_array_equal(data.x, Dataset.from_dataframe(FRAME).x)
  assert data.classes == ("a", "b")


def test_examples_of_grain_as_dicts_and_as_pairs():
  rows = [{"x": np.full((2, 2), i, np.float32), "label": i % 2} for i in range(4)]
  data = Dataset.from_grain(rows, name="mine", test=rows[:1])
  pairs = Dataset.from_grain([(row["x"], row["label"]) for row in rows])
  np.testing.assert_array_equal(data.x, [row["x"] for row in rows])
  np.testing.assert_array_equal(data.x, pairs.x)
  assert (data.y.tolist(), data.test.y.tolist()) == ([0, 1, 0, 1], [0])
  table = [{"age": 20 + i, "sex": "fm"[i % 2], "y": i % 2} for i in range(4)]
  assert Dataset.from_grain(table).schema.features == ("age", "sex=f", "sex=m")


class Endless(list):
  def __len__(self):
    return sys.maxsize


@pytest.mark.parametrize(
  ("source", "error", "message"),
  [
    (iter([1]), TypeError, "the source is a list_iterator; pass a grain data source"),
    ([], ValueError, "the source has 0 records"),
    (Endless(), ValueError, r"9223372036854775807 records; pass some, without repeat"),
    ([1, 2], ValueError, "example 0 is a int; map it to a dict"),
    ([{"x": 1}, {"z": 1}], ValueError, "example 1 has z, and example 0 has x"),
    (
      [{"x": [1, 2], "y": 0}, {"x": [1], "y": 1}],
      ValueError,
      r"'x' of example 1 has shape \(1,\), and of example 0 \(2,\); pad or cut",
    ),
  ],
)
def test_mistakes_in_examples_are_one_line(source, error, message):
  with pytest.raises(error, match=message):
    Dataset.from_grain(source)


def test_grain_itself():
  grain = pytest.importorskip("grain")
  source = grain.MapDataset.range(6).map(lambda i: {"x": [i / 2, 1.0], "y": i % 2})
  data = Dataset.from_grain(source)
  assert data.x[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
  with pytest.raises(ValueError, match="without repeat"):
    Dataset.from_grain(source.repeat())

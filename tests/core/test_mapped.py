"""Records in a file: lazy selections that answer as the array in memory does."""

import numpy as np
import pytest

from mixdef.core import mapped as module
from mixdef.core import validate
from mixdef.core.mapped import MappedRecords, blocks_of
from mixdef.core.reading import digest

X = np.random.default_rng(0).integers(0, 256, (50, 4, 3), dtype=np.uint8)


@pytest.fixture
def base(tmp_path):
  np.save(tmp_path / "x.npy", X)
  return np.load(tmp_path / "x.npy", mmap_mode="r")


INDICES = {
  "slice": slice(3, 40, 7),
  "mask": np.arange(50) % 3 == 0,
  "unsorted": np.array([7, 2, 49, 2, 0]),
  "negative": np.array([-1, 3]),
  "two axes": np.array([[1, 5], [5, 0]]),
  "one": 11,
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_answers_as_the_array_does(base, index, monkeypatch):
  monkeypatch.setattr(module, "_HELD", 1)  # returns pages at every read
  records = MappedRecords(base)
  np.testing.assert_array_equal(records[index], X[index])
  assert type(records[index]) is np.ndarray
  rows = np.random.default_rng(1).permutation(50)
  np.testing.assert_array_equal(records.select(rows)[index], X[rows][index])


def test_a_selection_of_a_selection(base):
  rows, more = np.arange(49, 9, -2), np.array([3, 0, 9])
  part = MappedRecords(base).select(rows).select(more)
  assert (part.shape, part.ndim, part.dtype) == ((3, 4, 3), 3, np.uint8)
  assert (len(part), part.size, part.nbytes) == (3, 36, 36)
  np.testing.assert_array_equal(np.asarray(part), X[rows][more])
  np.testing.assert_array_equal(list(part), X[rows][more])


def test_replaced_rows_leave_the_file_alone(base):
  order = np.random.default_rng(2).permutation(50)
  changed, content = np.array([30, 4]), np.stack([X[0] + 1, X[1] + 2])
  expected = X[order].copy()
  expected[changed] = content
  records = MappedRecords(base).select(order).replace(changed, content)
  np.testing.assert_array_equal(records[:], expected)
  np.testing.assert_array_equal(records.select(changed)[:], content)
  np.testing.assert_array_equal(base, X)
  with pytest.raises(ValueError, match="replace all at once"):
    records.replace(changed, content)


def test_blocks_extremes_and_digests_are_those_of_the_array(base, monkeypatch):
  whole = digest(X)
  monkeypatch.setattr(module, "BLOCK", 60)
  records = MappedRecords(base)
  assert [len(block) for block in records.blocks()] == [5] * 10
  assert [len(block) for block in blocks_of(X)] == [5] * 10
  assert (records.min(), records.max()) == (X.min(), X.max())
  assert digest(records) == digest(X) == whole
  columns = np.asfortranarray(X)
  assert digest(columns) == whole


def test_take_reads_into_a_buffer(base):
  out = np.zeros((3, 4, 3), np.uint8)
  for records in (MappedRecords(base), X):
    records.take(np.array([1, 8, 30]), axis=0, out=out, mode="clip")
    np.testing.assert_array_equal(out, X[[1, 8, 30]])
    out[:] = 0


def test_positions_outside_are_refused(base):
  records = MappedRecords(base)
  for index in (50, np.array([0, -51]), np.ones(49, bool)):
    with pytest.raises(IndexError):
      records[index]


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      X.astype(np.float64),
      "mapped from .*x.npy, of type float64; write the file as fl",
    ),
    (X.astype(np.int64), "of type int64; write the file as int32"),
    (X % 2, "uint8 with values 0 and 1, but uint8 means images"),
    (
      np.where(X[20, 1, 2] == X, np.nan, 1).astype(np.float32),
      r"x\[\d+, \d, \d\] is nan",
    ),
  ],
)
def test_values_are_checked_in_blocks(values, message, tmp_path, monkeypatch):
  monkeypatch.setattr(module, "BLOCK", 60)
  np.save(tmp_path / "x.npy", values)
  with pytest.raises(ValueError, match=message) as caught:
    validate.inputs(np.load(tmp_path / "x.npy", mmap_mode="r"), "x")
  if "nan" in str(caught.value):
    with pytest.raises(ValueError, match="is nan") as of_array:
      validate.inputs(values, "x")
    assert str(caught.value) == str(of_array.value)

"""Labels are read in their common forms; errors are one line."""

import jax
import numpy as np
import pytest

from mixdef.data import Dataset

X = np.arange(4.0)[:, None]


@pytest.mark.parametrize(
  ("y", "read", "classes"),
  [
    ([[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]], [1, 0, 1, 0], None),
    (np.eye(4, dtype=np.float64)[::-1], [3, 2, 1, 0], None),
    (np.eye(4, dtype=bool), [0, 1, 2, 3], None),
    ([[0], [2], [1], [0]], [0, 2, 1, 0], None),
    (["cat", "ant", "cat", "bee"], [2, 0, 2, 1], ("ant", "bee", "cat")),
    (np.array(["b", "a", "a", "b"], object), [1, 0, 0, 1], ("a", "b")),
    ([["b"], ["a"], ["a"], ["b"]], [1, 0, 0, 1], ("a", "b")),
    ([-1, 1, 1, -1], [0, 1, 1, 0], ("-1", "1")),
    ([-1.0, 1.0, 1.0, -1.0], [0, 1, 1, 0], ("-1", "1")),
    ([0, 1, 1, 3], [0, 1, 1, 3], None),
  ],
)
def test_common_forms_become_integers(y, read, classes):
  data = Dataset.from_arrays(X, y)
  assert data.y.tolist() == read
  assert data.y.dtype == np.int32
  assert data.classes == classes


def test_one_hot_columns_count_the_classes():
  y = jax.nn.one_hot(np.array([0, 1, 1, 0]), 5)
  assert Dataset.from_arrays(X, y).num_classes == 5


def test_held_out_text_that_was_read_apart_is_numbered_alike():
  """A data set of "b" and "c" alone numbers them 0 and 1."""
  held = Dataset.from_arrays(X[:2], ["c", "b"])
  data = Dataset.from_arrays(X, ["a", "b", "c", "a"], test=held)
  assert data.test.y.tolist() == [2, 1]
  assert data.test.classes == data.classes
  with pytest.raises(
    ValueError, match="the label of test is 'd' in row 0, which is no"
  ):
    Dataset.from_arrays(
      X, ["a", "b", "c", "a"], test=Dataset.from_arrays(X[:2], ["d", "b"])
    )
  with pytest.raises(ValueError, match=r"text \(b, c\) on one side and numbers on the"):
    Dataset.from_arrays(X, [0, 1, 2, 0], test=held)


@pytest.mark.parametrize("column", ["ids", "groups"])
def test_names_that_are_masked_or_ragged_are_one_line(column):
  masked = np.ma.array(np.arange(4), mask=[False, False, True, True])
  for names, says in (
    (masked, "masked array"),
    ([[1], [1, 2], [3], [4]], "ragged"),
    (5, "integers or text"),
  ):
    with pytest.raises(ValueError, match=f"{column} .*{says}"):
      Dataset.from_arrays(X, [0, 1, 1, 0], **{column: names})


def test_held_out_text_has_the_same_classes():
  data = Dataset.from_arrays(X, ["b", "a", "b", "a"], test=(X, ["c", "a", "b", "c"]))
  assert (data.classes, data.num_classes) == (("a", "b", "c"), 3)
  assert data.test.y.tolist() == [2, 0, 1, 2]
  assert data.y.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
  ("y", "message"),
  [
    (
      [[0, 1], [1, 1], [1, 0], [0, 0]],
      r"y has shape \(4, 2\) and row 1 is not one-hot",
    ),
    ([[0.2, 0.8], [1, 0], [1, 0], [0, 1]], "row 0 is not one-hot.*argmax"),
    (["a", "", "b", "a"], r"y\[1\] is empty; remove records without a label"),
    ([0, -1, 2, 1], r"y\[1\] is -1; labels run from 0.*np\.unique\(y"),
    ([-1, 0, 1, 1], r"y\[0\] is -1; labels run from 0"),
    (["a", None, "b", "a"], "y has type object; convert"),
    ([0.0, np.nan, 1.0, 0.0], r"y\[1\] is nan; remove records without a label"),
    ([[0], [1, 2], [0], [1]], "y is ragged; all records need the same shape"),
    (np.ma.array([-1, 1, 1, -1], mask=[0, 1, 0, 0]), "y is a masked array"),
    ([["a", "b"]] * 4, "y has type <U1; labels are integers"),
    (np.zeros((4, 2, 2)), r"y has shape \(4, 2, 2\)"),
  ],
)
def test_errors_are_one_line(y, message):
  with pytest.raises(ValueError, match=message) as caught:
    Dataset.from_arrays(X, y)
  assert "\n" not in str(caught.value)


def test_an_empty_held_out_label_is_named():
  with pytest.raises(ValueError, match=r"^test y\[1\] is empty; remove"):
    Dataset.from_arrays(X, ["a", "b", "a", "b"], test=(X[:2], ["a", ""]))


def test_held_out_signs_need_not_hold_both():
  data = Dataset.from_arrays(X, [-1, 1, 1, -1], test=(X[:2], [1, 1]))
  assert data.test.y.tolist() == [1, 1]

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.data import Dataset, load, to_float


def _images(count=40, seed=0):
  random = np.random.default_rng(seed)
  x = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
  return x, np.arange(count) % 3


def test_own_arrays_in_one_line():
  x, y = _images()
  data = Dataset.from_arrays(x, y)
  assert (len(data), data.num_classes, data.name) == (40, 3, "user")
  assert (data.x.dtype, data.y.dtype) == (np.uint8, np.int32)
  assert not data.auxiliary.any()
  assert data.audited.all()
  assert data.test is None


@pytest.mark.parametrize("kind", [np.float64, np.float16, bool])
def test_tables_become_float32(kind):
  data = Dataset.from_arrays(np.array([[0, 1], [1, 0]], kind), [0, 1])
  assert data.x.dtype == np.float32
  np.testing.assert_array_equal(data.x, [[0, 1], [1, 0]])


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.uint8])
def test_jax_arrays_are_taken(kind):
  data = Dataset.from_arrays(jnp.array([[0, 2], [3, 1]], kind), jnp.array([1, 0]))
  assert data.x.dtype == (np.uint8 if kind == jnp.uint8 else np.float32)
  assert data.x.tolist() == [[0, 2], [3, 1]]
  assert isinstance(data.x, np.ndarray)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int8, jnp.int32])
def test_token_ids_stay_integers(kind):
  tokens = np.array([[0, 1, 2], [3, 1, 0]], kind)
  data = Dataset.from_arrays(tokens, [0, 1], test=(tokens, [1, 0]))
  assert data.x.dtype == data.test.x.dtype == np.int32
  np.testing.assert_array_equal(data.x, tokens)
  assert to_float(data.x) is data.x
  with pytest.raises(ValueError, match="standardize computes with records, but these"):
    data.standardize()


def test_names_of_records_travel_with_them():
  data = Dataset.from_arrays([[1.0], [2.0], [3.0]], [0, 1, 0], ids=["ann", "bo", "cy"])
  assert data.select([2, 0]).ids.tolist() == ["cy", "ann"]


def test_lists_and_a_test_pair():
  data = Dataset.from_arrays([[1.0], [2.0]], [0, 1], test=([[3.0]], [2]))
  assert (data.num_classes, data.test.num_classes, len(data)) == (3, 3, 2)
  assert data.test.x.tolist() == [[3.0]]


@pytest.mark.parametrize(
  ("x", "y", "more", "message"),
  [
    ([[1.0], [np.nan]], [0, 1], {}, r"x\[1, 0\] is nan .* remove or impute"),
    ([[1.0], [1e300]], [0, 1], {}, r"x\[1, 0\] is inf"),
    ([[1.0], [2.0]], [0, 1, 1], {}, "x has 2 records but y has 3"),
    ([[1.0]], [0], {}, "x has 1 record; membership needs at least 2"),
    ([1.0, 2.0], [0, 1], {}, r"x has shape \(2,\); reshape"),
    ([[], []], [0, 1], {}, r"x has shape \(2, 0\)"),
    ([[1.0], [2.0, 3.0]], [0, 1], {}, "x is ragged"),
    ([["a"], ["b"]], [0, 1], {}, "x has type <U1; convert it to numbers"),
    (np.eye(2, dtype=np.uint8), [0, 1], {}, "uint8 means images"),
    ([[1.0], [2.0]], [0.0, 1.0], {}, "y has type float64; labels are integers"),
    ([[1.0], [2.0]], [0.5, 1.0], {}, r"y\[0\] is 0\.5 .*only classification"),
    ([[1.0], [2.0]], [0, np.nan], {}, r"y\[1\] is nan; remove records"),
    ([[1.0], [2.0]], [0, None], {}, "y has type object; convert"),
    (np.ma.array([[1.0], [2.0]], mask=[[0], [1]]), [0, 1], {}, "x is a masked array"),
    ([[1.0], [2.0]], np.ma.array([0, 1], mask=[0, 1]), {}, "y is a masked array"),
    ([[1j], [2.0]], [0, 1], {}, "x has type complex128; pass real numbers"),
    (np.zeros((2, 1), "V2"), [0, 1], {}, r"x has type \|V2; .*bfloat16"),
    (np.zeros((2, 1), "M8[s]"), [0, 1], {}, "x has type datetime64.* holds dates"),
    (np.zeros(2, [("age", int)]), [0, 1], {}, "x has the fields age"),
    (None, [0, 1], {}, "x is None; pass an array"),
    ([[2**40], [1]], [0, 1], {}, "which int32 cannot represent"),
    (
      [[1.0], [2.0]],
      [0, 1],
      {"num_classes": 2.7},
      r"num_classes=2\.7; pass an integer",
    ),
    (
      [[1.0], [2.0]],
      [0, 1],
      {"num_classes": True},
      "num_classes=True; pass an integer",
    ),
    ([[1.0], [2.0]], [0, 1], {"test": [[1.0]]}, r"pass test=\(x, y\), or a Dataset"),
    ([[1.0], [2.0]], [0, 1], {"test": np.ones((2, 1))}, "test is not a pair of arrays"),
    (
      [[1], [2]],
      [0, 1],
      {"test": ([[1.0]], [0])},
      "test x holds float32 .* in the same way",
    ),
    ([[1.0], [2.0]], [0, 1], {"ids": [7, 7]}, "ids contain 7 2 times"),
    ([[1.0], [2.0]], [0, 1], {"ids": ["a"]}, "ids has 1 entries but x has 2"),
    (
      [[1.0], [2.0]],
      [0, 1],
      {"ids": [0.5, 1.0]},
      r"ids have type float64; pass \[N\] integers",
    ),
    ([[1.0], [2.0]], [[1, 0], [1, 1]], {}, r"y has shape \(2, 2\).*argmax"),
    ([[1.0], [2.0]], [0, -1], {}, r"y\[1\] is -1"),
    ([[1.0], [2.0]], [0, 5], {"num_classes": 3}, r"y\[1\] is 5 but num_classes is 3"),
    (
      [[1.0], [2.0]],
      [0, 1],
      {"test": ([[1.0, 2.0]], [0])},
      "preprocess both in the same way",
    ),
    (
      [[1.0], [2.0]],
      [0, 1],
      {"test": ([[1.0]], [7]), "num_classes": 2},
      r"test y\[0\] is 7",
    ),
  ],
)
def test_bad_arrays_get_one_clear_line(x, y, more, message):
  with pytest.raises(ValueError, match=message) as caught:
    Dataset.from_arrays(x, y, **more)
  assert "\n" not in str(caught.value)


def test_arrays_are_read_only_and_the_users_own_are_not():
  x = np.ones((3, 2), np.float32)
  data = Dataset.from_arrays(x, [0, 1, 0])
  for array in (data.x, data.y, data.auxiliary, data.always_member, data.ids):
    with pytest.raises(ValueError, match="read-only"):
      array[0] = 0
  x[0] = 2.0


@pytest.mark.parametrize("name", ["auxiliary", "always_member", "ids"])
def test_columns_of_another_length_are_refused(name):
  x, y = _images()
  with pytest.raises(ValueError, match=f"{name} has 39 entries but x has 40 records"):
    Dataset(x, y, 10, **{name: np.arange(39) if name == "ids" else np.zeros(39, bool)})


def test_select_by_mask_and_by_index():
  x, y = _images()
  data = Dataset.from_arrays(x, y, test=_images(5)).with_auxiliary(10)
  rows = np.array([7, 3, 39])
  picked = data.select(rows)
  np.testing.assert_array_equal(picked.x, x[rows])
  np.testing.assert_array_equal(picked.auxiliary, data.auxiliary[rows])
  assert picked.test is data.test
  mask = data.audited
  np.testing.assert_array_equal(data.select(mask).y, y[mask])


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([], "selects 0 records"),
    (np.zeros(40, bool), "selects 0 records"),
    (np.ones(39, bool), r"mask has shape \(39,\)"),
    ([0, 40], r"rows\[1\] is 40; the records are 0 to 39"),
    ([-1], r"rows\[0\] is -1"),
    ([0.5], "type float64"),
  ],
)
def test_select_refuses_bad_rows(rows, message):
  with pytest.raises(ValueError, match=message):
    Dataset.from_arrays(*_images()).select(rows)


def test_auxiliary_rows_are_as_many_as_asked_and_seeded():
  data = Dataset.from_arrays(*_images())
  for count in (0, 1, 39):
    assert data.with_auxiliary(count).auxiliary.sum() == count
  one, two = data.with_auxiliary(20), data.with_auxiliary(20, seed=1)
  np.testing.assert_array_equal(one.auxiliary, data.with_auxiliary(20).auxiliary)
  assert (one.auxiliary != two.auxiliary).any()
  np.testing.assert_array_equal(one.audited, ~one.auxiliary)
  with pytest.raises(ValueError, match="40 auxiliary records of 40 records"):
    data.with_auxiliary(40)


def _mark_always(data, rows):
  always = np.zeros(len(data), bool)
  always[rows] = True
  return dataclasses.replace(data, always_member=always)


def test_always_members_are_not_audited_and_travel_with_their_records():
  data = _mark_always(Dataset.from_arrays(*_images()), np.s_[:30])
  assert not Dataset.from_arrays(*_images()).always_member.any()
  np.testing.assert_array_equal(data.audited, np.arange(40) >= 30)
  assert data.select([35, 3, 31]).always_member.tolist() == [False, True, False]
  assert "30 always, test none" in repr(data)
  assert data.standardize().always_member.sum() == 30


def test_auxiliary_rows_are_drawn_from_records_that_are_not_always_members():
  data = _mark_always(Dataset.from_arrays(*_images()), np.s_[:30]).with_auxiliary(9)
  assert (data.auxiliary.sum(), data.audited.sum()) == (9, 1)
  assert not (data.auxiliary & data.always_member).any()
  with pytest.raises(
    ValueError, match="10 auxiliary records of 10 records that are not always"
  ):
    data.with_auxiliary(10)


@pytest.mark.parametrize("name", ["auxiliary", "always_member"])
def test_marks_are_bools(name):
  # The complement of whole numbers would select records from the end.
  data = Dataset.from_arrays(*_images())
  with pytest.raises(ValueError, match=f"{name} has type int64; pass bool"):
    dataclasses.replace(data, **{name: np.ones(len(data), int)})


def test_a_record_cannot_be_both_auxiliary_and_always_a_member():
  data = Dataset.from_arrays(*_images()).with_auxiliary(10)
  first = np.flatnonzero(data.auxiliary)[0]
  with pytest.raises(
    ValueError, match=rf"record {first} is marked auxiliary .* always"
  ):
    _mark_always(data, np.s_[:])


def test_split_is_stratified_disjoint_and_complete():
  random = np.random.default_rng(0)
  y = random.choice(4, size=501, p=[0.5, 0.3, 0.15, 0.05])
  x = np.arange(501, dtype=np.float32)[:, None]
  data = Dataset.from_arrays(x, y).hold_out(0.2, seed=3)
  assert len(data.test) == round(0.2 * 501)
  every = np.concatenate([data.x, data.test.x]).ravel()
  np.testing.assert_array_equal(np.sort(every), x.ravel())
  share = np.bincount(data.test.y, minlength=4) - 0.2 * np.bincount(y)
  assert (np.abs(share) <= 1).all()
  again = Dataset.from_arrays(x, y).hold_out(0.2, seed=4)
  assert (again.test.x != data.test.x).any()


def test_split_holds_out_every_record_equally_often():
  data = Dataset.from_arrays(np.arange(11.0)[:, None], np.arange(11) % 2)
  held = np.zeros(11)
  for seed in range(2000):
    held[data.hold_out(0.2, seed=seed).test.x.ravel().astype(int)] += 1
  # Two of 11 are held out, one from each class of 6 and 5.
  expected = 2000 / np.where(np.arange(11) % 2, 5, 6)
  assert (np.abs(held - expected) < 5 * np.sqrt(expected)).all()


def test_split_refuses_what_makes_no_sense():
  data = Dataset.from_arrays(*_images())
  with pytest.raises(ValueError, match="already has test records"):
    data.hold_out().hold_out()
  with pytest.raises(ValueError, match=r"auxiliary records .* call hold_out first"):
    data.with_auxiliary(3).hold_out()
  with pytest.raises(ValueError, match=r"always-member records .* call hold_out first"):
    _mark_always(data, [3]).hold_out()
  with pytest.raises(ValueError, match=r"fraction=0\.001 holds out 0 of 40"):
    data.hold_out(0.001)


def test_auxiliary_and_held_out_draws_are_independent():
  data = Dataset.from_arrays(np.arange(400.0)[:, None], np.zeros(400, int))
  held = np.ones(400, bool)
  held[data.hold_out(0.5, seed=0).x.ravel().astype(int)] = False
  both = (held & data.with_auxiliary(200, seed=0).auxiliary).sum()
  assert 70 < both < 130


def test_pitfall_83_standardize_reuses_training_statistics():
  x, y = _images(50)
  test_x, test_y = _images(20, seed=1)
  data = Dataset.from_arrays(x, y, test=(test_x, test_y)).standardize()
  mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1)
  assert data.x.dtype == data.test.x.dtype == np.float32
  np.testing.assert_allclose(data.x, (x - mean) / std, atol=1e-5)
  np.testing.assert_allclose(data.test.x, (test_x - mean) / std, atol=1e-5)
  assert abs(data.test.x.mean()) > 1e-4


def test_standardize_leaves_constant_pixels_at_zero():
  x = np.full((5, 2, 2, 1), 200, np.uint8)
  assert (Dataset.from_arrays(x, [0, 1, 0, 1, 0]).standardize().x == 0).all()


def test_to_float_scales_images_once_and_traces():
  x = np.array([[0, 128, 255]], np.uint8)
  expected = np.array([[0, 128 / 255, 1]], np.float32)
  for converted in (to_float(x), to_float(jnp.array(x)), jax.jit(to_float)(x)):
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, expected, atol=1e-7)
  np.testing.assert_array_equal(to_float(to_float(x)), to_float(x))


def test_digits_are_bundled():
  data = load("digits")
  assert data.x.shape == (1797, 8, 8, 1)
  assert (data.x.min(), data.x.max(), data.num_classes) == (0, 1, 10)
  assert data.y[:5].tolist() == [0, 1, 2, 3, 4]
  assert len(data.hold_out().test) == 359


def test_unknown_name_lists_close_matches():
  with pytest.raises(ValueError, match="unknown data set 'cifar_10'; similar: cifar10"):
    load("cifar_10")

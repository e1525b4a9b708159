import dataclasses

import numpy as np
import pytest

from mixdef.data import Dataset, disjoint_splits, subsets, validate_members
from mixdef.metrics import auc


def test_adding_models_changes_none_that_exist():
  few, many = subsets(50, 3, seed=5), subsets(50, 9, seed=5)
  np.testing.assert_array_equal(few, many[:3])
  assert (subsets(50, 3, seed=6) != few).any()
  assert (many[0] != many[1]).any()


def test_bernoulli_draws_are_independent_halves():
  members = subsets(300, 400)
  five_sigma = 5 * 0.5 / np.sqrt(members.size)
  assert abs(members.mean() - 0.5) < five_sigma
  assert abs((members[:, 1:] ^ members[:, :-1]).mean() - 0.5) < five_sigma
  assert abs((members[1:] ^ members[:-1]).mean() - 0.5) < five_sigma


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_fraction_is_the_expected_share(design):
  members = subsets(2000, 51, design=design, fraction=0.3)
  assert abs(members.mean() - 0.3) < 5 * np.sqrt(0.21 / members.size)


def test_balanced_puts_each_record_in_half_of_the_models():
  members = subsets(101, 8, design="balanced")
  np.testing.assert_array_equal(members.sum(axis=0), 4)
  assert len(set(members.sum(axis=1))) > 1


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
@pytest.mark.parametrize("num_models", [1, 2, 5, 7])
@pytest.mark.parametrize("num_records", [9, 10, 33])
def test_pitfall_138_odd_sizes_work(design, num_models, num_records):
  members = subsets(num_records, num_models, design=design, seed=1)
  assert members.shape == (num_models, num_records)
  if design == "balanced":
    counts = members.sum(axis=0)
    assert ((counts == num_models // 2) | (counts == -(-num_models // 2))).all()


def test_pitfall_138_odd_balanced_design_is_half_on_average():
  counts = subsets(4000, 5, design="balanced").sum(axis=0)
  assert abs(counts.mean() - 2.5) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_pitfall_52_last_record_is_drawn_like_the_others(design):
  members = subsets(25, 4000, design=design)
  assert (np.abs(members.mean(axis=0) - 0.5) < 5 * 0.5 / np.sqrt(4000)).all()
  draws = [disjoint_splits(7, 2, seed=seed) for seed in range(2000)]
  last = np.mean([6 in draw for draw in draws])
  assert abs(last - 6 / 7) < 5 * np.sqrt(6 / 49 / 2000)


def test_pitfall_136_counting_the_other_models_reveals_a_balanced_membership():
  for design, expected in (("balanced", 1.0), ("bernoulli", 0.5)):
    members = subsets(4000, 8, design=design)
    others = members.sum(axis=0) - members
    error = 5 * np.sqrt(1 / (3 * members.size))
    assert auc(-others, members) == pytest.approx(expected, abs=error)


def test_pitfall_147_subset_sizes_are_never_truncated():
  sizes = subsets(1000, 200).sum(axis=1)
  assert sizes.max() - sizes.min() > 20
  assert 0.6 < sizes.std() / np.sqrt(250) < 1.4


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_auxiliary_rows_are_never_members(design):
  eligible = np.arange(40) % 4 > 0
  members = subsets(40, 20, design=design, eligible=eligible)
  assert not members[:, ~eligible].any()
  whole = subsets(40, 20, design=design)
  np.testing.assert_array_equal(members[:, eligible], whole[:, eligible])


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_always_rows_are_in_every_model_and_change_no_other_draw(design):
  always = np.arange(40) < 25
  eligible = np.arange(40) >= 30
  members = subsets(40, 20, design=design, eligible=eligible, always_member=always)
  assert members[:, always].all()
  assert not members[:, 25:30].any()
  whole = subsets(40, 20, design=design)
  np.testing.assert_array_equal(members[:, eligible], whole[:, eligible])
  # Nobody eligible, but every model has records to train on.
  assert subsets(
    40, 2, design=design, eligible=~always & False, always_member=always
  ).any()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"eligible": np.zeros(6, bool)}, r"members\[0\] selects 0 records; every model"),
    ({"eligible": np.ones(5, bool)}, r"eligible has shape \(5,\); pass \[6\]"),
    ({"eligible": np.ones(6)}, "eligible has type float64"),
    (
      {"always_member": np.ones(5, bool)},
      r"always_member has shape \(5,\); pass \[6\]",
    ),
    ({"design": "paired"}, "design='paired'; choose from bernoulli, balanced"),
    ({"fraction": 0.0}, r"fraction=0\.0; pass a fraction in \(0, 1\]"),
    ({"num_models": 0}, "num_models=0; pass at least 1"),
    ({"num_models": 4.0}, r"num_models=4\.0; pass an integer of at least 1"),
    ({"data": True}, "data=True; pass an integer"),
    ({"seed": None}, "seed=None; pass an integer of at least 0"),
    ({"seed": -1}, "seed=-1; pass at least 0"),
    ({"seed": 1.5}, r"seed=1\.5; pass an integer"),
    ({"fraction": None}, "fraction=None; pass a number"),
    ({"fraction": "half"}, "fraction='half'; pass a number"),
    ({"design": ["balanced"]}, r"design=\['balanced'\]; choose from"),
    ({"eligible": [0, 1, 1, 1, 1, 1]}, r"for example eligible\.astype\(bool\)"),
  ],
)
def test_subsets_refuse_what_cannot_be_trained(arguments, message):
  with pytest.raises(ValueError, match=message):
    subsets(**{"num_models": 4, "data": 6, **arguments})


def test_pitfall_149_four_splits_are_disjoint_and_equal():
  parts = disjoint_splits(42_083, 4, size=10_520, seed=2)
  assert parts.shape == (4, 10_520)
  assert len(np.unique(parts)) == parts.size
  assert parts.min() >= 0
  assert parts.max() < 42_083
  assert (disjoint_splits(42_083, 4, size=10_520, seed=3) != parts).any()


def test_splits_use_every_record_they_can():
  assert sorted(disjoint_splits(12, 4).ravel()) == list(range(12))
  assert disjoint_splits(14, 4).shape == (4, 3)
  with pytest.raises(ValueError, match="4 disjoint parts of 4 do not fit 14"):
    disjoint_splits(14, 4, size=4)
  with pytest.raises(ValueError, match="5 disjoint parts of 0 do not fit 4"):
    disjoint_splits(4, 5)


@pytest.mark.parametrize(
  ("members", "message"),
  [
    (
      np.ones((2, 3)),
      r"members has type float64; pass bool, .*members\.astype\(bool\)",
    ),
    (np.array([[0.5, 2, 0]]), r"pass bool, for example weights > 0"),
    (np.ones((3, 2), bool), r"members has shape \(3, 2\); pass \[2, 3\]: members\.T"),
    (np.ma.array(np.ones((2, 3), bool), mask=True), "members is a masked array"),
    ([[0, 2], [1]], "members is ragged"),
    (np.ones((2, 4), bool), r"members has shape \(2, 4\); pass \[2, 3\]"),
    (np.ones(3, bool), r"members has shape \(3,\); pass \[1, 3\]"),
    (np.ones((0, 3), bool), r"members has shape \(0, 3\); pass \[1, 3\]"),
    (np.array([[1, 0, 0], [0, 0, 0]], bool), r"members\[1\] selects 0 records"),
  ],
)
def test_keep_is_checked(members, message):
  with pytest.raises(ValueError, match=message):
    validate_members(members, 3)


def test_a_data_set_says_who_may_and_who_must_be_a_member():
  x = np.zeros((40, 2), np.float32)
  data = Dataset.from_arrays(x, np.arange(40) % 2).with_auxiliary(7, seed=1)
  always = ~data.auxiliary & (np.arange(40) < 9)
  data = dataclasses.replace(data, always_member=always)
  members = subsets(data, 20, seed=3)
  expected = subsets(40, 20, seed=3, eligible=data.audited, always_member=always)
  np.testing.assert_array_equal(members, expected)
  assert members[:, always].all()
  assert not members[:, data.auxiliary].any()
  np.testing.assert_array_equal(disjoint_splits(data, 4), disjoint_splits(40, 4))

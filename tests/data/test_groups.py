"""A person has all of its records on one side wherever records are drawn."""

import numpy as np
import pytest

from mixdef import auditing
from mixdef.auditing import CANARIES, plant
from mixdef.data import Dataset, disjoint_splits, subsets
from mixdef.training.signature import digest_data

SIZES = [1, 2, 3, 4, 5, 5, 10]
GROUPS = np.repeat([f"p{i}" for i in range(7)], SIZES)[::-1]
X, Y = np.arange(30.0)[:, None], np.arange(30) % 3


def people(**options):
  return Dataset.from_arrays(X, Y, groups=GROUPS, **options)


def whole(mask):
  """Whether a mask holds all or none of the records of each person."""
  return all(len(set(mask[name == GROUPS])) == 1 for name in set(GROUPS))


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
def test_members_are_whole_persons(design):
  members = subsets(people(), 64, design=design, seed=3)
  assert all(whole(row) for row in members)
  assert not all(whole(row) for row in subsets(30, 64, design=design, seed=3))
  assert abs(members.mean() - 0.5) < 0.1


def test_members_without_groups_are_as_before():
  one_each = Dataset.from_arrays(X, Y, groups=np.arange(30))
  np.testing.assert_array_equal(subsets(one_each, 8), subsets(30, 8))


def test_held_out_records_are_whole_persons():
  for seed in range(20):
    data = people().hold_out(0.3, seed=seed)
    assert not set(data.groups) & set(data.test.groups)
    assert len(set(data.test.groups)) == round(0.3 * 7)
    assert len(data) + len(data.test) == 30
  one_each = Dataset.from_arrays(X, Y, groups=np.arange(30)).hold_out(0.2, seed=5)
  plain = Dataset.from_arrays(X, Y).hold_out(0.2, seed=5)
  np.testing.assert_array_equal(one_each.test.x, plain.test.x)


def test_auxiliary_records_are_whole_persons():
  for seed in range(20):
    auxiliary = people().with_auxiliary(12, seed=seed).auxiliary
    assert whole(auxiliary)
    assert 0 < auxiliary.sum() <= 12
  with pytest.raises(ValueError, match="fewer than a group has"):
    Dataset.from_arrays(X, Y, groups=np.zeros(30, int)).with_auxiliary(5)


def test_groups_travel_with_their_records():
  data = people().select([29, 0, 4])
  assert "7 groups, test none" in repr(people())
  assert data.groups.tolist() == GROUPS[[29, 0, 4]].tolist()
  assert data.units.tolist() == np.unique(data.groups, return_inverse=True)[1].tolist()
  with pytest.raises(ValueError, match="read-only"):
    data.groups[0] = "p9"


def test_several_parts_would_split_persons():
  with pytest.raises(ValueError, match="2 parts would split groups of user"):
    disjoint_splits(people(), 2)
  assert disjoint_splits(people(), 1, size=7).shape == (1, 7)


@pytest.mark.parametrize("kind", CANARIES)
def test_a_canary_is_a_whole_person(kind):
  planted = plant(people(), kind, 3, seed=3)
  np.testing.assert_array_equal(planted.groups, GROUPS)
  assert whole(planted.audited)
  assert len(set(GROUPS[planted.audited])) == 3
  assert (planted.always_member == ~planted.audited).all()
  members = subsets(planted, 64)
  assert all(whole(row) for row in members)
  assert len({tuple(column) for column in members[:, planted.audited].T}) == 3
  if kind == "mislabelled":
    np.testing.assert_array_equal(planted.y != Y, planted.audited)
  few = plant(people(), kind, 2, seed=3)
  assert (few.audited <= planted.audited).all()


def test_only_persons_without_other_duties_are_canaries():
  data = people().with_auxiliary(12)
  free = len(set(GROUPS[~data.auxiliary]))
  planted = plant(data, "clean", free)
  np.testing.assert_array_equal(planted.audited, ~data.auxiliary)
  with pytest.raises(ValueError, match=f"8 canaries of {free} persons that are nei"):
    plant(data, "clean", 8)
  _, capped = auditing.planted(people(), "clean:20")
  assert len(set(GROUPS[capped.audited])) == 7 // 4


def test_persons_of_one_record_become_the_canaries_that_records_would():
  one_each = Dataset.from_arrays(X, Y, groups=np.arange(30))
  for kind in CANARIES:
    ours, plain = (plant(d, kind, 8) for d in (one_each, Dataset.from_arrays(X, Y)))
    np.testing.assert_array_equal(ours.audited, plain.audited)
    np.testing.assert_array_equal(ours.x, plain.x)
    np.testing.assert_array_equal(ours.y, plain.y)


def test_groups_are_part_of_the_content():
  assert digest_data(people()) != digest_data(Dataset.from_arrays(X, Y))
  assert digest_data(people()) != digest_data(
    Dataset.from_arrays(X, Y, groups=GROUPS[::-1])
  )


@pytest.mark.parametrize(
  ("groups", "message"),
  [
    (np.arange(29), "groups has 29 entries but x has 30 records"),
    (np.ones(30), r"groups have type float64; pass \[N\] integers or text"),
  ],
)
def test_bad_groups_are_one_line(groups, message):
  with pytest.raises(ValueError, match=message):
    Dataset.from_arrays(X, Y, groups=groups)


def test_a_person_on_both_sides_is_refused():
  test = Dataset.from_arrays(X[:2], Y[:2], groups=["p1", "p9"])
  with pytest.raises(ValueError, match="group p1 has training records and test"):
    people(test=test)

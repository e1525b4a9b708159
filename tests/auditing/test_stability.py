"""Lists of names from other reference models and other seeds."""

import itertools

import numpy as np
import pytest

from mixdef.attacks import Signals, leave_one_out, lira_online
from mixdef.auditing.stability import overlap, random_attacks, stability


def signals(models, effect=3.0, count=200):
  rng = np.random.default_rng(0)
  members = rng.random((models + 1, count)) < 0.5
  members[0] = np.arange(count) < count // 2
  phi = rng.normal(size=members.shape) + effect * members
  found = Signals.from_phi(phi, members, design="bernoulli")
  object.__setattr__(found, "target", 0)
  return found


def names_of(scores, member, rank):
  """Return the members above the rank-th largest score of the hold-out, naively."""
  limit = sorted(scores[~member])[-rank]
  return {i for i in np.flatnonzero(member) if scores[i] > limit}


def test_overlap_equals_a_loop_over_pairs_of_lists():
  rng, member = np.random.default_rng(1), np.arange(100) < 60
  scores = rng.normal(size=(4, 100)) + 2 * member
  lists = [names_of(row, member, 3) for row in scores]
  expected = [len(a & b) / len(a | b) for a, b in itertools.combinations(lists, 2)]
  found = overlap(scores, member, 3)
  assert found["jaccard"] == pytest.approx(np.mean(expected))
  assert found["named"] == [len(one) for one in lists]
  assert found["in_all"] == len(set.intersection(*lists))
  assert found["in_any"] == len(set.union(*lists))


def test_records_that_a_list_does_not_score_are_left_out_of_all():
  member = np.arange(100) < 60
  scores = np.stack([np.arange(100.0), np.arange(100.0)])
  scores[1, 50:80] = np.nan
  found = overlap(scores, member, 10)
  assert found["scored"] == 50
  assert found["jaccard"] is None  # the hold-out has the larger scores
  scores[:, :50] += 200
  assert overlap(scores, member, 10)["jaccard"] == 1.0


def test_no_overlap_where_nobody_can_be_compared():
  scores = np.full((2, 10), np.nan)
  assert overlap(scores, np.arange(10) < 5, 1)["jaccard"] is None


def test_halves_and_quarters_are_attacks_with_these_models_alone():
  found, member = signals(32), np.arange(200) < 100
  sets = stability("lira_online", found, 2, {})["sets"]
  assert [(row["lists"], row["models"]) for row in sets] == [(2, 16), (4, 8)]
  halves = [
    leave_one_out(lira_online, found.only_models(models), targets=[0])[0]
    for models in ([0, *range(1, 17)], [0, *range(17, 33)])
  ]
  lists = [names_of(scores, member, 2) for scores in halves]
  assert sets[0]["jaccard"] == len(lists[0] & lists[1]) / len(lists[0] | lists[1])
  assert sets[0]["jaccard"] > 0.3


def test_fewer_than_sixteen_references_are_not_split():
  assert stability("lira_online", signals(15), 2, {})["sets"] == []
  assert len(stability("lira_online", signals(16), 2, {})["sets"]) == 1


def test_random_attacks_are_compared_over_their_seeds():
  found = signals(4)
  repeats = random_attacks(["threshold_known", "loss_threshold", "imia"], found)
  assert list(repeats) == ["threshold_known"]
  draws = {
    "random": lambda seed: np.random.default_rng(seed).normal(size=200),
    "fixed": lambda _: np.arange(200.0)[::-1],
  }
  rows = {
    row["attack"]: row for row in stability("lira_online", found, 20, draws)["seeds"]
  }
  assert rows["fixed"]["jaccard"] == 1.0
  assert rows["random"]["jaccard"] < 0.4
  assert rows["random"]["lists"] == 3

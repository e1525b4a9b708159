"""Attacks combined: consensus, ranges, persons; and estimates from losses alone."""

import numpy as np
import pytest

from mixdef.attacks import (
  Signals,
  agreement,
  auc_within,
  by_group,
  lira_offline,
  lira_online,
  log_loss_ratio,
  lt_iqr,
  mean_rank,
  ramia,
  strata,
  tail_tnr,
)
from mixdef.metrics import auc


@pytest.mark.parametrize(
  ("trace", "expected"),
  [((2.3, 1.9, 1, 0.5, 0.2), 1.4), ((2, 1, 0.4, 0.1), 0.925), ((0.7,) * 6, 0.0)],
)
def test_check_values_of_lt_iqr(trace, expected):
  assert lt_iqr(np.array(trace)[:, None])[0] == pytest.approx(expected)


@pytest.mark.parametrize("points", [2, 5, 30, 101])
def test_lt_iqr_interpolates_linearly_between_sorted_losses(points):
  trace = np.random.default_rng(points).exponential(size=(points, 20))
  scores = lt_iqr(trace)

  def quantile(row, level):
    below = int(level * (len(row) - 1))
    share = level * (len(row) - 1) - below
    above = min(below + 1, len(row) - 1)
    return (1 - share) * row[below] + share * row[above]

  for i in range(20):
    row = sorted(trace[:, i])
    expected = quantile(row, 0.75) - quantile(row, 0.25)
    assert scores[i] == pytest.approx(expected, abs=1e-12)


def test_lt_iqr_keeps_nan_and_refuses_one_point():
  trace = np.array([[2.0, np.nan, 1.0], [1.0, 1.0, 1.0]])
  np.testing.assert_array_equal(np.isnan(lt_iqr(trace)), [False, True, False])
  for bad in (trace[:1], trace[0]):
    with pytest.raises(ValueError, match=r"\[E \+ 1, N\]"):
      lt_iqr(bad)


MEMBERS = (0, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)
HOLDOUT = (0.05, 0.2, 0.6, 0.9, 1.2, 1.5, 2, 0.3, 0.1, 3)


@pytest.mark.parametrize(("fnr", "expected"), [(0.1, 0.5), (0.0, 0.4)])
def test_check_values_of_the_tail(fnr, expected):
  # 0.9, 1.2, 1.5, 2 and 3 exceed the member at 0.8; four of them exceed the one at 1.
  holdout = list(HOLDOUT)
  found = tail_tnr(MEMBERS, holdout, fnr=fnr, least=0)
  assert found == pytest.approx(expected)


def test_the_tail_is_not_resolved_with_few_members():
  assert np.isnan(tail_tnr(MEMBERS, HOLDOUT, fnr=0.1))
  losses = np.random.default_rng(0).exponential(size=10_000)
  assert np.isnan(tail_tnr(losses[:9_999], losses, fnr=0.001))
  assert tail_tnr(losses, 2 * losses, fnr=0.001) > 0.001


def test_the_tail_equals_a_search_over_all_thresholds():
  rng = np.random.default_rng(0)
  for _ in range(50):
    inside, out = rng.integers(0, 8, 30) / 8, rng.integers(0, 12, 20) / 8
    fnr = rng.choice([0, 0.05, 0.1, 1 / 3, 0.5])
    allowed = [c for c in inside if (inside > c).mean() <= fnr + 1e-12]
    expected = (out > min(allowed)).mean()
    assert tail_tnr(inside, out, fnr=fnr, least=0) == expected


def test_losses_that_are_nan_are_refused():
  with pytest.raises(ValueError, match="1 NaN"):
    tail_tnr([0.1, np.nan], [1.0])
  with pytest.raises(ValueError, match="members: the mean loss is 0"):
    log_loss_ratio([0.0, 0.0], [1.0])
  assert log_loss_ratio([0.01], [1.0]) == pytest.approx(2)


def test_check_value_of_the_consensus():
  ranks = 3 * mean_rank([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 5, 5]])
  np.testing.assert_allclose(ranks, [6.5, 6.5, 8.5, 8.5])


def test_scales_do_not_matter_to_the_consensus_and_nan_is_not_ranked():
  scores = np.random.default_rng(0).normal(size=(3, 20))
  plain = mean_rank(scores)
  np.testing.assert_array_equal(mean_rank(np.exp(scores * [[1], [5], [0.1]])), plain)
  scores[1, 4] = np.nan
  found = mean_rank(scores)
  assert np.flatnonzero(np.isnan(found)).tolist() == [4]


def test_agreement_equals_sets():
  rng = np.random.default_rng(0)
  members, holdout = rng.normal(1, 1, (3, 60)), rng.normal(size=(3, 40))
  found = agreement(members, holdout, 5)
  lists = [
    set(np.flatnonzero(m > np.sort(h)[-5]))
    for m, h in zip(members, holdout, strict=True)
  ]
  assert found.sizes.tolist() == [len(one) for one in lists]
  assert found.intersection == len(set.intersection(*lists))
  assert found.union == len(set.union(*lists))
  for i in range(3):
    for j in range(3):
      jaccard = len(lists[i] & lists[j]) / len(lists[i] | lists[j])
      assert found.jaccard[i, j] == pytest.approx(jaccard)
  assert found.votes.tolist() == [sum(r in one for one in lists) for r in range(60)]


def test_ties_name_nobody_and_nan_is_counted():
  members, holdout = np.zeros((2, 30)), np.zeros((2, 10))
  members[1] = np.arange(30)
  members[1, :3] = np.nan
  found = agreement(members, holdout, 10)
  assert found.sizes.tolist() == [0, 27]
  assert found.unscored.tolist() == [0, 3]
  assert np.isnan(found.jaccard[0, 0])
  holdout[1, 0] = np.nan  # counts as the largest
  assert agreement(members, holdout, 1).sizes.tolist() == [0, 0]
  with pytest.raises(ValueError, match="at most 10"):
    agreement(members, holdout, 11)


def test_check_value_of_ramia():
  samples = [[0.1, 0.9, 0.5, 0.7, 0.3]]
  assert ramia(samples, keep=3)[0] == pytest.approx(0.7)
  assert ramia(samples, keep=1)[0] == 0.9
  assert ramia(samples, keep=5)[0] == pytest.approx(0.5)
  assert ramia(samples, keep=2, end="bottom")[0] == pytest.approx(0.2)
  assert np.isnan(ramia([[np.nan, 1.0]], keep=1)).all()
  with pytest.raises(ValueError, match="keep"):
    ramia(samples, keep=6)


@pytest.mark.parametrize("end", ["top", "bottom"])
def test_ramia_is_the_mean_after_trimming_the_other_end(end):
  samples = np.random.default_rng(0).normal(size=(15, 10))
  for keep in range(1, 11):
    scores = ramia(samples, keep=keep, end=end)
    for row, score in zip(samples, scores, strict=True):
      left = sorted(row, reverse=end == "top")
      while len(left) > keep:
        left.pop()
      assert score == pytest.approx(sum(left) / keep, abs=1e-12)


def test_check_value_of_a_person_of_two_records():
  phi = np.array([[2, 0, 1, -1, 0], [3, 1, 2, 0, 1]], float).T
  signals = Signals.from_phi(phi, np.zeros((5, 2), bool))
  for combine in ("sum", "mean"):
    person = by_group(signals, ["a", "a"], combine=combine)
    score = lira_offline(person, target=0)[0]
    assert score == pytest.approx(2.449490, abs=5e-7)
  # Added up as if they were independent, the records look more certain.
  independent = lira_offline(signals, target=0).sum() / np.sqrt(2)
  assert independent == pytest.approx(3.464102, abs=5e-7)


def test_persons_are_combined_as_in_a_loop():
  rng = np.random.default_rng(0)
  groups = rng.choice(["eve", "bob", "ann", "dan"], 30)
  names = sorted(set(groups))
  chosen = rng.random((6, 4)) < 0.5
  place = np.array([names.index(name) for name in groups])
  logits = rng.normal(size=(6, 30, 2, 3))
  others = rng.normal(size=(6, 12, 2, 3)), rng.integers(0, 3, 12)
  signals = Signals.from_logits(
    logits, rng.integers(0, 3, 30), chosen[:, place], population=others
  )
  persons = by_group(signals, groups, population_groups=np.arange(12) // 3)
  assert persons.ids.tolist() == names
  assert persons.sizes.tolist() == [(groups == name).sum() for name in names]
  np.testing.assert_array_equal(persons.members, chosen)
  for g, name in enumerate(names):
    for field in ("phi", "hinge"):
      expected = getattr(signals, field)[:, groups == name].mean(1)
      np.testing.assert_allclose(getattr(persons, field)[:, g], expected)
  assert persons.population.phi.shape == (6, 4, 2)
  assert by_group(signals, groups).population is None
  assert persons.only_models([0, 2]).sizes.tolist() == persons.sizes.tolist()


def test_a_person_half_in_a_model_is_refused():
  signals = Signals.from_phi(np.zeros((2, 3)), [[True, False, True]] * 2)
  with pytest.raises(ValueError, match=r"`members`.*draw whole persons: subsets"):
    by_group(signals, [0, 0, 1])


def test_a_sum_separates_persons_by_size_alone():
  rng = np.random.default_rng(0)
  sizes = rng.choice([1, 3, 10, 40], 600)
  groups = np.repeat(np.arange(600), sizes)
  members = rng.random((12, 600)) < 0.5
  members[0] = rng.random(600) < np.where(sizes > 5, 0.8, 0.2)  # no other effect
  phi = 2 + rng.normal(size=(12, len(groups)))
  signals = Signals.from_phi(phi, members[:, groups], design="bernoulli")
  persons = by_group(signals, groups, combine="sum")
  scores = persons.phi[0, :, 0]
  assert auc(scores, members[0]) > 0.7
  within = auc_within(scores, members[0], strata(persons.sizes))
  assert abs(within - 0.5) < 0.09
  own = lira_online(by_group(signals, groups), target=0)
  assert abs(auc_within(own, members[0], strata(persons.sizes)) - 0.5) < 0.09


def test_auc_within_counts_pairs_of_the_same_stratum():
  rng = np.random.default_rng(0)
  scores, members, kinds = (
    rng.integers(0, 5, 80),
    rng.random(80) < 0.4,
    rng.integers(0, 3, 80),
  )
  wins = pairs = 0.0
  for i in np.flatnonzero(members):
    for j in np.flatnonzero(~members & (kinds == kinds[i])):
      wins += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
      pairs += 1
  assert auc_within(scores, members, kinds) == pytest.approx(wins / pairs)
  assert np.isnan(auc_within([1.0, 2.0], [True, False], [0, 1]))

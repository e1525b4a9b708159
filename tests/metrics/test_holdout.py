"""Exact bounds from a hold-out, against their laws, check values and simulations."""

import numpy as np
import pytest

from mixdef.metrics import Rules, dp_tpr, fpr_bounds, odds
from mixdef.metrics.holdout import RANKS

NAMED = np.array([300, 450, 800, 1200, 1900, 3000, 4200, 6000, 9500, 13000])


def known():
  low, high = fpr_bounds(RANKS, 5000)
  return Rules(np.array(RANKS), np.zeros(10), low, high, NAMED, 25_000, 5000)


def test_bounds_have_the_check_values():
  low, high = fpr_bounds([1, 2, 5, 10, 50], 5000)
  np.testing.assert_allclose(high, [0.00106, 0.00149, 0.00252, 0.00400, 0.0140], 5e-3)
  np.testing.assert_allclose(low, [1.0e-6, 2.07e-5, 2.16e-4, 7.44e-4, 6.74e-3], 5e-3)


def test_bounds_invert_the_binomial_law():
  """FPR <= f for all of n0 draws above their k-th largest: a binomial tail."""
  from scipy.stats import binom

  low, high = fpr_bounds([3], 40, confidence=0.9, num_attacks=2)
  np.testing.assert_allclose(binom.cdf(2, 40, high), 0.1 / 20)
  np.testing.assert_allclose(binom.sf(2, 40, low), 0.1 / 20)


@pytest.mark.parametrize(
  ("prior", "shown", "possible"),
  [
    (0.1, (1900, 0), (4200, 450)),
    (0.5, (13000, 0), (13000, 1900)),
    (0.01, (0, 0), (800, 300)),
  ],
)
def test_members_on_a_list_have_the_check_values(prior, shown, possible):
  rules = known()
  assert tuple(rules.shown(p, prior) for p in (0.5, 0.95)) == shown
  assert tuple(rules.possible(p, prior) for p in (0.5, 0.95)) == possible


@pytest.mark.parametrize(
  ("count", "named", "half"),
  [
    (500, 1.80, 0.0949),
    (1000, 0.904, 0.0476),
    (5000, 0.181, 0.00953),
    (25000, 0.0362, 0.00191),
  ],
)
def test_the_certifiable_share_has_the_check_values(count, named, half):
  rules = Rules.of(np.zeros(100_000), np.arange(count, dtype=float))
  assert rules.certifiable(0.95, 0.1) == pytest.approx(named, rel=5e-3)
  assert rules.certifiable(0.5, 0.1) == pytest.approx(half, rel=5e-3)


def test_few_members_need_a_longer_hold_out():
  """One member above n0 records is chance with probability 1/(n0 + 1)."""
  level = 0.05 / len(RANKS)
  for count in (198, 200):
    rules = Rules.of([1e9], np.arange(count, dtype=float))
    assert (rules.shown(0.5, 0.99) == 1) == (1 / (count + 1) <= level)
    assert rules.beats_guessing == (1 / (count + 1) <= level)
  assert Rules.of([1e9], np.arange(150.0)).certifiable(0.5, 0.99) > 1
  assert Rules.of([1e9], np.arange(250.0)).certifiable(0.5, 0.99) == 1


def test_a_rule_beats_guessing_as_often_as_a_random_order_of_all_scores():
  from itertools import combinations

  rules = Rules.of([9.0, 8.0, 6.0, 1.0], [7.0, 5.0, 4.0, 3.0, 2.0])
  for level in (0.01, 0.1, 0.3, 0.6):
    expected = []
    for k, named in zip(rules.rank, rules.named, strict=True):
      orders = list(combinations(range(9), 4))  # places of the members, best first
      above = [
        sum(place < [i for i in range(9) if i not in own][k - 1] for place in own)
        for own in orders
      ]
      expected.append(np.mean(np.array(above) >= named) <= level)
    assert rules._replace(level=level).beats.tolist() == expected


@pytest.mark.parametrize(("members", "holdout"), [(1, 1000), (5, 400), (100, 2000)])
def test_without_leakage_no_size_beats_guessing(members, holdout):
  rng = np.random.default_rng(3)
  runs, found = 200, 0
  for _ in range(runs):
    rules = Rules.of(rng.normal(size=members), rng.normal(size=holdout))
    found += rules.beats_guessing
  assert found <= 0.05 * runs + 2 * np.sqrt(runs * 0.05 * 0.95)


def test_members_above_the_kth_score_are_counted():
  rng = np.random.default_rng(0)
  members, holdout = rng.normal(1, 1, 500), rng.normal(size=400)
  rules = Rules.of(members, holdout)
  assert rules.rank.tolist() == [k for k in RANKS if k <= 200]
  for k, threshold, named in zip(rules.rank, rules.threshold, rules.named, strict=True):
    assert threshold == sorted(holdout)[-k]
    assert named == sum(score > threshold for score in members)


def test_ties_count_against_the_attacker():
  tied = Rules.of(np.ones(50), np.ones(100))
  assert not tied.named.any()
  assert not tied.low.any()
  assert not tied.beats_guessing
  some = Rules.of([2.0] * 50, [2.0, 1.0, 1.0, *np.linspace(0, 0.9, 97)])
  assert some.named.tolist()[:3] == [0, 50, 50]
  assert (some.low[:3] > 0).tolist() == [True, False, True]


def test_scores_that_are_missing_are_counted_and_not_ranked():
  nan = np.nan
  rules = Rules.of([3.0, nan, 0.0], [1.0, nan, 0.5, 0.2, 0.1])
  assert (rules.num_members, rules.num_holdout, rules.num_missing) == (2, 4, 2)
  assert rules.named.tolist() == [1, 1]
  with pytest.raises(ValueError, match="0 members and 4 records"):
    Rules.of([nan], [1.0, 0.5, 0.2, 0.1])


def test_bad_arguments_are_one_line():
  with pytest.raises(ValueError, match="not a percentage"):
    odds(95, 0.1)
  with pytest.raises(ValueError, match="scores of one model"):
    Rules.of([[1.0]], [1.0, 2.0])
  with pytest.raises(ValueError, match="confidence=95"):
    Rules.of([1.0], [1.0, 2.0], confidence=95)


def test_the_bound_of_differential_privacy_has_the_check_values():
  np.testing.assert_allclose(
    dp_tpr([0.01, 0.001], 1.0, 1e-5), [0.0271928, 0.0027283], atol=1e-7
  )
  assert dp_tpr(0.3, 0.0, 0.0) == 0.3  # no attack beats guessing
  assert dp_tpr([0.0, 1.0], 5.0, 0.01).tolist() == [0.01, 1.0]
  rates = dp_tpr(np.linspace(0, 1, 50), 2.0, 1e-3)
  assert (np.diff(rates) >= 0).all()


def test_all_bounds_hold_at_once_in_simulated_releases():
  """At 95 % confidence per side; the bounds of ten rules are simultaneous."""
  from scipy.stats import norm

  rng = np.random.default_rng(1)
  runs, over, under = 400, 0, 0
  for _ in range(runs):
    rules = Rules.of([0.0], rng.normal(size=2000))
    rate = norm.sf(rules.threshold)
    over += bool((rate > rules.high).any())
    under += bool((rate < rules.low).any())
  assert max(over, under) <= 0.05 * runs + 2 * np.sqrt(runs * 0.05 * 0.95)
  assert over + under > 0  # the bounds are not vacuous


def test_a_target_without_leakage_shows_nobody():
  rng = np.random.default_rng(2)
  runs = [Rules.of(rng.normal(size=2000), rng.normal(size=1000)) for _ in range(300)]
  assert np.mean([rules.shown(0.5, 0.1) > 0 for rules in runs]) <= 0.05
  leaking = Rules.of(rng.normal(5, 1, 2000), rng.normal(size=5000))
  assert leaking.shown(0.95, 0.1) > 1000

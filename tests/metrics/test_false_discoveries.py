"""Conformal p-values and lists, against loops, check values and simulations."""

import numpy as np
import pytest

from mixdef.metrics import conformal_p, discoveries, fdr_list
from mixdef.metrics.false_discoveries import METHODS, smallest_list

P = [0.001, 0.008, 0.012, 0.03, 0.041, 0.2, 0.5, 0.9]


def test_p_values_have_the_check_values():
  holdout = [0.1, 0.4, 0.4, 0.9, 1.5, 2, 2.2, 3, 3.1]
  found = conformal_p([3.5, 3.1, 1.0, 0.4, -1, np.nan], [*holdout, np.nan])
  np.testing.assert_allclose(found, [0.1, 0.2, 0.6, 0.9, 1.0, np.nan])
  with pytest.raises(ValueError, match="no score"):
    conformal_p([1.0], [np.nan])


def test_lists_have_the_check_values():
  assert [discoveries(P, 0.05, method=m).sum() for m in METHODS] == [3, 1, 5]
  assert smallest_list(50_000, 5000) == 200
  assert smallest_list(25_000, 5000) == 100
  assert smallest_list(1000, 1000, method="by") == 150


@pytest.mark.parametrize("method", METHODS)
def test_a_list_equals_the_naive_loop(method):
  rng = np.random.default_rng(3)
  for _ in range(20):
    p = rng.random(60) ** 3
    level, ranked = 0.1, np.sort(p)
    if method == "storey":
      level /= min(1.0, (1 + (p > 0.5).sum()) / (len(p) * 0.5))
    if method == "by":
      level /= sum(1 / j for j in range(1, len(p) + 1))
    last = max((k for k in range(1, 61) if ranked[k - 1] <= k * level / 60), default=0)
    found = discoveries(p, 0.1, method=method)
    assert found.sum() == last
    assert not last or p[found].max() == ranked[last - 1]


def test_records_without_a_p_value_are_not_named():
  found = discoveries([0.001, np.nan, 0.9], 0.05)
  assert found.tolist() == [True, False, False]
  assert not discoveries([np.nan], 0.05).any()


def test_wrong_names_stay_below_their_rate_in_simulated_releases():
  """Of a pool of 1,000 with 100 members, shifted by 4: BH names 90 % of them."""
  rng, rates, shares = np.random.default_rng(4), [], []
  for _ in range(1000):
    pool = rng.normal(size=1000)
    pool[:100] += 4
    named = discoveries(conformal_p(pool, rng.normal(size=1000)), 0.05)
    rates.append(named[100:].sum() / max(named.sum(), 1))
    shares.append(named[:100].mean())
  assert np.mean(rates) == pytest.approx(0.040, abs=0.006)
  assert np.mean(np.array(rates) > 0.1) == pytest.approx(0.045, abs=0.025)
  assert np.mean(shares) == pytest.approx(0.904, abs=0.02)


def test_a_pool_without_members_rarely_names_anyone():
  rng = np.random.default_rng(5)
  anyone = [
    discoveries(conformal_p(rng.normal(size=500), rng.normal(size=800)), 0.05).any()
    for _ in range(500)
  ]
  assert np.mean(anyone) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


def test_the_list_of_a_release_counts_the_members_it_can_name():
  rng = np.random.default_rng(6)
  members = np.concatenate([rng.normal(6, 1, 300), rng.normal(size=1200)])
  found = fdr_list(members, rng.normal(size=6000), draws=50)
  assert found.share == pytest.approx(0.2, abs=0.03)
  assert found.named == pytest.approx(found.share * 1500)
  assert found.rate <= 0.06
  assert (found.pool, found.calibration) == (3333, 3000)
  assert found.to_json()["smallest"] == 23
  chance = fdr_list(rng.normal(size=1500), rng.normal(size=6000), draws=50)
  assert chance.share <= 0.01


def test_a_short_hold_out_names_nobody():
  found = fdr_list(np.full(1000, 9.0), np.linspace(0, 1, 40), draws=3)
  assert found.smallest > found.pool * 0.1
  assert found.share == 0


def test_bad_arguments_are_one_line():
  with pytest.raises(ValueError, match="choose from bh, by, storey"):
    discoveries(P, 0.05, method="holm")
  with pytest.raises(ValueError, match="q=5"):
    discoveries(P, 5)
  with pytest.raises(ValueError, match="prior=10"):
    fdr_list([1.0], [0.0] * 9, prior=10)
  with pytest.raises(ValueError, match="at least 1 and 4"):
    fdr_list([1.0], [0.0])

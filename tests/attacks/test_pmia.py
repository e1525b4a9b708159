import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import (
  Signals,
  Unavailable,
  lira_offline_fixed,
  pmia,
  pmia_coverage,
)


def golden(label=0):
  """One record, then proxies with outputs (2, 3, 4, 3, 5, 1) of models with them."""
  phi = np.array(
    [
      [2.5, 0, 0, 0, 0, 0, 0],
      [0, 2, 9, 9, 9, 9, 9],
      [1, 9, 3, 9, 9, 9, 9],
      [-1, 9, 9, 4, 9, 9, 9],
      [0, 9, 9, 9, 3, 5, 1],
    ],
    dtype=float,
  )
  members = np.array(
    [
      [1, 0, 0, 0, 0, 0, 0],
      [0, 1, 0, 0, 0, 0, 0],
      [0, 0, 1, 0, 0, 0, 0],
      [0, 0, 0, 1, 0, 0, 0],
      [0, 0, 0, 0, 1, 1, 1],
    ],
    dtype=bool,
  )
  return Signals.from_phi(phi, members, labels=np.full(7, label), design="bernoulli")


def draw(models=12, records=60, queries=1, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  phi = rng.normal(size=(models, records, queries)) + 2 * members[..., None]
  phi += 2 * rng.normal(size=(records, 1))
  return phi, members, rng.integers(0, classes, records)


@pytest.mark.parametrize("proxies", ["class", "global"])
def test_check_values_of_the_absolute_level(proxies):
  score = pmia(golden(), target=0, proxies=proxies)[0]
  assert score == pytest.approx(5.573014, abs=5e-7)
  score = pmia(golden(), target=0, proxies=proxies, centre="mean", ddof=1)[0]
  assert score == pytest.approx(4.075694, abs=5e-7)


def test_check_value_of_the_shift_level():
  column = np.array([2.5, 0, 1, -1, 0])
  out = np.array([0, 1, -1, 0.0])
  lenders = [np.concatenate([[0], out, 2.5 + out]) for _ in range(2)]
  phi = np.stack([np.concatenate([column, np.full(4, 7.0)]), *lenders], 1)
  members = np.zeros((9, 3), bool)
  members[5:] = True
  signals = Signals.from_phi(phi, members, labels=[0, 0, 0], design="bernoulli")
  score = pmia(signals, target=0, level="shift", centre="mean", ddof=1)[0]
  assert score == pytest.approx(4.6875, abs=1e-12)


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("proxies", ["class", "global"])
def test_absolute_scores_equal_a_loop_that_leaves_each_record_out(
  centre, ddof, proxies
):
  phi, members, labels = draw(models=20, records=30, queries=2)
  signals = Signals.from_phi(phi, members, labels=labels, design="bernoulli")
  options = {"proxies": proxies, "centre": centre, "ddof": ddof}
  middle = np.mean if centre == "mean" else np.median
  expected = np.zeros(30)
  for j in range(30):
    same = (labels == labels[j]) if proxies == "class" else np.ones(30, bool)
    for q in range(2):
      lent = [
        phi[s, r, q]
        for r in np.flatnonzero(same)
        for s in range(20)
        if r != j and s != 4 and members[s, r]
      ]
      own = [phi[s, j, q] for s in range(20) if s != 4 and not members[s, j]]
      for sign, values in ((1, lent), (-1, own)):
        variance = np.var(values, ddof=ddof)
        squares = (phi[4, j, q] - middle(values)) ** 2 / variance
        expected[j] -= sign * (np.log(variance) + squares) / 4
  np.testing.assert_allclose(pmia(signals, target=4, **options), expected, rtol=1e-9)


@pytest.mark.parametrize("centre", ["mean", "median"])
def test_shift_scores_equal_a_loop(centre):
  phi, members, labels = draw()
  signals = Signals.from_phi(phi, members, labels=labels, design="bernoulli")
  scores = pmia(signals, target=0, level="shift", centre=centre, ddof=1)
  middle = np.mean if centre == "mean" else np.median
  sides = [
    [phi[1:, j, 0][members[1:, j] == member] for j in range(60)]
    for member in (True, False)
  ]
  gap = np.array([middle(i) - middle(o) for i, o in zip(*sides, strict=True)])
  spread = np.array([np.var(o, ddof=1) for o in sides[1]])
  for j in range(60):
    others = (labels == labels[j]) & (np.arange(60) != j)
    d, s2 = gap[others].mean(), spread[labels == labels[j]].mean()
    value = d / s2 * (phi[0, j, 0] - middle(sides[1][j]) - d / 2)
    assert scores[j] == pytest.approx(value, rel=1e-9)


def test_shift_ranks_a_class_as_lira_offline_with_a_pooled_variance():
  phi, members, labels = draw(records=600)
  signals = Signals.from_phi(phi, members, labels=labels)
  scores = pmia(signals, target=0, level="shift", centre="mean", ddof=1)
  offline = lira_offline_fixed(signals, target=0)
  for label in range(3):
    rows = labels == label
    assert stats.spearmanr(scores[rows], offline[rows])[0] > 0.9999


def test_shift_uses_the_records_own_spread_with_many_models():
  phi, members, labels = draw(models=90)
  spread = np.exp(np.random.default_rng(1).normal(size=60))
  signals = Signals.from_phi(phi * spread[:, None], members, labels=labels)
  scores = pmia(signals, target=0, level="shift", centre="mean", ddof=1)
  x, own = signals.phi[..., 0], members.copy()
  own[0] = True
  out = np.ma.array(x, mask=own)
  z = (x[0] - out.mean(0)) / out.var(0, ddof=1)
  inside = np.ma.array(x, mask=~members | (np.arange(90) == 0)[:, None])
  gap = (inside.mean(0) - out.mean(0)).data
  for j in (0, 7, 30):
    others = (labels == labels[j]) & (np.arange(60) != j)
    d = gap[others].mean()
    expected = d * (z[j] - d / 2 / out.var(0, ddof=1)[j])
    assert scores[j] == pytest.approx(expected, rel=1e-9)


def test_a_record_never_lends_to_itself():
  phi, members, labels = draw()
  moved = phi.copy()
  moved[:, 5][members[:, 5]] += 100
  moved[0, 5] = phi[0, 5]
  for level in ("absolute", "shift"):
    first, second = (
      pmia(Signals.from_phi(x, members, labels=labels), target=0, level=level)
      for x in (phi, moved)
    )
    assert first[5] == pytest.approx(second[5], rel=1e-9)
    assert not np.allclose(first[labels == labels[5]], second[labels == labels[5]])


def test_a_thin_class_borrows_from_all_and_is_counted():
  phi, members, labels = draw()
  labels[7] = 9
  signals = Signals.from_phi(phi, members, labels=labels)
  assert pmia_coverage(signals, target=0)["borrowed_global"] == 1
  by_class, by_all = (
    pmia(signals, target=0, proxies=proxies) for proxies in ("class", "global")
  )
  assert by_class[7] == by_all[7]
  assert (by_class != by_all).sum() == 59


def test_without_labels_only_global_proxies_exist():
  phi, members, _ = draw()
  signals = Signals.from_phi(phi, members)
  with pytest.raises(Unavailable, match="proxies='global'"):
    pmia(signals, target=0)
  assert np.isfinite(pmia(signals, target=0, proxies="global")).all()


def test_a_record_without_models_out_has_no_score():
  phi, members, labels = draw()
  members[1:, 3] = True
  signals = Signals.from_phi(phi, members, labels=labels)
  assert np.flatnonzero(np.isnan(pmia(signals, target=0))).tolist() == [3]
  assert pmia_coverage(signals, target=0)["excluded"] == 1


def test_references_that_trained_on_nothing_lend_nothing():
  phi = np.zeros((4, 6))
  signals = Signals.from_phi(phi, np.zeros((4, 6), bool), labels=[0] * 6)
  with pytest.raises(Unavailable, match="trained on other"):
    pmia(signals, target=0)

import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import (
  ATTACKS,
  Signals,
  Unavailable,
  leave_one_out,
  lira_calibrated,
  lira_offline,
)
from mixdef.attacks.lira_calibrated import surprise
from mixdef.metrics import auc


def one_record(phi, inside=()):
  column = np.array([phi, *inside, 0, 1, -1, 0.0])[:, None]
  members = np.zeros(column.shape, bool)
  members[1 : 1 + len(inside)] = True
  return Signals.from_phi(column, members)


def test_check_values():
  score = lira_calibrated(one_record(2.5), target=0)[0]
  assert np.exp(-score) == pytest.approx(0.035711, abs=5e-7)
  assert stats.t.isf(np.exp(-score), 3) == pytest.approx(2.738613, abs=5e-7)
  z = lira_offline(one_record(2.5), target=0)[0]
  assert stats.norm.sf(z) == pytest.approx(0.001100, abs=5e-7)


@pytest.mark.parametrize(
  ("inside", "sign"), [((2, 3), 1), ((-2, -3), -1), ((), 1), ((0, 0), 1)]
)
def test_the_online_form_takes_the_side_of_the_models_in(inside, sign):
  score = lira_calibrated(one_record(2.5, inside), target=0, form="online")[0]
  expected = stats.t.sf(sign * 2.5 / np.sqrt(2 / 3 * 1.25), 3)
  assert np.exp(-score) == pytest.approx(expected)


def test_views_are_averaged_before_the_fit():
  rng = np.random.default_rng(0)
  phi, members = rng.normal(size=(12, 20, 3)), rng.random((12, 20)) < 0.5
  several = lira_calibrated(Signals.from_phi(phi, members), target=0)
  one = lira_calibrated(Signals.from_phi(phi.mean(2), members), target=0)
  np.testing.assert_allclose(several, one, rtol=1e-12)
  out = [phi[1:, j].mean(1)[~members[1:, j]] for j in range(20)]
  for j, values in enumerate(out):
    scale = values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    expected = stats.t.logsf(
      (phi[0, j].mean() - values.mean()) / scale, len(values) - 1
    )
    assert several[j] == pytest.approx(-expected)


def test_one_model_out_is_no_test():
  rng = np.random.default_rng(0)
  phi, members = rng.normal(size=(5, 130)), rng.random((5, 130)) < 0.5
  members[:, :15], members[:, 15:30] = False, True
  members[1, 15:20] = members[1:3, 20:25] = False
  scores = lira_calibrated(Signals.from_phi(phi, members, design="bernoulli"), target=0)
  assert np.isfinite(scores[:15]).all()
  assert np.isnan(scores[15:20]).all()
  assert np.isfinite(scores[20:25]).all()
  assert np.isnan(scores[25:30]).all()


def test_without_two_models_out_there_is_no_test_at_all():
  signals = Signals.from_phi(np.zeros((2, 4)), np.eye(2, 4, dtype=bool))
  with pytest.raises(Unavailable, match="two reference models"):
    lira_calibrated(signals, target=0)


def test_surprise_is_accurate_in_both_tails():
  values = np.concatenate([-np.logspace(-3, 2, 40), [0], np.logspace(-3, 1.5, 40)])
  for freedom in (1, 2, 15, 127):
    found = surprise(values, np.full(len(values), freedom))
    np.testing.assert_allclose(found, -stats.t.logsf(values, freedom), rtol=1e-12)
  extreme = surprise(np.logspace(1, 9, 20), np.full(20, 255))
  assert np.isfinite(extreme).all()
  assert (np.diff(extreme) > 0).all()


@pytest.mark.parametrize("form", ["offline", "online"])
def test_p_values_are_uniform_on_non_members_and_small_on_members(form):
  rng = np.random.default_rng(0)
  members = rng.random((17, 20_000)) < 0.5
  spread = np.exp(rng.normal(size=20_000))
  phi = spread * (rng.normal(size=members.shape) + 3 * members)
  signals = Signals.from_phi(phi, members)
  p = np.exp(-lira_calibrated(signals, target=0, form=form))
  tested = ~np.isnan(p)
  for rate in (0.01, 0.1):
    found = p[tested & ~members[0]] <= rate
    error = np.sqrt(rate * (1 - rate) / len(found))
    assert abs(found.mean() - rate) < 4 * error
    wide = found[spread[tested & ~members[0]] > 1]
    assert abs(wide.mean() - rate) < 4 * error * np.sqrt(2)
  assert auc(-p[tested], members[0, tested]) > 0.9


@pytest.mark.parametrize(
  ("models", "at_1_percent", "at_01_percent"),
  [(8, 0.0322, 0.0113), (16, 0.0197, 0.0045), (32, 0.0145, 0.0024)],
)
def test_true_tail_at_the_normal_quantile_of_z(models, at_1_percent, at_01_percent):
  rng = np.random.default_rng(models)
  size = 200_000
  out = rng.normal(size=(models, size))
  z = (rng.normal(size=size) - out.mean(0)) / out.std(0, ddof=1)
  for rate, expected in ((0.01, at_1_percent), (0.001, at_01_percent)):
    limit = stats.norm.isf(rate)
    exact = np.exp(-surprise(limit / np.sqrt(1 + 1 / models), np.array(models - 1)))
    assert exact == pytest.approx(expected, abs=6e-5)
    found = (z > limit).mean()
    assert abs(found - expected) < 4 * np.sqrt(expected / size) + 5e-5


@pytest.mark.parametrize(
  ("models", "rate", "expected"),
  [(64, 0.01, 0.0121), (128, 0.01, 0.0110), (64, 0.001, 0.0016), (128, 0.001, 0.0013)],
)
def test_true_tail_with_many_models(models, rate, expected):
  limit = stats.norm.isf(rate) / np.sqrt(1 + 1 / models)
  exact = np.exp(-surprise(np.array(limit), np.array(models - 1)))
  assert exact == pytest.approx(expected, abs=6e-5)


def test_leave_one_out_skips_nothing():
  rng = np.random.default_rng(0)
  signals = Signals.from_phi(rng.normal(size=(16, 40)), rng.random((16, 40)) < 0.5)
  assert np.isfinite(leave_one_out(lira_calibrated, signals)).all()


@pytest.mark.parametrize(
  "attack",
  ["lira_calibrated(form='online')", "pmia(level='shift')", "bavaria(form='n')"],
)
def test_permuting_the_targets_memberships_leaves_every_score_unchanged(attack):
  rng = np.random.default_rng(0)
  phi, members = rng.normal(size=(12, 80)), rng.random((12, 80)) < 0.5
  other = members.copy()
  other[3] = rng.permutation(other[3])
  first, second = (
    ATTACKS.resolve(attack)(
      Signals.from_phi(phi, known, labels=np.arange(80) % 4, design="bernoulli"),
      target=3,
    )
    for known in (members, other)
  )
  np.testing.assert_array_equal(first, second)

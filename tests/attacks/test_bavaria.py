import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import (
  Signals,
  Unavailable,
  leave_one_out,
  lira_online,
  lira_online_fixed,
)
from mixdef.attacks._moments import Moments, moments
from mixdef.attacks.bavaria import (
  NormalInverseGamma,
  bavaria,
  fit_prior,
)
from mixdef.metrics import auc

PRIOR = NormalInverseGamma(*(np.array([value]) for value in (0.0, 1.0, 2.0, 2.0)))


def side_of(values):
  values = np.array(values, dtype=np.float64)[:, None, None]
  return moments(values, np.ones(values.shape[:2], bool))


def draw(models=9, records=60, queries=1, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  phi = rng.normal(size=(models, records, queries)) + 2 * members[..., None]
  return phi + 3 * rng.normal(size=(records, 1)), members


def test_golden_predictive():
  inside = PRIOR.observe(side_of([2, 3, 4, 3]))
  out = PRIOR.observe(side_of([0, 1, -1, 0]))
  for posterior, centre, squared_scale in ((inside, 2.4, 1.98), (out, 0.0, 0.9)):
    a, b, k = posterior.shape, posterior.rate, posterior.count
    assert posterior.mean == pytest.approx(centre)
    assert 2 * a == pytest.approx(8)
    assert b * (k + 1) / (a * k) == pytest.approx(squared_scale)
    expected = stats.t.logpdf(2.5, 8, centre, np.sqrt(squared_scale))
    assert posterior.log_predictive(np.array(2.5)) == pytest.approx(expected)
  score = inside.log_predictive(np.array(2.5)) - out.log_predictive(np.array(2.5))
  assert score == pytest.approx(2.414973, abs=5e-7)


@pytest.mark.parametrize(("widened", "score"), [(False, 2.728499), (True, 2.208044)])
def test_golden_gaussian_form(widened, score):
  inside = PRIOR.observe(side_of([2, 3, 4, 3]))
  out = PRIOR.observe(side_of([0, 1, -1, 0]))
  found = [side.log_normal(np.array(2.5), widened=widened) for side in (inside, out)]
  assert found[0] - found[1] == pytest.approx(score, abs=5e-7)


def test_the_gaussian_form_approaches_t_with_many_models():
  apart = []
  for models in (6, 200):
    phi, members = draw(models=models)
    signals = Signals.from_phi(phi, members)
    apart.append(bavaria(signals, target=0, form="n") - bavaria(signals, target=0))
  assert np.isfinite(apart).all()
  assert np.abs(apart[0]).max() > 2 * np.abs(apart[1]).max() > 0


def test_pitfall_38_nothing_observed_leaves_the_prior():
  nothing = Moments(np.array([[0]]), np.zeros((1, 1)), np.zeros((1, 1)))
  for before, after in zip(PRIOR, PRIOR.observe(nothing), strict=True):
    np.testing.assert_array_equal(after, [before])


def test_scores_equal_a_loop_over_records():
  phi, members = draw(records=5, queries=2)
  scores = bavaria(Signals.from_phi(phi, members), target=3)
  expected = np.zeros(5)
  references = [k for k in range(9) if k != 3]
  for q in range(2):
    for sign, member in ((1, True), (-1, False)):
      groups = [
        np.array([phi[k, i, q] for k in references if members[k, i] == member])
        for i in range(5)
      ]
      prior = naive_prior(groups)
      for i, values in enumerate(groups):
        expected[i] += sign * naive_log_predictive(phi[3, i, q], values, *prior) / 2
  np.testing.assert_allclose(scores, expected, rtol=1e-9)


def naive_prior(groups):
  n = np.array([len(values) for values in groups])
  m = np.array([values.mean() for values in groups if len(values)])
  v = np.array([values.var(ddof=1) for values in groups if len(values) > 1])
  variance, c = v.mean(), np.mean(2 / (n[n > 1] - 1))
  extra = max((v.var() - c * variance**2) / (1 + c), variance**2 / 1000)
  a0 = 2 + variance**2 / extra
  between = max(m.var() - variance * np.mean(1 / n[n > 0]), variance / 1000)
  return m.mean(), variance / between, a0, variance * (a0 - 1)


def naive_log_predictive(x, values, mu0, k0, a0, b0):
  n, m = len(values), values.mean() if len(values) else 0.0
  k, a = k0 + n, a0 + n / 2
  mu = (k0 * mu0 + n * m) / k
  b = b0 + ((values - m) ** 2).sum() / 2 + k0 * n * (m - mu0) ** 2 / (2 * k)
  return stats.t.logpdf(x, 2 * a, mu, np.sqrt(b * (k + 1) / (a * k)))


def test_the_prior_is_recovered_from_many_records():
  rng = np.random.default_rng(0)
  mu0, k0, a0, b0 = -1.0, 0.5, 6.0, 8.0
  variance = stats.invgamma.rvs(a0, scale=b0, size=40_000, random_state=rng)
  centre = mu0 + np.sqrt(variance / k0) * rng.normal(size=40_000)
  values = centre + np.sqrt(variance) * rng.normal(size=(12, 40_000))
  chosen = rng.random(values.shape) < 0.5
  side = moments(values[..., None], chosen)
  prior = fit_prior(side, np.ones(40_000, bool))
  assert prior.mean[0] == pytest.approx(mu0, abs=0.05)
  assert prior.count[0] == pytest.approx(k0, rel=0.05)
  assert prior.shape[0] == pytest.approx(a0, rel=0.15)
  assert (prior.rate / (prior.shape - 1))[0] == pytest.approx(b0 / (a0 - 1), rel=0.02)


def test_pitfall_38_equal_sides_score_zero():
  rng = np.random.default_rng(0)
  side = rng.normal(size=(4, 20)) + 3 * rng.normal(size=20)
  phi = np.concatenate([rng.normal(size=(1, 20)), side, side])
  members = np.repeat([[False], [True], [False]], [1, 4, 4], axis=0) & np.ones(20, bool)
  signals = Signals.from_phi(phi, members, design="bernoulli")
  assert signals.references(0).sum() == 8 * 20
  np.testing.assert_array_equal(bavaria(signals, target=0), 0.0)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 7.0), (1e3, 0.0), (1e-3, -2.0)])
def test_pitfall_38_the_unit_of_phi_does_not_matter(scale, shift):
  phi, members = draw()
  plain = bavaria(Signals.from_phi(phi, members), target=0)
  moved = bavaria(Signals.from_phi(scale * phi + shift, members), target=0)
  np.testing.assert_allclose(moved, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("models", [2, 3, 4])
def test_every_record_has_a_score_with_few_models(models):
  phi, members = draw(models=models)
  signals = Signals.from_phi(phi, members)
  assert np.isfinite(leave_one_out(bavaria, signals)).all()


@pytest.mark.parametrize("member", [True, False])
def test_a_side_without_models_borrows_the_others_prior(member):
  phi, members = draw()
  members[1:] = member
  scores = bavaria(Signals.from_phi(phi, members), target=0)
  assert np.isfinite(scores).all()
  assert (scores != 0).all()


def test_without_references_there_is_no_score():
  half = np.arange(60) % 2 == 0
  for members in (half[None], np.stack([half, ~half])):
    signals = Signals.from_phi(np.zeros(members.shape), members)
    with pytest.raises(Unavailable, match="train more models"):
      bavaria(signals, target=0)


def test_references_that_all_agree_give_finite_scores():
  phi, members = draw()
  for value in (0.0, 0.1, 1e3):
    phi[1:] = value
    assert np.isfinite(bavaria(Signals.from_phi(phi, members), target=0)).all()


def test_equal_values_have_no_variance():
  values = np.full((7, 1, 1), 0.1)
  assert moments(values, np.ones((7, 1), bool)).squares == 0


def test_it_matches_lira_with_many_models_and_beats_it_with_few():
  rng = np.random.default_rng(0)
  areas = {}
  for models in (6, 128):
    members = rng.random((models, 1500)) < 0.5
    spread = np.exp(0.4 * rng.normal(size=1500))
    phi = 3 * rng.normal(size=1500) + spread * rng.normal(size=members.shape) + members
    signals = Signals.from_phi(phi, members)
    for attack in (bavaria, lira_online, lira_online_fixed):
      scores = leave_one_out(attack, signals, targets=range(4))[:4]
      areas[models, attack.__name__] = auc(scores, members[:4])
  assert areas[6, "bavaria"] > areas[6, "lira_online"] + 0.02
  assert areas[128, "bavaria"] == pytest.approx(areas[128, "lira_online"], abs=0.01)
  assert areas[128, "bavaria"] > areas[128, "lira_online_fixed"]


def test_hinge_is_a_choice_of_statistic():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(8, 20, 3)), rng.integers(0, 3, 20)
  members = rng.random((8, 20)) < 0.5
  signals = Signals.from_logits(logits, labels, members)
  swapped = Signals.from_phi(signals.hinge, members)
  by_hinge = bavaria(signals, target=0, score="hinge")
  np.testing.assert_array_equal(by_hinge, bavaria(swapped, target=0))
  with pytest.raises(ValueError, match="score is 'loss'"):
    bavaria(signals, target=0, score="loss")

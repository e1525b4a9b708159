import numpy as np
import pytest
from scipy import integrate, stats

from mixdef.contrib.mixup_theory import theory
from mixdef.metrics import auc

NATURAL = (-7.60, 3.92, -3.30, 3.86)
MIXUP = (-6.47, 3.75, -5.02, 3.73)
EQUAL = (-7.60, 3.9, -3.30, 3.9)
NARROW_IN = (-2.0, 0.7, 1.0, 1.9)


def random_fits(count):
  rng = np.random.default_rng(3)
  means = rng.normal(scale=3, size=(2, count))
  spreads = np.exp(rng.normal(size=(2, count)))
  return means[0], spreads[0], means[1], spreads[1]


def test_log_lambda_golden_values():
  golden = [0.432270, -0.700919, -2.869434]
  found = theory.log_likelihood_ratio([-7, -3, 5], *NATURAL)
  np.testing.assert_allclose(found, golden, atol=5e-7)


def test_log_lambda_is_the_difference_of_log_densities_far_into_the_tails():
  loss = np.array([-1e3, -40.0, 0.0, 60.0, 1e3])
  m1, s1, m0, s0 = NARROW_IN
  expected = stats.norm.logpdf(loss, m1, s1) - stats.norm.logpdf(loss, m0, s0)
  found = theory.log_likelihood_ratio(loss, *NARROW_IN)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("fit", [NATURAL, EQUAL, NARROW_IN])
def test_log_lambda_is_the_parabola_of_the_proof_up_to_a_constant(fit):
  m1, s1, m0, s0 = fit
  loss = np.linspace(-20, 20, 9)
  parabola = (s1**2 - s0**2) * loss**2 + 2 * (m1 * s0**2 - m0 * s1**2) * loss
  scaled = 2 * s1**2 * s0**2 * theory.log_likelihood_ratio(loss, *fit)
  # f enters the exponent with this sign, so that a falling f is a falling Lambda.
  np.testing.assert_allclose(np.diff(scaled), np.diff(parabola), rtol=1e-9)


def test_vertex_of_the_celeba_fits_is_far_outside_the_data():
  assert float(theory.vertex(*NATURAL)) == pytest.approx(133.9, abs=0.06)


@pytest.mark.parametrize("fit", [NATURAL, NARROW_IN, (1.0, 1.9, -2.0, 0.7)])
def test_lambda_turns_at_the_vertex_and_only_there(fit):
  turn = float(theory.vertex(*fit))
  left, right = (
    np.diff(theory.log_likelihood_ratio(turn + side, *fit))
    for side in (np.linspace(-9, 0, 10), np.linspace(0, 9, 10))
  )
  maximum = fit[1] < fit[3]
  assert (left > 0).all() if maximum else (left < 0).all()
  assert (right < 0).all() if maximum else (right > 0).all()
  around = turn + np.array([-3.0, -1e-3, 1e-3, 3.0])
  expected = [not maximum] * 2 + [maximum] * 2
  assert theory.falls_with_loss(around, *fit).tolist() == expected


def test_equal_spreads_make_lambda_linear_and_falling():
  loss = np.linspace(-50, 50, 11)
  m1, s, m0, _ = EQUAL
  slopes = np.diff(theory.log_likelihood_ratio(loss, *EQUAL)) / np.diff(loss)
  np.testing.assert_allclose(slopes, (m1 - m0) / s**2, rtol=1e-9)
  assert theory.falls_with_loss(loss, *EQUAL).all()
  assert theory.vertex(*EQUAL) == np.inf
  assert np.isnan(theory.vertex(0, 1, 0, 1))
  assert not theory.falls_with_loss(loss, 0, 1, 0, 1).any()


@pytest.mark.parametrize(
  ("d", "tv", "hellinger", "exact", "bound"),
  [
    (0.388, 0.1538, 0.1931, 0.6081, 0.6420),
    (1.104, 0.4191, 0.5316, 0.7825, 0.8312),
    (2.000, 0.6827, 0.8871, 0.9214, 0.9497),
  ],
)
def test_check_values_of_equal_spreads(d, tv, hellinger, exact, bound):
  fit = np.array([-d, 1, 0, 1]) * 3.7
  found = [
    theory.total_variation(*fit),
    theory.total_variation_bound(*fit),
    theory.gaussian_auc(d, 1, 0, 1),
    theory.auc_bound(theory.total_variation(*fit)),
  ]
  np.testing.assert_allclose(found, [tv, hellinger, exact, bound], atol=5.1e-5)


@pytest.mark.parametrize(
  ("fit", "tv", "hellinger", "bound"),
  [(NATURAL, 0.419567, 0.532332, 0.831549), (MIXUP, 0.153721, 0.192979, 0.641906)],
)
def test_check_values_of_unequal_spreads(fit, tv, hellinger, bound):
  found = [
    theory.total_variation(*fit),
    theory.total_variation_bound(*fit),
    theory.auc_bound(theory.total_variation(*fit)),
  ]
  np.testing.assert_allclose(found, [tv, hellinger, bound], atol=5.1e-7)


@pytest.mark.parametrize(
  "fit", [NATURAL, NARROW_IN, (0.0, 1.0, 0.0, 2.0), (0.0, 1.0, 0.3, 30.0)]
)
def test_distances_are_their_integrals(fit):
  m1, s1, m0, s0 = fit
  loss = np.linspace(-12 * max(s1, s0), 12 * max(s1, s0), 200_001)
  p, q = stats.norm.pdf(loss, m1, s1), stats.norm.pdf(loss, m0, s0)
  tv = integrate.simpson(np.abs(p - q), x=loss) / 2
  squared = integrate.simpson((np.sqrt(p) - np.sqrt(q)) ** 2, x=loss) / 2
  assert float(theory.total_variation(*fit)) == pytest.approx(tv, abs=1e-7)
  assert float(theory.squared_hellinger(*fit)) == pytest.approx(squared, abs=1e-9)


def test_total_variation_is_symmetric_and_has_no_unit():
  m1, s1, m0, s0 = fits = random_fits(200)
  tv = theory.total_variation(*fits)
  np.testing.assert_allclose(theory.total_variation(m0, s0, m1, s1), tv, atol=1e-14)
  moved = theory.total_variation(7 - 5 * m1, 5 * s1, 7 - 5 * m0, 5 * s0)
  np.testing.assert_allclose(moved, tv, atol=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 0.7, 80.0])
def test_total_variation_has_no_jump_where_spreads_become_equal(gap):
  exact = 2 * stats.norm.cdf(gap / 2) - 1
  excess = np.array([0.0, 1e-300, 1e-15, 1e-12, 1e-9])
  for fit in ((gap, 1 + excess, 0.0, 1.0), (gap, 1.0, 0.0, 1 + excess)):
    np.testing.assert_allclose(theory.total_variation(*fit), exact, atol=1e-9)


def test_hellinger_brackets_total_variation_and_the_bound_stops_at_one():
  fits = random_fits(500)
  tv, bound = theory.total_variation(*fits), theory.total_variation_bound(*fits)
  assert (theory.squared_hellinger(*fits) <= tv).all()
  assert (tv <= bound).all()
  assert bound.max() == 1
  # Uncapped, the parabola would turn back and promise an AUC that far pairs exceed.
  bounds = theory.auc_bound(
    theory.total_variation_bound(np.linspace(0, 9, 40), 1, 0, 1)
  )
  assert (np.diff(bounds) >= 0).all()
  with pytest.raises(ValueError, match=r"tv=1\.2"):
    theory.auc_bound([0.4, 1.2])


def test_hellinger_of_near_equal_gaussians_is_not_rounding():
  found = float(theory.squared_hellinger(1e-9, 1, 0, 1))
  assert found == pytest.approx(1e-18 / 8, rel=1e-6, abs=0)


def test_auc_bound_is_the_area_under_the_highest_roc():
  fpr = np.linspace(0, 1, 100_001)
  for tv in (0.0, 0.3, 1.0):
    highest = integrate.trapezoid(np.minimum(1, fpr + tv), fpr)
    assert float(theory.auc_bound(tv)) == pytest.approx(highest, abs=1e-9)


def test_auc_of_the_likelihood_ratio_is_below_the_bound_and_above_the_losses():
  m1, s1, m0, s0 = NARROW_IN
  loss = np.concatenate(
    [
      stats.norm.ppf((np.arange(4000) + 0.5) / 4000, m, s)
      for m, s in ((m1, s1), (m0, s0))
    ]
  )
  member = np.arange(8000) < 4000
  of_losses = float(theory.gaussian_auc(-m1, s1, -m0, s0))
  assert auc(-loss, member) == pytest.approx(of_losses, abs=1e-4)
  of_ratios = auc(theory.log_likelihood_ratio(loss, *NARROW_IN), member)
  tv = theory.total_variation(*NARROW_IN)
  assert of_losses < of_ratios < float(theory.auc_bound(tv))


def test_spreads_are_positive():
  with pytest.raises(ValueError, match=r"std_out holds 0\.0"):
    theory.total_variation(0, 1, 0, [1, 0])

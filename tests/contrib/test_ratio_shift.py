import json

import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import Signals, lira_online, lira_online_fixed
from mixdef.contrib.mixup_theory import theory
from mixdef.contrib.mixup_theory.ratio_shift import (
  LossFits,
  estimate_total_variation,
  fit_losses,
  proposition_one,
)
from mixdef.contrib.mixup_theory.report import theory_report
from mixdef.metrics import auc, clopper_pearson

CELEBA = (-7.60, 3.92, -3.30, 3.86)


@pytest.fixture(scope="module")
def gaussian_scores():
  rng = np.random.default_rng(0)
  member = np.arange(8000) < 4000
  return rng.normal(size=8000) + 1.104 * member, member


def test_estimates_approach_the_closed_form(gaussian_scores):
  found = estimate_total_variation(*gaussian_scores, permutations=20)
  exact = 2 * stats.norm.cdf(1.104 / 2) - 1
  # Five standard errors of the rate difference at the best threshold, sqrt(.41/4000).
  assert found["histogram"] == pytest.approx(exact, abs=0.051)
  assert found["threshold"] == pytest.approx(exact, abs=0.051)
  assert found["null_95"] < 0.05


def test_upward_bias_of_the_histogram_is_shown_by_its_null():
  rng = np.random.default_rng(1)
  member = np.arange(300) < 100
  found = [
    estimate_total_variation(rng.normal(size=300), member, permutations=50, seed=seed)
    for seed in range(20)
  ]
  bias = np.sqrt(20 / (2 * np.pi)) * np.sqrt(1 / 100 + 1 / 200)
  assert np.mean([row["histogram"] for row in found]) == pytest.approx(bias, rel=0.1)
  assert np.mean([row["null_mean"] for row in found]) == pytest.approx(bias, rel=0.1)
  assert sum(row["histogram"] > row["null_95"] for row in found) <= 5


def test_ratio_and_its_logarithm_have_one_total_variation(gaussian_scores):
  scores, member = gaussian_scores
  plain = estimate_total_variation(scores, member, permutations=5)
  assert estimate_total_variation(np.exp(scores), member, permutations=5) == plain


def test_infinite_scores_are_scores_like_any_other():
  scores = np.array([-np.inf] * 30 + [0.0] * 40 + [np.inf] * 30)
  found = estimate_total_variation(scores, scores > 0, permutations=5)
  assert found["histogram"] == found["threshold"] == 1


def test_null_keeps_differences_between_targets():
  rng = np.random.default_rng(2)
  scores = rng.normal(size=(2, 500)) + np.array([[0.0], [5.0]])
  member = rng.random((2, 500)) < np.array([[0.9], [0.1]])
  found = estimate_total_variation(scores, member, permutations=50)
  assert found["histogram"] > 0.6
  assert found["null_mean"] == pytest.approx(found["histogram"], abs=0.05)


def test_no_roc_exceeds_the_bound_of_its_largest_rate_difference():
  rng = np.random.default_rng(4)
  for _ in range(20):
    scores = np.round(rng.normal(size=40), rng.integers(0, 3))
    member = rng.random(40) < rng.uniform(0.2, 0.8)
    scores[:3] = np.nan
    found = estimate_total_variation(scores, member, permutations=1)
    assert auc(scores, member) <= float(theory.auc_bound(found["threshold"])) + 1e-12


def world(models=40, records=300, targets=2, shift=1.5, seed=0):
  """Return undefended losses [S, N], keep, and losses under mixup [T, N]."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  difficulty = rng.normal(scale=2, size=records)
  noise = rng.normal(size=(models + targets, records))
  undefended = difficulty - 2 * members + noise[:models]
  member = members[:targets]
  return undefended, members, difficulty - (2 - shift) * member + noise[models:]


def test_fits_are_those_of_a_loop_over_records():
  undefended, members, _ = world(models=12, records=15)
  fits = fit_losses(undefended, members, num_targets=2)
  for target in range(2):
    others = np.arange(12) != target
    for record in range(15):
      for side, mean, std in (
        (members[:, record], fits.mean_in, fits.std_in),
        (~members[:, record], fits.mean_out, fits.std_out),
      ):
        losses = undefended[others & side, record]
        assert mean[target, record] == pytest.approx(losses.mean())
        assert std[target, record] == pytest.approx(losses.std(ddof=1))


@pytest.mark.parametrize(
  ("attack", "fixed"), [(lira_online, False), (lira_online_fixed, True)]
)
def test_log_lambda_of_the_fits_is_the_score_of_lira(attack, fixed):
  undefended, members, _ = world(models=12, records=30)
  fits = fit_losses(undefended, members, num_targets=2, fixed=fixed)
  ratio = theory.log_likelihood_ratio(undefended[:2], *fits)
  signals = Signals.from_phi(-undefended, members)
  scores = np.stack([attack(signals, target=target) for target in range(2)])
  np.testing.assert_allclose(ratio, scores, rtol=1e-9)


def test_target_never_enters_its_own_fit():
  undefended, members, _ = world(models=8, records=20)
  changed = undefended.copy()
  changed[0] += 50
  before, after = (fit_losses(x, members, num_targets=2) for x in (undefended, changed))
  np.testing.assert_array_equal(before.mean_in[0], after.mean_in[0])
  np.testing.assert_array_equal(before.std_out[0], after.std_out[0])
  assert (before.mean_in[1] != after.mean_in[1]).any()


def test_shares_are_those_of_a_loop():
  undefended, members, mixup = world(models=6, records=9)
  fits = fit_losses(undefended, members, num_targets=2)
  found = proposition_one(undefended[:2], mixup, fits, members[:2], resamples=5)
  fell, cases = [], {"std_in < std_out": [], "std_in > std_out": []}
  for t, n in np.argwhere(members[:2]):
    fit = [values[t, n] for values in fits]
    if np.isnan(fit).any():
      continue
    m1, s1, m0, s0 = fit
    before, after = (
      stats.norm.logpdf(loss, m1, s1) - stats.norm.logpdf(loss, m0, s0)
      for loss in (undefended[t, n], mixup[t, n])
    )
    fell.append(after < before)
    cases["std_in < std_out" if s1 < s0 else "std_in > std_out"].append(fell[-1])
  assert found["pairs"] == len(fell)
  assert found["share"] == pytest.approx(np.mean(fell))
  for name, expected in cases.items():
    assert found["cases"][name]["pairs"] == len(expected)
    assert found["cases"][name]["share"] == pytest.approx(np.mean(expected))
  assert found["cases"]["std_in = std_out"]["share"] is None


def fits_like(shape, mean_in, std_in, mean_out, std_out):
  return LossFits(*(np.full(shape, v) for v in (mean_in, std_in, mean_out, std_out)))


def test_with_equal_spreads_every_right_shift_lowers_lambda():
  rng = np.random.default_rng(0)
  undefended = rng.normal(size=(2, 50))
  everyone = np.ones((2, 50), bool)
  fits = fits_like((2, 50), -2.0, 1.0, 0.0, 1.0)
  shift = rng.uniform(0.01, 50, size=(2, 50))
  found = proposition_one(undefended, undefended + shift, fits, everyone)
  assert found["share"] == found["shifted_right"] == found["falling_branch"] == 1
  assert found["cases"]["std_in = std_out"]["pairs"] == 100
  # Without a spread over records the interval is that of 50 records, not of certainty.
  assert found["ci"] == list(clopper_pearson(50, 50))


def test_right_shift_beyond_the_vertex_raises_lambda():
  fits = fits_like((1, 4), 0.0, 2.0, 1.0, 1.0)
  assert theory.vertex(0, 2, 1, 1) == pytest.approx(4 / 3)
  undefended = np.array([[-3.0, 0.0, 1.0, 2.0]])
  everyone = np.ones((1, 4), bool)
  found = proposition_one(undefended, undefended + 1, fits, everyone)
  assert found["shifted_right"] == 1
  assert found["falling_branch"] == 0.75
  assert found["share"] == 0.5  # the third starts left of the vertex and ends beyond
  assert found["ci"] == list(clopper_pearson(2, 4))


def test_share_is_half_without_mixup_and_that_of_two_gaussians_with_it():
  for shift in (0.0, 1.5):
    undefended, members, mixup = world(records=2000, targets=1, shift=shift)
    fits = fit_losses(undefended, members, num_targets=1, fixed=True)
    found = proposition_one(undefended[:1], mixup, fits, members[:1], resamples=20)
    expected = stats.norm.cdf(shift / np.sqrt(2))
    # Fits of 20 models curve Lambda a little; five standard errors of 1,000 pairs.
    assert found["share"] == pytest.approx(expected, abs=0.08)
    low, high = found["ci"]
    assert low < found["share"] < high
  others = proposition_one(undefended[:1], mixup, fits, ~members[:1], resamples=20)
  assert others["share"] == pytest.approx(0.5, abs=0.08)


def test_records_with_all_their_targets_are_resampled():
  rng = np.random.default_rng(0)
  undefended = np.zeros((8, 100))
  falls = np.broadcast_to(rng.random(100) < 0.6, undefended.shape)
  fits = fits_like(undefended.shape, -1.0, 1.0, 0.0, 1.0)
  everyone = np.ones(undefended.shape, bool)
  found = proposition_one(undefended, np.where(falls, 1.0, -1.0), fits, everyone)
  low, high = found["ci"]
  one_target = clopper_pearson(int(falls[0].sum()), 100)
  assert high - low == pytest.approx(one_target[1] - one_target[0], rel=0.15)
  assert found["by_target"] == [found["share"]] * 8


@pytest.fixture(scope="module")
def report():
  return theory_report(*world(), resamples=30, permutations=20)


def test_report_survives_json_and_tells_the_story(report):
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  undefended, mixup = report["natural"], report["mixup"]
  assert undefended["auc"] > 0.85 > 0.75 > mixup["auc"]
  assert mixup["members"]["mean"] < undefended["members"]["mean"]
  names = "gaussian", "sqrt2_hellinger", "quartile_gaussian", "histogram", "threshold"
  for name in names:
    assert mixup["total_variation"][name] < undefended["total_variation"][name]
  for arm in (undefended, mixup):
    assert arm["auc_ci"][0] < arm["auc"] < arm["auc_ci"][1]
    assert arm["auc"] <= arm["auc_bound"]["threshold"]
  shares = report["proposition_1"]
  assert shares["members"]["ci"][0] > 0.7
  assert shares["nonmembers"]["ci"][0] < 0.55


def test_report_describes_the_ratios_of_the_scores(report):
  undefended, members, _ = world()
  fits = fit_losses(undefended, members, num_targets=2)
  ratio = theory.log_likelihood_ratio(undefended[:2], *fits)
  found = report["natural"]["members"]
  inside = ratio[members[:2]]
  assert found["mean"] == pytest.approx(inside.mean())
  assert found["std"] == pytest.approx(inside.std())
  assert found["quantiles"]["0.5"] == pytest.approx(np.median(inside))
  assert report["natural"]["auc"] == pytest.approx(auc(ratio, members[:2]))


def test_quartiles_withstand_the_pairs_that_make_the_moments():
  undefended, members, mixup = world(records=200, targets=1)
  mixup[0, ~members[0]] -= np.where(np.arange((~members[0]).sum()) == 3, 1e3, 0)
  report = theory_report(undefended, members, mixup, resamples=5, permutations=5)
  found = report["mixup"]
  assert found["total_variation"]["gaussian"] > 0.8
  sides = []
  for side in ("members", "nonmembers"):
    at = found[side]["quantiles"]
    sides += [at["0.5"], (at["0.75"] - at["0.25"]) / 1.34898]
  robust = found["total_variation"]["quartile_gaussian"]
  assert robust == pytest.approx(float(theory.total_variation(*sides)), abs=1e-4)
  assert robust < 0.4


def test_mean_fit_of_the_celeba_models():
  m1, s1, m0, s0 = CELEBA
  half = np.sqrt(0.5)  # two values this many spreads from their mean have that spread
  losses = np.array(
    [-5, m1 - half * s1, m1 + half * s1, m0 - half * s0, m0 + half * s0]
  )
  members = np.array([[True] * 2 + [False] * 2] + [[True] * 4] * 2 + [[False] * 4] * 2)
  undefended = np.repeat(losses[:, None], 4, axis=1)
  undefended[0] += np.arange(4)
  report = theory_report(
    undefended, members, undefended[0] + 1, resamples=5, permutations=5
  )
  found = report["mean_fit"]
  np.testing.assert_allclose([found[name] for name in LossFits._fields], CELEBA)
  assert found["vertex"] == pytest.approx(133.9, abs=0.06)
  assert found["total_variation"]["gaussian"] == pytest.approx(0.419567, abs=5.1e-7)
  assert found["auc_bound"]["gaussian"] == pytest.approx(0.831549, abs=5.1e-7)
  exact = stats.norm.cdf((m0 - m1) / np.hypot(s1, s0))
  assert found["auc"] == pytest.approx(exact)


def test_records_without_references_on_one_side_are_left_out_and_counted():
  undefended, members, mixup = world()
  members[:, 7], members[:, 8] = True, False
  report = theory_report(undefended, members, mixup, resamples=5, permutations=5)
  assert report["excluded"] == 4
  counted = report["proposition_1"]
  assert counted["members"]["pairs"] + counted["nonmembers"]["pairs"] == 2 * 298
  assert report["coverage"]["excluded"] == report["coverage"]["offline"] == 2


def test_unusable_losses_are_refused():
  undefended, members, mixup = world(models=6, records=9)
  with pytest.raises(ValueError, match=r"\(2, 8\)"):
    theory_report(undefended, members, mixup[:, :8])
  with pytest.raises(ValueError, match="num_targets=7"):
    fit_losses(undefended, members, num_targets=7)
  broken = np.where(mixup < 0, np.nan, mixup)
  fits = fit_losses(undefended, members, num_targets=2)
  with pytest.raises(ValueError, match="mixup losses"):
    proposition_one(undefended[:2], broken, fits, members[:2])
  with pytest.raises(ValueError, match="bins=1"):
    estimate_total_variation([0.0, 1.0], [False, True], bins=1)

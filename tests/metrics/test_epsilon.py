import dp_accounting
import numpy as np
import pytest
from jax_privacy.auditing import Bonferroni, CanaryScoreAuditor, Explicit, Split
from scipy import stats

from mixdef.metrics import intervals, roc
from mixdef.metrics.epsilon import (
  epsilon_at_threshold,
  epsilon_bonferroni,
  epsilon_ceiling,
  epsilon_multisplit,
  epsilon_split,
)
from mixdef.metrics.gdp import gdp_epsilon, gdp_mu

EVERY = (
  lambda s, m, **o: epsilon_at_threshold(s, m, threshold=0.5, **o),
  epsilon_bonferroni,
  epsilon_split,
  lambda s, m, **o: epsilon_multisplit(s, m, splits=7, **o),
)


def laplace(epsilon=2.0, members=400, nonmembers=300, seed=0):
  rng = np.random.default_rng(seed)
  member = rng.permutation(np.arange(members + nonmembers) < members)
  return rng.laplace(scale=1 / epsilon, size=len(member)) + member, member


def separated(members, nonmembers):
  member = np.arange(members + nonmembers) < members
  return member.astype(float), member


def oracle(scores, member):
  return CanaryScoreAuditor(scores[member], scores[~member])


@pytest.mark.parametrize(
  ("number", "ceiling"),
  [
    (100, 3.28),
    (500, 4.91),
    (1000, 5.6),
    (5000, 7.21),
    (16_000, 8.375),
    (25_000, 8.82),
  ],
)
def test_ceiling_is_the_bound_of_a_perfect_attack(number, ceiling):
  assert epsilon_ceiling(number, number) == pytest.approx(ceiling, abs=5e-3)
  reached = epsilon_at_threshold(*separated(number, number), threshold=0.5)
  assert reached == pytest.approx(epsilon_ceiling(number, number))


@pytest.mark.parametrize("threshold", [-0.5, 0.3, 1.2])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.05])
def test_one_threshold_agrees_with_the_formula_and_with_jax_privacy(threshold, delta):
  scores, member = laplace()
  called = scores >= threshold
  # (1 - 2 * .025): a two-sided interval's ends are one-sided bounds at .025.
  _, fpr_high = intervals.clopper_pearson(called[~member].sum(), (~member).sum())
  _, fnr_high = intervals.clopper_pearson((~called)[member].sum(), member.sum())
  expected = max(
    0,
    np.log(max(1 - fnr_high - delta, 1e-300) / fpr_high),
    np.log(max(1 - fpr_high - delta, 1e-300) / fnr_high),
  )
  got = epsilon_at_threshold(scores, member, threshold=threshold, delta=delta)
  assert got == pytest.approx(expected)
  theirs = oracle(scores, member).epsilon_clopper_pearson(
    0.05, delta, one_sided=False, threshold_strategy=Explicit(threshold)
  )
  assert got == pytest.approx(theirs)


def test_bonferroni_over_given_thresholds_agrees_with_jax_privacy():
  # With four distinct scores, its Pareto frontier is all of them and +inf.
  member = np.arange(700) < 400
  counts = [40, 60, 100, 200, 150, 80, 40, 30]
  scores = np.repeat([0.0, 1, 2, 3, 0, 1, 2, 3], counts)
  theirs = oracle(scores, member).epsilon_clopper_pearson(
    0.05, 1e-3, one_sided=False, threshold_strategy=Bonferroni()
  )
  got = epsilon_bonferroni(
    scores, member, thresholds=[0.0, 1, 2, 3, np.inf], delta=1e-3
  )
  assert got == pytest.approx(theirs)
  assert got > 0


def test_splits_find_what_jax_privacy_finds_within_their_own_randomness():
  scores, member = laplace(members=2000, nonmembers=2000)
  ours = [epsilon_split(scores, member, seed=seed) for seed in range(20)]
  theirs = [
    oracle(scores, member).epsilon_clopper_pearson(
      0.05, 0, one_sided=False, threshold_strategy=Split(seed=seed)
    )
    for seed in range(20)
  ]
  error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(20)
  assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error


def test_multisplit_is_reached_by_half_of_the_splits_at_half_the_error():
  scores, member = laplace()
  rng = np.random.default_rng(3)
  inside, outside = np.sort(scores[member]), np.sort(scores[~member])
  bounds = []
  for _ in range(8):
    inside, outside = rng.permutation(inside), rng.permutation(outside)
    chosen, rest = [
      (np.concatenate(parts), np.arange(350) < 200)
      for parts in ((inside[:200], outside[:150]), (inside[200:], outside[150:]))
    ]
    best = max(
      np.unique(chosen[0])[::-1],
      key=lambda t: epsilon_at_threshold(*chosen, threshold=t, confidence=0.975),
    )
    bounds.append(epsilon_at_threshold(*rest, threshold=best, confidence=0.975))
  got = epsilon_multisplit(scores, member, splits=8, seed=3)
  assert got == pytest.approx(sorted(bounds)[4])
  assert len(set(bounds)) == 8


@pytest.mark.parametrize("bound", EVERY)
def test_bounds_read_what_they_should(bound):
  scores, member = laplace()
  reference = bound(scores, member)
  assert 0 < reference < epsilon_ceiling(400, 300)
  # The order of records says nothing, and neither does a record without a score.
  order = np.random.default_rng(1).permutation(700)
  assert bound(scores[order], member[order]) == reference
  padded = np.append(scores, [np.nan] * 2), np.append(member, [True, False])
  assert bound(*padded) == reference
  # More confidence or a larger delta costs.
  assert bound(scores, member, confidence=0.999) < reference
  # Random membership shows nothing.
  assert bound(np.random.default_rng(2).normal(size=700), member) < 0.1


@pytest.mark.parametrize("bound", EVERY)
def test_pitfall_131_delta_is_included(bound):
  scores, member = laplace()
  values = [bound(scores, member, delta=delta) for delta in (0.0, 0.1, 0.5, 0.99)]
  assert values == sorted(values, reverse=True)
  assert values[0] > values[2]
  assert values[3] == 0


@pytest.mark.parametrize("bound", EVERY)
def test_pitfall_131_all_rows_count_and_nothing_is_capped(bound):
  # One kind is far more frequent: cutting both to the smaller number loses its rows.
  scores, member = separated(2000, 50)
  assert bound(scores, member) > bound(*separated(50, 50)) + 1
  assert bound(*separated(40_000, 40_000)) > 8


def test_pitfall_133_more_thresholds_are_paid_for():
  scores, member = laplace()
  one, two, many = (
    epsilon_bonferroni(scores, member, thresholds=[0.9] * number)
    for number in (1, 2, 50)
  )
  assert one == epsilon_at_threshold(scores, member, threshold=0.9)
  assert one > two > many


def test_the_default_thresholds_do_not_depend_on_the_scale_of_scores():
  scores, member = laplace()
  reference = epsilon_bonferroni(scores, member)
  assert epsilon_bonferroni(np.exp(5 * scores), member) == reference
  assert epsilon_bonferroni(np.sign(scores) * np.inf, member) >= 0


def test_default_thresholds_look_at_both_tails():
  # Members leak at one end only: once as found members, once as found non-members.
  rng = np.random.default_rng(0)
  member = np.arange(2000) < 1000
  scores = rng.normal(size=2000)
  high, low = scores.copy(), scores.copy()
  high[:200] += 10
  low[1000:1200] -= 10
  assert epsilon_bonferroni(high, member) > 2.5
  assert epsilon_bonferroni(low, member) > 2.5


def test_half_of_the_records_is_the_price_of_a_split():
  scores, member = separated(2000, 2000)
  assert epsilon_split(scores, member) == pytest.approx(epsilon_ceiling(1000, 1000))
  assert epsilon_split(scores, member, seed=1) == epsilon_split(scores, member, seed=1)
  leaky = laplace()
  assert epsilon_split(*leaky, seed=1) != epsilon_split(*leaky, seed=2)


@pytest.mark.parametrize(
  ("delta", "expected"),
  [(1e-5, (1.9931, 4.3772, 9.9973)), (1e-6, (2.2541, 4.8866, 10.9972))],
)
def test_gdp_epsilon_golden_values(delta, expected):
  got = [gdp_epsilon(mu, delta) for mu in (0.5, 1.0, 2.0)]
  assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 7.0, 40.0])
def test_gdp_epsilon_is_the_inverse_of_dp_accounting(mu):
  sigma = dp_accounting.get_sigma_gaussian(gdp_epsilon(mu, 1e-6), 1e-6)
  assert 1 / sigma == pytest.approx(mu, rel=1e-3)


def test_gdp_epsilon_is_zero_where_delta_alone_is_enough():
  assert gdp_epsilon(0.0, 1e-6) == 0
  # Total variation 2 Phi(mu/2) - 1 = 0.00399.
  assert gdp_epsilon(0.01, 0.004) == 0
  assert gdp_epsilon(0.01, 0.00398) > 0


@pytest.mark.parametrize(("number", "mu"), [(500, 4.88), (16_000, 7.00)])
def test_gdp_ceiling(number, mu):
  got = gdp_mu(*separated(number, number), thresholds=[0.5])
  assert got == pytest.approx(mu, abs=5e-3)


def test_gdp_mu_agrees_with_the_formula_and_with_jax_privacy():
  rng = np.random.default_rng(0)
  member = np.arange(3000) < 1500
  scores = np.digitize(rng.normal(size=3000) + 1.5 * member, [0.0, 0.75, 1.5])
  got = gdp_mu(scores, member, thresholds=[0, 1, 2, 3, np.inf])
  naive = max(
    stats.norm.isf(stats.beta.ppf(1 - 0.005, fp + 1, 1500 - fp))
    - stats.norm.ppf(stats.beta.ppf(1 - 0.005, fn + 1, 1500 - fn))
    for fp, fn in (
      ((scores[~member] >= t).sum(), (scores[member] < t).sum()) for t in (1, 2, 3)
    )
  )
  assert got == pytest.approx(naive)
  assert 1 < got < 1.5
  theirs = oracle(scores, member).epsilon_from_gdp(0.05, 1e-5)
  assert gdp_epsilon(got, 1e-5) == pytest.approx(theirs, abs=1e-4)


def test_auc_and_tpr_agree_with_jax_privacy_where_it_interpolates_nothing():
  # Its curve is the concave hull, so the scores are those of a concave ROC: a third of
  # the members is found without error, half of them with a quarter of the others.
  member = np.arange(24) < 12
  scores = np.repeat([3, 2, 1, 2, 1], [4, 2, 6, 3, 9])
  theirs = oracle(scores, member)
  assert roc.auc(scores, member) == pytest.approx(theirs.attack_auroc())
  for fpr in (0, 0.25, 1):
    if fpr < 1:
      got = theirs.tpr_at_given_fpr(fpr)
      assert roc.tpr_at_fpr(scores, member, fpr) == pytest.approx(got)
  between = roc.tpr_at_fpr(scores, member, 0.2)
  assert between == roc.tpr_at_fpr(scores, member, 0)
  assert between < theirs.tpr_at_given_fpr(0.2)


@pytest.mark.parametrize("bound", EVERY)
def test_pooled_targets_are_refused(bound):
  scores, member = laplace()
  with pytest.raises(ValueError, match="not independent"):
    bound(scores.reshape(7, 100), member.reshape(7, 100))


@pytest.mark.parametrize("bound", EVERY)
@pytest.mark.parametrize("options", [{"delta": 1.0}, {"confidence": 95}])
def test_numbers_out_of_range_are_refused(bound, options):
  (name,) = options
  with pytest.raises(ValueError, match=name):
    bound(*laplace(), **options)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s, m: epsilon_bonferroni(s, m, thresholds=[]), r"thresholds=\[\]"),
    (lambda s, m: epsilon_bonferroni(s, m, thresholds=0), "thresholds=0"),
    (lambda s, m: epsilon_bonferroni(s, m, thresholds=0.5), "whole number"),
    (lambda s, m: epsilon_at_threshold(s, m, threshold=np.nan), "nan"),
    (lambda s, m: epsilon_split(s[:3], ~m[:3] | m[:3] & (s[:3] < 9)), "non-members"),
    (lambda s, m: epsilon_multisplit(s, m, splits=0), "splits=0"),
    (lambda s, m: epsilon_ceiling(0, 5), "num_members=0"),
    (lambda s, m: gdp_epsilon(-1.0, 1e-5), "mu=-1"),
    (lambda s, m: gdp_epsilon(1.0, 0.0), "delta=0"),
    (lambda s, m: epsilon_split(np.arange(3.0), np.arange(3) < 2), "2 of each"),
  ],
)
def test_unusable_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(*laplace())

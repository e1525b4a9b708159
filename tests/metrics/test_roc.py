import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from mixdef import metrics
from mixdef.metrics import decisions, intervals, roc

SCORES = np.array([0.9, 0.8, 0.7, 0.1, 0.95, 0.6, 0.5, 0.4])
MEMBER = np.arange(8) < 4


def tied(seed, records=60):
  rng = np.random.default_rng(seed)
  member = rng.random(records) < 0.4
  member[:2] = True, False
  return np.round(rng.normal(size=records) + member, 1), member


@pytest.mark.parametrize("seed", range(10))
def test_auc_and_roc_agree_with_sklearn_on_ties(seed):
  scores, member = tied(seed)
  assert roc.auc(scores, member) == pytest.approx(roc_auc_score(member, scores))
  fpr, tpr, _ = roc_curve(member, scores, drop_intermediate=False)
  for rate in (0, 0.01, 0.1, 0.25, 0.5, 1):
    expected = tpr[fpr <= rate].max()
    assert roc.tpr_at_fpr(scores, member, rate) == pytest.approx(expected)
  for rate in (0.01, 0.1, 0.5, 1):
    expected = tpr[fpr < rate].max()
    got = roc.tpr_at_fpr(scores, member, rate, strict=True)
    assert got == pytest.approx(expected)
  best = ((tpr + 1 - fpr) / 2).max()
  assert decisions.max_balanced_accuracy(scores, member) == pytest.approx(best)


def test_two_gaussians_have_the_closed_form_auc():
  rng = np.random.default_rng(0)
  member = np.arange(20_000) < 10_000
  for distance in (0.0, 0.5, 2.0):
    scores = rng.normal(size=20_000) + distance * member
    expected = stats.norm.cdf(distance / np.sqrt(2))
    assert roc.auc(scores, member) == pytest.approx(expected, abs=5 * 0.0041)


def test_pitfall_128_golden_example_without_interpolation():
  got = [roc.tpr_at_fpr(SCORES, MEMBER, rate) for rate in (0, 0.24, 0.25, 0.5)]
  assert got == [0, 0, 0.75, 0.75]
  assert roc.tpr_at_fpr(SCORES, MEMBER, 0.25, strict=True) == 0


@pytest.mark.parametrize("seed", range(5))
def test_pitfall_128_below_the_resolution_it_is_the_tpr_at_zero(seed):
  scores, member = tied(seed)
  nonmembers = (~member).sum()
  at_zero = roc.tpr_at_fpr(scores, member, 0)
  assert roc.tpr_at_fpr(scores, member, 0.99 / nonmembers) == at_zero


def test_false_positive_budget_survives_rounding():
  # 0.29 * 100 is 28.999999999999996 in floating point; 29 of 100 is an FPR of 0.29.
  scores = np.concatenate([np.arange(100.0), [70.5]])
  member = np.arange(101) == 100
  assert roc.tpr_at_fpr(scores, member, 0.29) == 1.0
  assert roc.tpr_at_fpr(scores, member, 0.29, strict=True) == 0.0


def test_pitfall_10_nan_scores_are_excluded_and_counted():
  scores = np.concatenate([SCORES, [np.nan, np.nan]])
  member = np.concatenate([MEMBER, [True, False]])
  assert roc.auc(scores, member) == roc.auc(SCORES, MEMBER)
  assert roc.tpr_at_fpr(scores, member, 0.25) == 0.75
  assert decisions.balanced_accuracy(
    scores, member, threshold=0.65
  ) == decisions.balanced_accuracy(SCORES, MEMBER, threshold=0.65)
  assert roc.excluded(scores) == 2


def test_pitfall_11_signed_zeros_and_infinities_are_ties():
  member = np.array([True, False, True, False])
  assert roc.auc([0.0, -0.0, -0.0, 0.0], member) == 0.5
  assert roc.auc([np.inf, np.inf, -np.inf, -np.inf], member) == 0.5
  assert roc.tpr_at_fpr([np.inf, np.inf, -np.inf, -np.inf], member, 0.4) == 0.0


def test_pitfall_45_a_constant_attack_has_balanced_accuracy_one_half():
  assert decisions.balanced_accuracy(np.ones(8), MEMBER, threshold=0.5) == 0.5
  assert decisions.max_balanced_accuracy(np.ones(8), MEMBER) == 0.5
  assert roc.auc(np.ones(8), MEMBER) == 0.5


def test_pitfall_142_an_auc_below_one_half_is_not_flipped():
  assert roc.auc(-SCORES, MEMBER) == pytest.approx(1 - roc.auc(SCORES, MEMBER))
  assert roc.auc(-SCORES, MEMBER) < 0.5


def test_pitfall_139_thresholds_come_from_the_next_model():
  rng = np.random.default_rng(0)
  members = rng.random((3, 50)) < 0.5
  scores = rng.normal(size=(3, 50)) + members
  thresholds = decisions.shadow_thresholds(scores, members)
  flipped = members.copy()
  flipped[0] = ~flipped[0]
  assert decisions.shadow_thresholds(scores, flipped)[0] == thresholds[0]
  assert decisions.shadow_thresholds(scores, flipped)[2] != thresholds[2]
  called = scores >= thresholds[:, None]
  expected = (called[members].mean() + (~called)[~members].mean()) / 2
  assert decisions.balanced_accuracy(scores, members) == pytest.approx(expected)
  assert decisions.balanced_accuracy(scores, members) < decisions.max_balanced_accuracy(
    scores, members
  )


def test_a_model_without_a_threshold_is_skipped():
  rng = np.random.default_rng(0)
  members = rng.random((5, 50)) < 0.5
  scores = rng.normal(size=(5, 50)) + members
  own = [
    max(row, key=lambda t: _gain(row, k, t))
    for row, k in zip(scores, members, strict=True)
  ]
  scores[1] = np.nan
  scores[3, ~members[3]] = np.nan
  np.testing.assert_array_equal(roc.complete_targets(scores, members), [0, 2, 4])
  expected = [own[2], own[2], own[4], own[4], own[0]]
  np.testing.assert_array_equal(decisions.shadow_thresholds(scores, members), expected)
  scores[[0, 2]] = np.nan
  with pytest.raises(ValueError, match="both classes in 1 targets"):
    decisions.balanced_accuracy(scores, members)


def _gain(scores, member, threshold):
  called = scores >= threshold
  return called[member].mean() - called[~member].mean()


def test_one_target_has_no_shadow_threshold():
  with pytest.raises(ValueError, match="S >= 2"):
    decisions.balanced_accuracy(SCORES, MEMBER)


@pytest.mark.parametrize(
  ("trials", "successes", "low", "high"),
  [
    (25_000, 25, 0.00065, 0.00148),
    (25_000, 2, 0.00001, 0.00029),
    (25_000, 0, 0, 0.00015),
    (16_000, 16, 0.00057, 0.00162),
    (5_000, 5, 0.00032, 0.00233),
    (1_000, 1, 0.000025, 0.00556),
  ],
)
def test_clopper_pearson_golden_table(trials, successes, low, high):
  got = intervals.clopper_pearson(successes, trials)
  assert got == pytest.approx((low, high), abs=6e-6)


def test_clopper_pearson_agrees_with_scipy_and_closes_at_the_ends():
  expected = stats.binomtest(7, 20).proportion_ci(0.9, "exact")
  got = intervals.clopper_pearson(7, 20, confidence=0.9)
  assert got == pytest.approx((expected.low, expected.high))
  assert intervals.clopper_pearson(0, 20)[0] == 0
  assert intervals.clopper_pearson(20, 20)[1] == 1


def test_pitfall_129_ten_expected_false_positives_are_resolvable():
  assert roc.resolvable(10_000, 0.001)
  assert roc.resolvable(100, 0.1)
  assert not roc.resolvable(9_999, 0.001)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: roc.auc([1.0, 2], [True, True]), "2 members and 0 non-members"),
    (lambda: roc.auc([np.nan, 2], [True, False]), "0 members and 1 non-members"),
    (lambda: roc.auc([1.0, 2], [1, 0]), "members has type int"),
    (lambda: roc.auc([1.0], [True, False]), r"members has shape \(2,\); pass \[1\]"),
    (lambda: roc.tpr_at_fpr(SCORES, MEMBER, 5), "fpr=5"),
    (lambda: intervals.clopper_pearson(3, 2), "successes=3"),
    (lambda: intervals.clopper_pearson(1, 2, confidence=95), "confidence=95"),
    (lambda: decisions.gap_attack_accuracy(99, 0.5), "train_accuracy=99"),
  ],
)
def test_unusable_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize(
  ("tpr", "fpr", "expected"),
  [(0.05, 0.001, (0.3356, 0.8475, 0.9804)), (0.2, 0.1, (0.0198, 0.1818, 0.6667))],
)
def test_pitfall_140_ppv_at_one_ten_and_fifty_percent(tpr, fpr, expected):
  got = [decisions.ppv(tpr, fpr, prior) for prior in (0.01, 0.1, 0.5)]
  assert got == pytest.approx(expected, abs=5e-5)


def test_ppv_is_the_share_of_members_among_those_called_members():
  rng = np.random.default_rng(0)
  member = rng.random(10_000) < 0.2
  called = rng.random(10_000) < np.where(member, 0.6, 0.1)
  rates = called[member].mean(), called[~member].mean()
  assert decisions.ppv(*rates, member.mean()) == pytest.approx(member[called].mean())
  assert np.isnan(decisions.ppv(0, 0, 0.1))


def test_positive_rate_shows_an_attack_that_calls_everyone_a_member():
  assert decisions.positive_rate(SCORES, MEMBER, threshold=0.0) == 1
  assert decisions.positive_rate(SCORES, MEMBER, threshold=2.0) == 0
  nan = np.append(SCORES, np.nan), np.append(MEMBER, True)
  assert decisions.positive_rate(*nan, threshold=0.65) == 0.5
  scores, members = np.stack([SCORES, SCORES + 1]), np.stack([MEMBER, ~MEMBER])
  called = scores >= decisions.shadow_thresholds(scores, members)[:, None]
  assert decisions.positive_rate(scores, members) == called.mean()


@pytest.mark.parametrize(
  ("rates", "message"),
  [((5, 0.1, 0.5), "tpr=5"), ((0.5, -1, 0.5), "fpr=-1"), ((0.5, 0.1, 1), "prior=1")],
)
def test_ppv_refuses_percentages(rates, message):
  with pytest.raises(ValueError, match=message):
    decisions.ppv(*rates)


@pytest.mark.parametrize(
  "measure",
  [
    metrics.auc,
    metrics.summarize,
    metrics.bootstrap_records,
    metrics.max_balanced_accuracy,
    lambda scores, member: metrics.tpr_at_fpr(scores, member, 0.01),
    lambda scores, member: metrics.record_risk(scores, member, fpr=0.01),
    lambda scores, member: metrics.class_risk(scores, member, np.arange(8) // 4),
    lambda scores, member: metrics.calibrated_rates(scores, member, [0.1]),
  ],
)
@pytest.mark.parametrize(
  ("scores", "member", "message"),
  [
    (MEMBER, SCORES, "scores are bool but .* is not; pass scores first, then"),
    (SCORES, SCORES, "has type float64; pass bool, for example weights > 0"),
    (SCORES, MEMBER.astype(int), r"type int64; pass bool, .*\.astype\(bool\)"),
    (SCORES, MEMBER[:3], r"has shape \(3,\); pass \[8\]"),
    (np.ma.array(SCORES, mask=MEMBER), MEMBER, "scores is a masked array"),
    (SCORES * 1j, MEMBER, "scores has type complex128"),
    (SCORES.astype(str), MEMBER, "scores has type <U32"),
    (np.ones((2, 2, 8)), MEMBER, r"scores have shape \(2, 2, 8\); pass \[N\] or"),
  ],
)
def test_arguments_that_are_swapped_or_of_other_shapes_are_refused(
  measure, scores, member, message
):
  with pytest.raises(ValueError, match=message) as raised:
    measure(scores, member)
  assert "\n" not in str(raised.value)

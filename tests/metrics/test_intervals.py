import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mixdef.metrics import bootstrap_records, intervals, roc
from mixdef.metrics.intervals import effective_trials, paired_bootstrap


def tied(seed, targets=4, records=12):
  rng = np.random.default_rng(seed)
  members = rng.random((targets, records)) < 0.5
  scores = np.round(rng.normal(size=members.shape) + members, 0 if seed % 2 else 1)
  scores[rng.random(members.shape) < 0.1] = np.nan
  return scores, members


@pytest.mark.parametrize("seed", range(8))
def test_weighted_bootstrap_equals_a_naive_resample(seed):
  scores, members = tied(seed)
  threshold = np.linspace(-0.5, 1, len(scores))
  got = bootstrap_records(
    scores, members, fprs=(0.1, 0.3), threshold=threshold, resamples=40, seed=seed
  )
  rng = np.random.default_rng(seed)
  records = scores.shape[1]
  rows = []
  for _ in range(40):
    drawn = rng.integers(0, records, records)
    s, m = scores[:, drawn], members[:, drawn]
    scored = ~np.isnan(s)
    flat, truth = s[scored], m[scored]
    called = s >= threshold[:, None]
    rates = [roc.tpr_at_fpr(flat, truth, rate) for rate in (0.1, 0.3)]
    accuracy = (called[scored & m].mean() + (~called)[scored & ~m].mean()) / 2
    rows.append([roc_auc_score(truth, flat), *rates, accuracy])
  scored = ~np.isnan(scores)
  flat, truth = scores[scored], members[scored]
  called = scores >= threshold[:, None]
  values = [
    roc_auc_score(truth, flat),
    *(roc.tpr_at_fpr(flat, truth, rate) for rate in (0.1, 0.3)),
    (called[scored & members].mean() + (~called)[scored & ~members].mean()) / 2,
  ]
  pairs = got["pairs"]
  trials = effective_trials(values, np.var(rows, axis=0), pairs)
  expected = [
    intervals.clopper_pearson(rate * n, n)
    for rate, n in zip(values, trials, strict=True)
  ]
  np.testing.assert_allclose(got["auc"], expected[0])
  np.testing.assert_allclose(got["tpr"][0.1], expected[1])
  np.testing.assert_allclose(got["tpr"][0.3], expected[2])
  np.testing.assert_allclose(got["balanced_accuracy"], expected[3])
  assert got["trials"]["auc"] == pytest.approx(trials[0])


def test_pitfall_134_repeating_targets_does_not_shrink_the_interval():
  rng = np.random.default_rng(0)
  members = rng.random((1, 80)) < 0.5
  scores = rng.normal(size=(1, 80)) + members
  once = bootstrap_records(scores, members, fprs=(0.1,), resamples=100)
  often = bootstrap_records(
    np.tile(scores, (4, 1)), np.tile(members, (4, 1)), fprs=(0.1,), resamples=100
  )
  np.testing.assert_allclose(often["auc"], once["auc"])
  np.testing.assert_allclose(often["tpr"][0.1], once["tpr"][0.1])


def test_auc_interval_covers_the_truth_about_95_percent():
  truth = stats.norm.cdf(1 / np.sqrt(2))
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(150):
    member = rng.random(120) < 0.5
    scores = rng.normal(size=120) + member
    low, high = bootstrap_records(scores, member, resamples=150)["auc"]
    covered += low <= truth <= high
  # Binomial(150, .95) is below 131 with probability 2e-4.
  assert 131 <= covered <= 150


def test_pitfall_134_dependent_pairs_need_clusters():
  # The score is a property of the record alone, so 16 targets add no information.
  rng = np.random.default_rng(1)
  records, targets = 60, 16
  missed = {"records": 0, "pairs": 0}
  for _ in range(80):
    member = rng.random(records) < 0.5
    scores = np.tile(rng.normal(size=records), (targets, 1))
    members = np.tile(member, (targets, 1))
    clustered = bootstrap_records(scores, members, resamples=100)["auc"]
    loose = bootstrap_records(scores.ravel(), members.ravel(), resamples=100)["auc"]
    for name, (low, high) in {"records": clustered, "pairs": loose}.items():
      missed[name] += not low <= 0.5 <= high
  assert missed["records"] <= 16
  assert missed["pairs"] >= 40


def test_seed_decides_the_interval():
  scores, members = tied(0)
  first, again, other = (
    bootstrap_records(scores, members, resamples=50, seed=seed)["auc"]
    for seed in (0, 0, 1)
  )
  assert first == again
  assert first != other


def test_resamples_of_one_class_are_skipped():
  low, high = bootstrap_records([1.0, 0.0], [True, False], resamples=50)["auc"]
  assert (low, high) == (pytest.approx(0.025), 1.0)  # one right answer in one trial


def test_no_resample_is_refused():
  with pytest.raises(ValueError, match="resamples=0"):
    bootstrap_records([1.0, 0.0], [True, False], resamples=0)


def test_a_percentage_is_refused():
  scores, members = tied(0)
  with pytest.raises(ValueError, match="fpr=5"):
    bootstrap_records(scores, members, fprs=(0.1, 5))
  with pytest.raises(ValueError, match="fpr=5"):
    paired_bootstrap((scores, members), (scores, members), fprs=(5,))


@pytest.mark.parametrize("seed", range(4))
def test_paired_bootstrap_equals_a_naive_resample(seed):
  first, second = tied(seed), tied(seed + 50, targets=3)
  got = paired_bootstrap(first, second, fprs=(0.2,), resamples=40, seed=seed)
  rng = np.random.default_rng(seed)
  rows = []
  for draw in range(41):
    drawn = rng.integers(0, 12, 12) if draw else np.arange(12)
    if not draw:
      rng = np.random.default_rng(seed)
    rows.append([])
    for figure in (roc.auc, lambda s, m: roc.tpr_at_fpr(s, m, 0.2)):
      one, other = (figure(s[:, drawn], m[:, drawn]) for s, m in (first, second))
      rows[-1].append(one - other)
  expected = np.quantile(rows[1:], [0.025, 0.975], axis=0).T
  for number, entry in enumerate((got["auc"], got["tpr"][0.2])):
    assert entry["difference"] == pytest.approx(rows[0][number])
    np.testing.assert_allclose(entry["ci"], expected[number], atol=1e-12)


def test_the_paired_interval_sees_what_two_intervals_cannot():
  # Both attacks share the records' difficulty; the second adds a little noise to it.
  rng = np.random.default_rng(0)
  member = rng.random(500) < 0.5
  strong = member + 0.7 * rng.normal(size=500)
  weak = strong + 0.4 * rng.normal(size=500)
  alone = [bootstrap_records(s, member, resamples=400)["auc"] for s in (strong, weak)]
  assert alone[0][0] < alone[1][1]
  paired = paired_bootstrap((strong, member), (weak, member), resamples=400)["auc"]
  assert paired["ci"][0] > 0
  gap = roc.auc(strong, member) - roc.auc(weak, member)
  assert paired["difference"] == gap


def test_an_attack_does_not_differ_from_itself_and_sides_swap_signs():
  scores, members = tied(3)
  same = paired_bootstrap(
    (scores, members), (scores, members), fprs=(0.1,), resamples=30
  )
  assert same["auc"] == {"difference": 0, "ci": (0, 0)}
  assert same["tpr"][0.1] == {"difference": 0, "ci": (0, 0)}
  other = tied(4)
  there = paired_bootstrap((scores, members), other, resamples=30)["auc"]
  back = paired_bootstrap(other, (scores, members), resamples=30)["auc"]
  assert there["difference"] == -back["difference"]
  np.testing.assert_allclose(there["ci"], [-back["ci"][1], -back["ci"][0]])


def test_records_without_a_score_on_one_side_are_left_out_of_both():
  (scores, members), second = tied(6), tied(7)
  scores[:, :3] = np.nan
  got = paired_bootstrap((scores, members), second, resamples=30)
  expected = paired_bootstrap(
    (scores[:, 3:], members[:, 3:]), tuple(part[:, 3:] for part in second), resamples=30
  )
  assert got == expected


def test_pitfall_134_repeated_targets_do_not_shrink_the_paired_interval():
  first, second = tied(8), tied(9)
  once = paired_bootstrap(first, second, resamples=60)["auc"]
  often = paired_bootstrap(
    tuple(np.tile(part, (4, 1)) for part in first),
    tuple(np.tile(part, (4, 1)) for part in second),
    resamples=60,
  )["auc"]
  np.testing.assert_allclose(often["ci"], once["ci"])


def test_unusable_pairs_are_refused():
  scores, members = tied(0)
  with pytest.raises(ValueError, match="first has 12 records and second 9"):
    paired_bootstrap((scores, members), (scores[:, :9], members[:, :9]))
  with pytest.raises(ValueError, match=r"members has shape \(4, 9\); pass \[4, 12\]"):
    paired_bootstrap((scores, members), (scores, members[:, :9]))
  with pytest.raises(ValueError, match="resamples=0"):
    paired_bootstrap((scores, members), (scores, members), resamples=0)


def drawn(kind, models, records, rate, rng):
  """Scores [S, N] with easy and hard records, and who is a member."""
  members = np.zeros((models, records), bool)
  while members.all() or not members.any():
    members = rng.random((models, records)) < rate
  noise, ease = rng.normal(size=members.shape), rng.normal(size=records)
  if kind == "null":
    return noise + 3 * ease, members
  if kind == "ties":  # a label, and rarely another one than most have
    return (noise + ease > 2).astype(float), members
  if kind == "shifted":
    return noise + members, members
  return noise + 4 * members, members


TRUTH = {
  "null": 0.5,
  "ties": 0.5,
  "shifted": stats.norm.cdf(1 / np.sqrt(2)),
  "separated": stats.norm.cdf(4 / np.sqrt(2)),
}


@pytest.mark.parametrize("kind", TRUTH)
@pytest.mark.parametrize(
  ("models", "records", "rate"),
  [(1, 6, 0.5), (2, 4, 0.5), (2, 10, 0.5), (4, 30, 0.5), (1, 100, 0.1), (8, 40, 0.9)],
)
def test_auc_intervals_cover_with_few_records_of_either_kind(
  kind, models, records, rate
):
  rng = np.random.default_rng(0)
  runs, missed = 60, 0
  for _ in range(runs):
    scores, members = drawn(kind, models, records, rate, rng)
    low, high = bootstrap_records(scores, members, resamples=60)["auc"]
    missed += not low <= TRUTH[kind] <= high
  # 5 % and three standard errors: 8 of 60.
  assert missed <= stats.binom.isf(stats.norm.sf(3), runs, 0.05)


@pytest.mark.parametrize(("models", "records", "rate"), [(1, 400, 0.5), (1, 1200, 0.9)])
def test_tpr_intervals_know_of_the_threshold_and_clopper_pearson_does_not(
  models, records, rate
):
  truth = stats.norm.sf(stats.norm.isf(0.1) - 1)  # shifted by one, at an FPR of 10 %
  rng = np.random.default_rng(0)
  runs, missed, exact = 60, 0, 0
  for _ in range(runs):
    members = rng.random((models, records)) < rate
    scores = rng.normal(size=members.shape) + members
    low, high = bootstrap_records(scores, members, fprs=(0.1,), resamples=60)["tpr"][
      0.1
    ]
    missed += not low <= truth <= high
    rate_found = roc.tpr_at_fpr(scores, members, 0.1)
    count = int(members.sum())
    low, high = intervals.clopper_pearson(rate_found * count, count)
    exact += not low <= truth <= high
  allowed = stats.binom.isf(stats.norm.sf(3), runs, 0.05)
  assert missed <= allowed < exact


@pytest.mark.parametrize("pairs", [1, 2, 5, 20, 100])
def test_perfect_separation_has_the_bound_that_is_exact(pairs):
  member = np.arange(2 * pairs) < pairs
  low, high = bootstrap_records(-np.arange(2.0 * pairs), member, resamples=50)["auc"]
  assert (low**pairs, high) == (pytest.approx(0.025), 1)
  # The same records in more models prove no more.
  many = np.tile(-np.arange(2.0 * pairs), (3, 1)), np.tile(member, (3, 1))
  assert bootstrap_records(*many, resamples=50)["auc"] == pytest.approx((low, high))

import numpy as np
import pytest
from scipy import stats

from mixdef.metrics import roc
from mixdef.metrics.calibration import calibrated_rates


def draw(targets=5, records=60, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((targets, records)) < 0.5
  scores = np.round(rng.normal(size=members.shape) + members, 1)
  scores[rng.random(members.shape) < 0.1] = np.nan
  return scores, members


@pytest.mark.parametrize("wanted", [0.05, 0.2])
def test_rates_equal_a_naive_loop(wanted):
  scores, members = draw()
  targets = len(scores)
  tpr, fpr = [], []
  for s in range(targets):
    rates = []
    for p in set(range(targets)) - {s}:
      allowed = [
        t
        for t in scores[p][~np.isnan(scores[p])]
        if (scores[p, ~members[p] & ~np.isnan(scores[p])] >= t).mean() <= wanted
      ]
      called = scores[s] >= min(allowed)
      scored = ~np.isnan(scores[s])
      rates.append(
        [called[members[s] & scored].mean(), called[~members[s] & scored].mean()]
      )
    one, other = np.mean(rates, axis=0)
    tpr.append(one)
    fpr.append(other)
  got = calibrated_rates(scores, members, (0.05, 0.2))
  assert list(got) == [0.05, 0.2]
  assert got[wanted] == pytest.approx(
    {"tpr": np.mean(tpr), "fpr": np.mean(fpr), "fpr_spread": np.std(fpr, ddof=1)}
  )


def test_pitfall_139_the_threshold_of_a_target_does_not_read_its_labels():
  # The best threshold in hindsight always finds a TPR at its own FPR of zero; learned
  # on two targets that are shifted against each other, one gives all and one nothing.
  member = np.arange(40) < 20
  scores = np.stack([np.arange(40.0)[::-1], 100 + np.arange(40.0)[::-1]])
  members = np.stack([member, member])
  assert roc.tpr_at_fpr(scores[0], member, 0.1) == 1
  rates = calibrated_rates(scores, members, [0.1])[0.1]
  assert (rates["tpr"], rates["fpr"]) == (0.5, 0.5)
  assert rates["fpr_spread"] == pytest.approx(np.sqrt(0.5))


def test_exchangeable_targets_realise_the_wanted_rate():
  rng = np.random.default_rng(0)
  members = rng.random((8, 5000)) < 0.5
  scores = rng.normal(size=members.shape) + 2 * members
  rates = calibrated_rates(scores, members, [0.05])[0.05]
  # 8 targets of 2500 non-members: standard error 0.0015, twice for two samples.
  assert rates["fpr"] == pytest.approx(0.05, abs=0.008)
  expected = stats.norm.sf(stats.norm.isf(0.05) - 2)
  assert rates["tpr"] == pytest.approx(expected, abs=0.02)
  assert 0 < rates["fpr_spread"] < 0.02


def test_shifted_targets_have_a_larger_spread():
  rng = np.random.default_rng(0)
  members = rng.random((8, 500)) < 0.5
  scores = rng.normal(size=members.shape) + members
  shifted = scores + rng.normal(size=(8, 1))
  even, uneven = (calibrated_rates(s, members, [0.1])[0.1] for s in (scores, shifted))
  assert uneven["fpr_spread"] > 3 * even["fpr_spread"]


def test_no_threshold_allows_an_fpr_of_zero_when_a_nonmember_is_on_top():
  members = np.array([[True, False]] * 2)
  rates = calibrated_rates([[0.0, 1.0]] * 2, members, [0.0])[0.0]
  assert rates == {"tpr": 0, "fpr": 0, "fpr_spread": 0}


def test_targets_that_miss_a_class_or_all_scores_are_left_out():
  scores, members = draw()
  expected = calibrated_rates(scores, members, (0.1, 0.3))
  lost = np.full((3, scores.shape[1]), np.nan)
  lost[1, members[1]], lost[2, ~members[2]] = 9.0, 9.0
  padded = np.insert(scores, [0, 2, 5], lost, axis=0)
  member = np.insert(members, [0, 2, 5], members[:3], axis=0)
  assert calibrated_rates(padded, member, (0.1, 0.3)) == expected


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s, k: calibrated_rates(s[0], k[0], [0.1]), "S >= 2"),
    (lambda s, k: calibrated_rates(s, k, [0.1, 5]), "fpr=5"),
    (lambda s, k: calibrated_rates(s, k | True, [0.1]), "both classes in 0 targets"),
    (lambda s, k: calibrated_rates(s, k[:, :9], [0.1]), r"pass \[5, 60\]"),
  ],
)
def test_unusable_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(*draw())

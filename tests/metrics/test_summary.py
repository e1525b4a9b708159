import dataclasses
import json

import numpy as np
import pytest

from mixdef.metrics import (
  FPR_GRID,
  bootstrap_records,
  clopper_pearson,
  decisions,
  roc,
  summarize,
)


def draw(targets=4, records=300):
  rng = np.random.default_rng(0)
  members = rng.random((targets, records)) < 0.5
  return rng.normal(size=members.shape) + members, members


def test_layout_is_plain_json_and_agrees_with_the_metrics():
  scores, members = draw()
  summary = summarize(scores, members, resamples=50)
  layout = summary.to_json()
  assert json.loads(json.dumps(layout)) == layout
  assert list(layout) == [
    "auc",
    "auc_ci",
    "auc_trials",
    "pairs",
    "balanced_accuracy",
    "balanced_accuracy_ci",
    "balanced_accuracy_max",
    "positive_rate",
    "degenerate",
    "tpr",
    "ppv_fpr",
    "ppv",
    "calibrated",
    "num_members",
    "num_nonmembers",
    "excluded",
  ]
  assert summary.auc == roc.auc(scores, members)
  assert summary.auc_ci[0] < summary.auc < summary.auc_ci[1]
  assert summary.balanced_accuracy == decisions.balanced_accuracy(scores, members)
  low, high = summary.balanced_accuracy_ci
  assert low < summary.balanced_accuracy < high
  assert summary.balanced_accuracy_max >= summary.balanced_accuracy
  assert list(summary.tpr) == ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05"]


def test_pitfall_140_the_ppv_is_always_given_at_three_priors():
  for scores, members in (draw(), [part[0] for part in draw()]):
    summary = summarize(scores, members, resamples=20)
    assert list(summary.ppv) == ["0.01", "0.1", "0.5"]
    fpr = summary.ppv_fpr
    assert fpr == 0.05 if scores.ndim == 1 else 0.02  # 600 non-members resolve 2%
    rate = summary.tpr[f"{fpr:g}"]["value"]
    for prior, value in summary.ppv.items():
      called = float(prior) * rate + (1 - float(prior)) * fpr
      assert value == pytest.approx(float(prior) * rate / called)


@pytest.mark.parametrize("targets", [1, 4])
def test_the_ppv_is_unknown_where_no_score_is_rare_enough(targets):
  _, members = draw(targets)
  calls = np.arange(300) % 2 == 0  # a label is all that is scored: called or not
  summary = summarize(np.tile(calls, (targets, 1)), members, resamples=20)
  assert summary.tpr[f"{summary.ppv_fpr:g}"]["value"] == 0
  assert set(summary.ppv.values()) == {None}
  # Nobody found among those called is a PPV of zero.
  worst = summarize(np.random.default_rng(0).random(members.shape) - members, members)
  assert set(worst.ppv.values()) == {0}


def test_an_attack_on_few_records_may_miss_a_class_in_some_models():
  members = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
  scores = np.random.default_rng(0).normal(size=(4, 3)) + members
  summary = summarize(scores, members, resamples=20)
  able = scores[[0, 3]], members[[0, 3]]
  threshold = decisions.shadow_thresholds(*able)[[0, 0, 0, 1]]
  called = scores >= threshold[:, None]
  expected = (called[members].mean() + (~called)[~members].mean()) / 2
  assert summary.balanced_accuracy == pytest.approx(expected)
  assert summary.positive_rate == called.mean()
  assert summary.calibrated == summarize(*able, resamples=20).calibrated
  assert summary.num_members == 7
  # With one such model left there is nobody to learn a threshold from.
  alone = summarize(scores[:3], members[:3], resamples=20)
  assert alone.auc == roc.auc(scores[:3], members[:3])
  assert alone.tpr["0.05"]["interval"] == "bootstrap_records"
  for name in ("balanced_accuracy", "balanced_accuracy_ci", "positive_rate"):
    assert getattr(alone, name) is alone.degenerate is alone.calibrated is None


def test_pitfall_45_an_attack_that_calls_everyone_a_member_is_degenerate():
  scores, members = draw()
  summary = summarize(np.zeros_like(scores), members, resamples=20)
  assert summary.degenerate
  assert summary.positive_rate in (0, 1)
  assert summary.balanced_accuracy == 0.5
  assert not summarize(scores, members, resamples=20).degenerate


def test_pitfall_139_the_interval_of_the_balanced_accuracy_keeps_the_thresholds():
  scores, members = draw()
  summary = summarize(scores, members, resamples=50, seed=3)
  threshold = decisions.shadow_thresholds(scores, members)
  bounds = bootstrap_records(scores, members, threshold=threshold, resamples=50, seed=3)
  assert summary.balanced_accuracy_ci == list(bounds["balanced_accuracy"])


def test_pitfall_141_numbers_carry_their_counts_and_resolution():
  scores, members = draw()
  summary = summarize(scores, members, resamples=20)
  assert summary.num_members == members.sum()
  assert summary.num_nonmembers == (~members).sum()
  for fpr in FPR_GRID:
    entry = summary.tpr[f"{fpr:g}"]
    assert entry["n_nonmembers"] == (~members).sum()
    assert entry["resolvable"] == ((~members).sum() * fpr >= 10)
    assert entry["interval"] == "bootstrap_records"
    assert entry["value"] == roc.tpr_at_fpr(scores, members, fpr)


@pytest.mark.parametrize("row", [0, slice(0, 1)])
def test_one_target_has_a_wider_interval_than_clopper_pearson_and_no_shadow(row):
  scores, members = (part[row] for part in draw())
  summary = summarize(scores, members, fprs=(0.1,), resamples=200)
  entry = summary.tpr["0.1"]
  count = members.sum()
  hits = round(entry["value"] * count)
  # The threshold moves with the non-members, which Clopper-Pearson knows nothing of.
  low, high = clopper_pearson(hits, int(count))
  assert entry["ci"][0] < low < high < entry["ci"][1]
  assert summary.balanced_accuracy is None
  assert summary.positive_rate is summary.calibrated is None
  assert summary.balanced_accuracy_ci is None


def test_pitfall_10_nan_and_reference_rows_are_left_out_and_only_nan_counted():
  scores, members = draw()
  plain = summarize(scores[:, 20:], members[:, 20:], resamples=20)
  scores[:, :10] = np.nan  # auxiliary rows
  audited = np.arange(300) >= 10
  scores[:, 10:20] = np.nan  # undefined scores
  summary = summarize(scores, members, audited, resamples=20)
  assert summary == dataclasses.replace(plain, excluded=40)


def test_unusable_masks_are_refused():
  scores, members = draw()
  with pytest.raises(ValueError, match="audited has type float64; pass bool"):
    summarize(scores, members, np.ones(300))
  with pytest.raises(ValueError, match=r"audited has shape \(9,\); pass \[300\]"):
    summarize(scores, members, np.ones(9, bool))
  with pytest.raises(ValueError, match=r"members has shape \(4, 9\); pass \[4, 300\]"):
    summarize(scores, members[:, :9], np.ones(300, bool))
  with pytest.raises(ValueError, match="pass "):
    summarize(scores[None], members[None])
  for several in (slice(None), 0):
    with pytest.raises(ValueError, match="fpr=5"):
      summarize(scores[several], members[several], fprs=(5,))

import math

import numpy as np
import pytest

from mixdef.metrics import auc, class_risk, clopper_pearson, record_risk, tpr_at_fpr
from mixdef.metrics.risk import RecordRisk


def draw(models=6, records=40, seed=0, missing=0.1):
  """Scores on a coarse grid, so that many tie, and a share of NaN."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  scores = np.round(2 * rng.normal(size=members.shape) + 2 * members) / 2
  scores[rng.random(members.shape) < missing] = np.nan
  return scores, members


def looped_threshold(scores, members, fpr):
  """The lowest score whose decision calls at most a share `fpr` of non-members."""
  others = [
    scores[s, i]
    for s, i in np.ndindex(scores.shape)
    if not members[s, i] and not math.isnan(scores[s, i])
  ]
  best = math.inf
  for candidate in scores[~np.isnan(scores)]:
    false = sum(score >= candidate for score in others)
    if false <= fpr * len(others) + 1e-9:
      best = min(best, candidate)
  return best


@pytest.mark.parametrize("fpr", [0.0, 0.02, 0.05, 0.29, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_follow_a_loop_over_models_and_records(fpr, seed):
  scores, members = draw(seed=seed)
  risk = record_risk(scores, members, fpr=fpr)
  assert risk.threshold == looped_threshold(scores, members, fpr)
  for i in range(scores.shape[1]):
    own = [
      scores[s, i]
      for s in range(len(scores))
      if members[s, i] and not math.isnan(scores[s, i])
    ]
    assert risk.times[i] == len(own)
    if not own:
      assert math.isnan(risk.found[i])
      assert math.isnan(risk.score[i])
      continue
    hits = sum(score >= risk.threshold for score in own)
    assert risk.found[i] == hits / len(own)
    assert risk.score[i] == pytest.approx(sum(own) / len(own))


def test_the_threshold_is_that_of_the_tpr_at_this_fpr():
  # 0.29 * 100 is below 29 in floating point; a rate of 29 in 100 is still allowed.
  scores = np.arange(200.0)[None]
  members = np.arange(200)[None] % 2 == 0
  for fpr in (0.07, 0.29, 0.57, 0.58):
    risk = record_risk(scores, members, fpr=fpr)
    found = np.nansum(risk.found) / members.sum()
    assert found == tpr_at_fpr(scores, members, fpr)


def test_without_an_allowed_threshold_nobody_is_found():
  scores = np.array([[1.0, 2.0, 2.0]])
  members = np.array([[True, True, False]])
  risk = record_risk(scores, members, fpr=0)
  assert risk.threshold == np.inf
  assert risk.found[:2].tolist() == [0.0, 0.0]
  assert risk.times.tolist() == [1, 1, 0]


def test_pairs_without_a_score_change_nothing():
  scores, members = draw(missing=0.0)
  plain = record_risk(scores, members, fpr=0.05)
  more = np.vstack([scores, np.full((2, scores.shape[1]), np.nan)])
  wide = np.vstack([members, np.ones((2, scores.shape[1]), bool)])
  risk = record_risk(more, wide, fpr=0.05)
  for name in RecordRisk._fields:
    np.testing.assert_array_equal(getattr(risk, name), getattr(plain, name))


def test_the_ranking_is_that_of_what_the_hits_prove():
  found = np.array([1.0, 7 / 8, 0.0, np.nan, 0.0, 1.0, 7 / 8, 0.5])
  times = np.array([1, 8, 4, 0, 1, 9, 8, 8])
  score = np.array([9.0, 1.0, 5.0, np.nan, 6.0, 1.0, 2.0, 0.0])
  risk = RecordRisk(found, score, times, 0.0)

  def proved(i):
    hits = round(found[i] * times[i])
    return clopper_pearson(hits, int(times[i]), confidence=0.9)[0]

  attacked = [i for i in range(8) if times[i]]
  expected = sorted(attacked, key=lambda i: (-proved(i), -score[i]))
  assert risk.ranked().tolist() == expected == [5, 6, 1, 7, 0, 4, 2]


def test_one_hit_in_one_model_does_not_beat_seven_in_eight():
  members = np.ones((8, 2), bool)
  members[1:, 0] = False
  scores = np.where(members, 5.0, 0.0)
  scores[7, 1] = -1.0
  risk = record_risk(scores, members, fpr=0)
  assert risk.found.tolist() == [1.0, 7 / 8]
  assert risk.ranked().tolist() == [1, 0]


def test_pitfall_144_quantiles_show_the_few_that_an_average_hides():
  rng = np.random.default_rng(0)
  members = rng.random((8, 400)) < 0.5
  scores = rng.normal(size=members.shape)
  scores[:, :4] += 20 * members[:, :4]
  risk = record_risk(scores, members, fpr=0.01)
  quantiles = risk.quantiles()
  assert list(quantiles) == ["0.5", "0.9", "0.99", "1"]
  for share, value in quantiles.items():
    assert value == np.quantile(risk.found[risk.times > 0], float(share))
  assert auc(scores, members) < 0.55
  assert quantiles["0.5"] < 0.1
  assert quantiles["1"] == 1.0
  assert set(risk.ranked()[:4]) == {0, 1, 2, 3}


def test_classes_are_those_of_a_loop_and_the_most_exposed_first():
  scores, members = draw(records=60)
  labels = np.arange(60) % 3
  scores += 3 * members * (labels == 1)
  rows = class_risk(scores, members, labels)
  assert rows[0]["label"] == 1
  assert [row["auc"] for row in rows] == sorted((r["auc"] for r in rows), reverse=True)
  for row in rows:
    mine = labels == row["label"]
    own, member = scores[:, mine], members[:, mine]
    scored = ~np.isnan(own)
    high, low = own[scored & member], own[scored & ~member]
    wins = sum((a > b) + (a == b) / 2 for a in high for b in low)
    assert row["auc"] == pytest.approx(wins / (len(high) * len(low)))
    assert row["num_records"] == scored.any(0).sum()
    assert row["auc_ci"][0] <= row["auc"] <= row["auc_ci"][1]


def test_a_class_of_members_only_has_no_row():
  scores, members = np.ones((2, 4)), np.array([[True, True, True, False]] * 2)
  labels = [7, 7, 9, 9]
  assert [row["label"] for row in class_risk(scores, members, labels)] == [9]
  scores[:, 3] = np.nan
  assert class_risk(scores, members, labels) == []

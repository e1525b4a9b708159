import numpy as np
import pytest

from mixdef.auditing.comparison import (
  Attacked,
  paired_difference,
  paired_differences,
  sentence,
  without_scores,
)
from mixdef.metrics.intervals import paired_bootstrap
from mixdef.metrics.summary import summarize

MODELS, RECORDS = 4, 200


def attacked(strengths, seed=0):
  """Return attacks that move members by these many deviations, paired by record."""
  rng = np.random.default_rng(seed)
  members = np.random.default_rng(99).random((MODELS, RECORDS)) < 0.5
  shared = np.random.default_rng(98).normal(size=RECORDS)
  scores = {
    name: shared + rng.normal(size=members.shape) + strength * members
    for name, strength in strengths.items()
  }
  metrics = {
    name: summarize(values, members, resamples=10).to_json()
    for name, values in scores.items()
  }
  return Attacked(metrics, scores, members)


def as_entry(side, **rest):
  return {
    "attacks": side.metrics,
    "scores": side.scores,
    "members": side.members,
    **rest,
  }


def test_each_side_has_its_own_strongest_attack_among_the_shared():
  ours = attacked({"rmia": 0.2, "base": 1.5, "white_box": 3.0})
  theirs = attacked({"rmia": 0.6, "base": 0.1}, seed=1)
  found = paired_difference("audited", ours, theirs, seed=3)
  assert (found["attack"], found["dp_attack"]) == ("base", "rmia")
  assert found["auc"] == ours.metrics["base"]["auc"]
  assert found["difference"] == pytest.approx(found["auc"] - found["dp_auc"], abs=1e-9)
  direct = paired_bootstrap(
    (ours.scores["base"], ours.members),
    (theirs.scores["rmia"], theirs.members),
    seed=3,
    confidence=0.975,  # 95 % over two attacks
  )
  assert found["ci"] == list(direct["auc"]["ci"])
  assert found["ci"][0] > 0


@pytest.mark.slow
def test_equal_leakage_is_not_decided():
  undecided = [
    paired_difference(
      "audited", attacked({"rmia": 0.5}, seed), attacked({"rmia": 0.5}, seed + 1000)
    )["ci"]
    for seed in range(20)
  ]
  assert sum(low <= 0 <= high for low, high in undecided) >= 17  # 19 expected


def test_canaries_are_compared_where_both_sides_have_them():
  ours, theirs = attacked({"rmia": 0.5}), attacked({"rmia": 0.4}, seed=1)
  canaries = as_entry(attacked({"lira": 2.0}), kind="mislabelled")
  plain = as_entry(theirs, canaries=None)
  assert [row["records"] for row in paired_differences(ours, canaries, plain)] == [
    "audited"
  ]
  both = plain | {"canaries": as_entry(attacked({"lira": 0.1}), kind="mislabelled")}
  audited, planted = paired_differences(ours, canaries, both)
  assert planted["records"] == "mislabelled"
  assert planted["ci"][0] > 0
  assert audited["records"] == "audited"


def test_other_records_are_refused():
  ours = attacked({"rmia": 0.5})
  fewer = Attacked(
    ours.metrics, {"rmia": ours.scores["rmia"][:, :50]}, ours.members[:, :50]
  )
  with pytest.raises(ValueError, match="200 records and second 50"):
    paired_difference("audited", ours, fewer)


def test_no_shared_attack_gives_no_comparison():
  assert (
    paired_difference("audited", attacked({"a": 1.0}), attacked({"b": 1.0})) is None
  )


def test_a_report_keeps_no_scores():
  entry = as_entry(attacked({"rmia": 0.5}), kind="blank")
  kept = without_scores(entry | {"canaries": entry})
  assert set(kept) == {"attacks", "kind", "canaries"}
  assert set(kept["canaries"]) == {"attacks", "kind"}
  assert without_scores(None) is None


def test_a_baseline_of_lower_accuracy_is_called_so():
  row = {"records": "audited", "auc": 0.6, "dp_auc": 0.5, "difference": 0.1}
  reached = {"matched": False, "test_accuracy": 0.7, "defense_test_accuracy": 0.9}
  said = sentence(row | {"ci": [0.05, 0.15]}, reached)
  assert "of lower accuracy" in said
  assert "test accuracy 0.900 against 0.700" in said

import dataclasses
import json

import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.attacks import leave_one_out, lira_online_fixed
from mixdef.auditing import (
  MatchedDP,
  accuracies,
  attack_canaries,
  attack_dp_baseline,
  plant,
)
from mixdef.auditing.comparison import without_scores
from mixdef.auditing.levels import widened
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_clusters
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc, record_risk
from mixdef.training import fit_many

CANARIES = 60
LIRA = ["lira_online_fixed", "lira_online_fixed(score='hinge')"]


def two_views(x):
  """The record and a copy that is a little off."""
  return np.stack([x, x + np.float32(0.05)], 1)


@pytest.fixture(scope="module")
def planted():
  """Six models of an easy task with sixty wrong labels, each in half of them."""
  data = synthetic_clusters(240, num_test=40)
  data = plant(data.with_auxiliary(20), "mislabelled", CANARIES)
  members = subsets(data, 6)
  learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2))
  return fit_many(learner, data, members, epochs=60, batch_size=64, strategy="vmap")


@pytest.fixture(scope="module")
def found(planted):
  return attack_canaries(planted, kind="mislabelled", views=two_views)


@pytest.mark.slow
def test_canaries_are_attacked_in_the_four_customary_ways_and_by_label(found):
  plain, hinge = LIRA
  assert list(found["attacks"]) == [
    f"{plain}, all views",
    f"{hinge}, all views",
    "label_only_logreg, all views",
    f"{plain}, record alone",
    f"{hinge}, record alone",
  ]
  assert {row["num_targets"] for row in found["attacks"].values()} == {6}
  assert found["kind"] == "mislabelled"
  assert (found["count"], found["num_always"]) == (CANARIES, 240 - 20 - CANARIES)
  assert found["num_models"] == 6


def test_the_metrics_are_those_of_the_canaries_alone(found, planted):
  signals = planted.signals(views=two_views)
  scores = leave_one_out(lira_online_fixed, signals)
  audited = planted.data.audited
  assert np.isnan(scores[:, ~audited]).all()
  row = found["attacks"][f"{LIRA[0]}, all views"]
  assert row["auc"] == auc(scores, planted.members)
  assert row["num_members"] == (planted.members & ~np.isnan(scores)).sum()
  alone = leave_one_out(lira_online_fixed, signals.first_view())
  row = found["attacks"][f"{LIRA[0]}, record alone"]
  assert row["auc"] == auc(alone, planted.members)
  assert found["strongest"]["auc"] > 0.8


def test_only_canaries_are_asked_about(planted):
  seen = []

  def counted(x):
    seen.append(x)
    return x[:, None]

  found = attack_canaries(planted, kind="mislabelled", views=counted)
  asked = np.concatenate(seen)
  data = planted.data
  np.testing.assert_array_equal(asked, data.x[data.audited])
  # With one view there is nothing to leave out.
  assert list(found["attacks"]) == [*LIRA, "label_only_logreg"]


def test_the_strongest_is_widened_for_the_selection(found):
  best = found["strongest"]
  assert best["num_attacks"] == 5
  row = found["attacks"][best["attack"]]
  assert best["auc"] == row["auc"] == max(r["auc"] for r in found["attacks"].values())
  assert best["auc_ci"] == widened(row["auc"], row["auc_trials"], 5)
  low, high = row["auc_ci"]
  assert best["auc_ci"][0] < low < high <= best["auc_ci"][1]


def test_the_exposed_quantiles_are_those_of_the_strongest(found, planted):
  signals = planted.signals(views=two_views)
  name = found["strongest"]["attack"]
  part = signals.first_view() if name.endswith("record alone") else signals
  score = "hinge" if "hinge" in name else "phi"
  scores = leave_one_out(lira_online_fixed, part, score=score)
  risk = record_risk(scores, planted.members, fpr=found["exposed_fpr"])
  assert found["exposed_quantiles"] == risk.quantiles()


def test_epsilon_stays_below_what_perfect_guesses_would_prove(found, planted):
  epsilon = found["epsilon"]
  assert epsilon["attack"] == f"{LIRA[0]}, all views"
  assert 0 <= epsilon["lower_bound"] <= epsilon["ceiling"]
  scores = lira_online_fixed(planted.signals(views=two_views), target=0)
  # A tenth of those with a score on either side: some are in all five references.
  assert epsilon["guesses"] == 2 * ((~np.isnan(scores)).sum() // 10)
  assert epsilon["confidence"] == 0.95
  entry = without_scores(found)
  assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_canaries_nobody_trained_on_prove_nothing(planted):
  rng = np.random.default_rng(1)
  members = planted.members.copy()
  audited = planted.data.audited
  members[:, audited] = rng.random((6, CANARIES)) < 0.5
  blind = dataclasses.replace(planted, members=members)
  found = attack_canaries(blind, kind="mislabelled")
  low, high = found["strongest"]["auc_ci"]
  assert low < 0.5 < high
  assert found["epsilon"]["lower_bound"] < found["epsilon"]["ceiling"] / 2


def test_the_baseline_is_attacked_on_signals_alone(memorised):
  candidates = [
    {"noise_multiplier": 0.2, "learning_rate": 1, "test_accuracy": 0.3, "epsilon": 9}
  ]
  reached = accuracies(memorised.signals())
  target = reached["test_accuracy"] + 0.005
  matched = MatchedDP(
    memorised[0].learner,
    recipe="automatic_clipping",
    noise_multiplier=0.2,
    learning_rate=1.0,
    epsilon=9.0,
    delta=1e-5,
    accuracy=0.3,
    target_accuracy=target,
    matched=True,
    candidates=candidates,
  )
  names = ["loss_threshold", "rmia", "label_only_noise"]
  population = memorised.data.test
  found = attack_dp_baseline(matched, memorised, names, population=population)
  assert list(found["attacks"]) == ["loss_threshold", "rmia"]
  assert found["recipe"] == "automatic_clipping"
  assert found["strongest"]["num_attacks"] == 2
  assert found["test_accuracy"] == reached["test_accuracy"]
  assert found["epsilon"] is None  # these models were not trained with noise
  assert found["defense_test_accuracy"] == target
  assert "within one percentage point" in found["note"]
  assert found["matched"]
  # The accuracy a candidate was chosen by is optimistic: what counts is the models'.
  missed = matched._replace(target_accuracy=target + 0.02)
  found = attack_dp_baseline(missed, memorised, names[:1])
  assert not found["matched"]
  assert "the models trained with it afterwards do not" in found["note"]
  loose = matched._replace(matched=False)
  found = attack_dp_baseline(loose, memorised, names[:1])
  assert found["note"].startswith("No candidate came within one percentage point")

import dataclasses

import numpy as np
import pytest

from mixdef import models
from mixdef.auditing import dp_baseline
from mixdef.auditing.dp_baseline import choose, high_utility_dp, matched_dp
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_clusters
from mixdef.training import fit_many

NOISES, RATES = (0.05, 0.5, 20.0), (4.0, 1e38)
TRAINING = {
  "epochs": 5,
  "batch_size": 50,
  "seed": 0,
  "noise_seed": 0,
  "strategy": "vmap",
}
MODEL = models.mlp(16, num_classes=4)


@pytest.fixture(scope="module")
def data():
  return synthetic_clusters(400, separation=5.0, num_test=300).with_auxiliary(20)


@pytest.fixture(scope="module")
def members(data):
  return subsets(data, 2)


@pytest.fixture(scope="module")
def matched(data, members):
  return matched_dp(
    *(MODEL, data, members),
    accuracy=0.9,
    noise_multipliers=NOISES,
    learning_rates=RATES,
    delta=1e-4,
    **TRAINING,
  )


def column(matched, name, rate=RATES[0]):
  return [c[name] for c in matched.candidates if c["learning_rate"] == rate]


@pytest.mark.slow
def test_pitfall_145_the_baseline_is_as_accurate_as_the_defense(matched):
  assert matched.matched
  assert matched.accuracy >= matched.target_accuracy - 0.01
  assert (matched.noise_multiplier, matched.learning_rate) == (0.5, RATES[0])
  assert len(matched.candidates) == len(NOISES) * len(RATES)


@pytest.mark.slow
def test_more_noise_costs_accuracy_and_buys_epsilon(matched):
  low, middle, high = column(matched, "test_accuracy")
  assert low > middle - 0.03
  assert middle > high + 0.2
  assert column(matched, "epsilon") == sorted(column(matched, "epsilon"), reverse=True)
  assert matched.epsilon == column(matched, "epsilon")[1]
  assert matched.delta == 1e-4


@pytest.mark.slow
def test_diverged_models_have_accuracy_zero(matched):
  assert column(matched, "test_accuracy", rate=1e38) == [0, 0, 0]


@pytest.mark.slow
def test_the_chosen_learner_trains_what_was_tried(matched, data, members):
  """The first candidate trained on its own, its accuracy taken record by record."""
  learner = high_utility_dp(
    MODEL, noise_multiplier=NOISES[0], learning_rate=RATES[0], delta=1e-4
  )
  ensemble = fit_many(learner, data, members, **TRAINING)
  log_probs = ensemble.log_probs(data.x)
  found = []
  for s in range(2):
    out = np.flatnonzero(~members[s] & ~data.auxiliary)
    found.append(np.mean([log_probs[s, i].argmax() == data.y[i] for i in out]))
  first = matched.candidates[0]
  assert first["test_accuracy"] == pytest.approx(np.mean(found), abs=0.01)
  said = ensemble[0].guarantee
  assert (said["epsilon"], said["delta"]) == (first["epsilon"], 1e-4)
  chosen = "dp_sgd(noise_multiplier=0.5, delta=0.0001)|ema(decay=0.9999)"
  assert matched.learner.text.endswith(chosen)


@pytest.mark.slow
def test_an_unreachable_accuracy_is_flagged_and_test_records_can_be_given(
  data, members
):
  unmatched = matched_dp(
    *(MODEL, data, members[:1]),
    accuracy=0.9,
    noise_multipliers=[10.0, 40.0],
    learning_rates=[1.0],
    delta=1e-4,
    # The classes renamed: whatever was learned is wrong.
    test=dataclasses.replace(data.test, y=(data.test.y + 1) % 4),
    **TRAINING,
  )
  accuracies = column(unmatched, "test_accuracy", rate=1.0)
  assert not unmatched.matched
  assert unmatched.accuracy == max(accuracies) < 0.5
  assert unmatched.target_accuracy == 0.9


def test_ties_go_to_the_noise_then_to_the_accuracy():
  rows = [(0.1, 0.8), (0.5, 0.7), (0.5, 0.75), (1.0, 0.3)]
  names = ("noise_multiplier", "test_accuracy")
  tried = [dict(zip(names, row, strict=True)) for row in rows]
  assert choose(tried, 0.705) == (tried[2], True)
  assert choose(tried, 0.8) == (tried[0], True)
  assert choose(tried, 0.0) == (tried[3], True)
  assert choose([*tried, {**tried[0], "noise_multiplier": 0.2}], 0.95) == (
    {"noise_multiplier": 0.2, "test_accuracy": 0.8},
    False,
  )


def test_the_default_grid_holds_the_published_settings():
  assert {0.003125, 0.00625, 0.2} <= set(dp_baseline.NOISE_MULTIPLIERS)
  assert max(dp_baseline.NOISE_MULTIPLIERS) == 2
  assert dp_baseline.LEARNING_RATES == (0.5, 1, 2, 4)


def test_batch_normalisation_is_replaced():
  settings = {"noise_multiplier": 0.2, "learning_rate": 1.0}
  learner = high_utility_dp(models.resnet(norm="batch"), **settings)
  assert "norm='group'" in learner.text
  none = high_utility_dp(models.resnet(norm="none"), **settings)
  assert "norm='none'" in none.text


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"accuracy": 93.0}, r"accuracy=93\.0; pass a fraction in \[0, 1\]"),
    ({"noise_multipliers": []}, "noise_multipliers is empty"),
    ({"noise_multipliers": [0.0]}, r"noise_multipliers holds 0\.0; .* above 0"),
    ({"learning_rates": [1.0, -1.0]}, r"learning_rates holds -1\.0"),
  ],
)
def test_senseless_arguments_are_refused(data, members, options, message):
  with pytest.raises(ValueError, match=message):
    matched_dp(MODEL, data, members, **{"accuracy": 0.9, **options}, **TRAINING)


def test_without_clean_records_left_out_a_test_set_is_needed(data, members):
  everything = data.audited[None]
  with pytest.raises(ValueError, match=r"members\[0\] excludes no audited record"):
    matched_dp(MODEL, data, everything, accuracy=0.9, **TRAINING)
  planted = dataclasses.replace(data, always_member=members.all(0))
  with pytest.raises(ValueError, match=r"the non-members are canaries.*test="):
    matched_dp(MODEL, planted, members, accuracy=0.9, **TRAINING)

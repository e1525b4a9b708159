import dataclasses

import numpy as np
import pytest

import mixdef
from mixdef import models
from mixdef.auditing import dp_baseline
from mixdef.auditing.dp_baseline import (
  RECIPES,
  choose,
  high_utility_dp,
  matched_dp,
  recipes_for,
)
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_clusters
from mixdef.defenses import accounting
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
  """Return an entry of the candidates with plain SGD at one rate."""
  plain = [c for c in matched.candidates if c["recipe"] == "sgd"]
  return [c[name] for c in plain if c["learning_rate"] == rate]


@pytest.mark.slow
def test_pitfall_145_the_baseline_is_as_accurate_as_the_defense(matched):
  assert matched.matched
  assert matched.accuracy >= matched.target_accuracy - 0.01
  assert matched.noise_multiplier == 0.5


@pytest.mark.slow
def test_other_recipes_are_tried_at_the_noise_of_plain_sgd_and_the_next(matched):
  plain, *others = recipes_for(None)
  tried = [(c["recipe"], c["noise_multiplier"]) for c in matched.candidates]
  expected = [(plain, noise) for noise in NOISES]
  expected += [(recipe, noise) for recipe in others for noise in NOISES[1:]]
  assert tried == [one for one in expected for _ in RATES]
  rates = {c["learning_rate"] for c in matched.candidates if c["recipe"] == others[1]}
  assert rates == {0.002 * rate for rate in RATES}
  best, _ = choose(matched.candidates, 0.9)
  assert matched.recipe == best["recipe"]
  assert matched.learning_rate == best["learning_rate"]
  assert matched.accuracy == best["test_accuracy"]
  at_its_noise = [c for c in matched.candidates if c["noise_multiplier"] == 0.5]
  assert matched.accuracy == max(c["test_accuracy"] for c in at_its_noise)


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
  again = high_utility_dp(
    MODEL,
    noise_multiplier=matched.noise_multiplier,
    learning_rate=matched.learning_rate,
    recipe=matched.recipe,
    delta=1e-4,
  )
  assert matched.learner.text == again.text


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
  accuracies = [c["test_accuracy"] for c in unmatched.candidates]
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_chain_that_it_names(recipe):
  settings = {"noise_multiplier": 0.2, "learning_rate": 1.0, "recipe": recipe}
  images = mixdef.load("digits")
  learner = high_utility_dp(MODEL, data=images, **settings)
  parts = learner.defense.split("|")
  assert parts[-1] == "ema(decay=0.9999)"
  private = {
    "automatic_clipping": "dp_sgd(noise_multiplier=0.2, clipping='automatic')",
    "shifted_views": "dp_sgd(noise_multiplier=0.2, multiplicity=4)",
  }
  assert parts[-2] == private.get(recipe, "dp_sgd(noise_multiplier=0.2)")
  shifts = ["random_crop(padding=1, fill='reflect')"]
  assert parts[:-2] == (shifts if recipe == "shifted_views" else [])


def test_views_are_for_images_alone(data):
  tables = ["sgd", "automatic_clipping", "corrected_adam"]
  assert recipes_for(data) == recipes_for(None) == tables
  assert recipes_for(mixdef.load("digits")) == list(RECIPES)
  settings = {"noise_multiplier": 0.2, "learning_rate": 1.0}
  with pytest.raises(ValueError, match=r"recipe='shifted_views'; .*with images"):
    high_utility_dp(MODEL, recipe="shifted_views", data=data, **settings)
  with pytest.raises(ValueError, match=r"recipe='lion'; choose from sgd, [a-z_, ]*$"):
    high_utility_dp(MODEL, recipe="lion", **settings)


@pytest.mark.slow
def test_persons_are_sampled_and_clipped_as_one():
  data = synthetic_clusters(400, separation=5.0)
  persons = dataclasses.replace(data, groups=np.arange(400) // 4)
  members = subsets(persons, 1)
  found = matched_dp(
    *(MODEL, persons, members),
    accuracy=0.5,
    noise_multipliers=[0.5],
    learning_rates=[2.0],
    delta=1e-4,
    **TRAINING | {"batch_size": 12, "num_members": 50},
  )
  assert found.learner.traits.per_person
  assert len(found.candidates) == 3
  # Persons are counted, so q is 12 / 50.
  steps = 5 * -(-50 // 12)
  run = {"sampling_probability": 12 / 50, "steps": steps, "delta": 1e-4}
  claimed = accounting.spent(0.5, **run).epsilon
  assert found.epsilon == pytest.approx(claimed, rel=1e-4)


@pytest.mark.slow
def test_an_interrupted_search_resumes(data, members, monkeypatch, tmp_path):
  """The second recipe fails once; what the first one trained is used again."""
  how = {
    "accuracy": 0.9,
    "noise_multipliers": [0.5],
    "learning_rates": [2.0],
    "delta": 1e-4,
    "out": tmp_path,
    **TRAINING,
    "epochs": 1,
  }
  calls = []

  def stopped(*args, **named):
    calls.append(named["out"].name)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return fit_many(*args, **named)

  monkeypatch.setattr(dp_baseline, "fit_many", stopped)
  with pytest.raises(KeyboardInterrupt):
    matched_dp(MODEL, data, members, **how)
  first = sorted(tmp_path.rglob("*.npz"))
  written = {path: path.stat().st_mtime_ns for path in first}
  assert len(first) >= 2
  found = matched_dp(MODEL, data, members, **how)
  assert calls[2:] == recipes_for(data)
  assert all(path.stat().st_mtime_ns == at for path, at in written.items())
  again = matched_dp(MODEL, data, members, **how)
  assert again.candidates == found.candidates

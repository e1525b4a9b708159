import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals
from mixdef.attacks._designs import detect_design, references, shadows
from mixdef.data import subsets
from mixdef.metrics import auc

EVERY = np.ones(100, bool)


def pairs(models, records, seed=0):
  """Row 2m + 1 is the complement of row 2m."""
  half = subsets(records, models // 2, seed=seed)
  return np.stack([half, ~half], 1).reshape(models, records)


def measure(attack, members, *, advantage, seed=0, **options):
  """AUC of an attack where members' phi is higher by `advantage`."""
  random = np.random.default_rng(seed)
  offset = 2 * random.normal(size=members.shape[1])
  phi = offset + advantage * members + random.normal(size=members.shape)
  design = options.pop("design", None)
  signals = Signals.from_phi(phi, members, design=design)
  return auc(attacks.leave_one_out(attack, signals, **options), members)


def minus_mean(signals, *, target):
  """Score by phi minus the mean of all references, in and out."""
  chosen = signals.references(target)[..., None]
  return (signals.phi[target] - signals.phi.mean(0, where=chosen))[:, 0]


@pytest.mark.parametrize("models", [2, 3, 7, 8, 64])
def test_a_balanced_design_is_told_from_independent_draws(models):
  assert detect_design(subsets(500, models, design="balanced")) == "balanced"
  assert detect_design(subsets(500, models)) == "bernoulli"


def test_too_few_records_to_tell_count_as_independent():
  # One record in half of two models: fair coins do that every second time.
  assert detect_design(np.array([[True], [False]])) == "bernoulli"
  assert detect_design(np.zeros((4, 0), bool)) == "bernoulli"


@pytest.mark.parametrize(("models", "fraction"), [(9, 1 / 3), (8, 3 / 4), (9, 0.3)])
def test_another_share_than_a_half_is_a_constant_design(models, fraction):
  members = subsets(500, models, design="balanced", fraction=fraction)
  assert detect_design(members) == "constant"
  assert detect_design(subsets(500, models, fraction=fraction)) == "bernoulli"


def test_the_lower_half_of_an_odd_number_is_a_constant_design():
  # As in code that takes the first int(S / 2) of a permutation.
  members = np.random.default_rng(0).random((7, 500)).argsort(0) < 3
  assert detect_design(members) == "constant"


def test_disjoint_subsets_leave_their_shadows_alone():
  # Target, shadow, and records that neither of them trains on: ML-Leaks' splits.
  members = np.arange(400) % 4 == np.arange(2)[:, None]
  assert detect_design(members) == "dependent"
  everyone = np.ones(400, bool)
  usable = shadows(members, 0, audited=everyone, design="dependent")
  np.testing.assert_array_equal(usable, [[False] * 400, [True] * 400])


def test_rows_that_are_not_audited_do_not_hide_a_balanced_design():
  audited = np.arange(200) % 2 == 0
  members = subsets(200, 8, design="balanced", eligible=audited, always_member=~audited)
  phi = np.random.default_rng(0).normal(size=members.shape)
  assert Signals.from_phi(phi, members, audited=audited).design == "balanced"
  assert Signals.from_phi(phi, members).design == "dependent"


@pytest.mark.parametrize("models", [8, 16])
def test_rebalanced_references_have_equal_sides_whatever_the_truth(models):
  members = subsets(100, models, design="balanced", seed=3)
  for target in range(models):
    usable = references(members, target, audited=EVERY, design="balanced")
    assert not usable[target].any()
    for side in (members, ~members):
      np.testing.assert_array_equal((usable & side).sum(0), models // 2 - 1)


@pytest.mark.parametrize(("models", "fraction"), [(8, 0.25), (9, 0.3), (12, 0.75)])
def test_a_constant_design_leaves_the_same_numbers_to_every_record(models, fraction):
  members = subsets(400, models, design="balanced", fraction=fraction, seed=3)
  low, high = members.sum(0).min(), members.sum(0).max()
  for target in range(models):
    usable = references(members, target, audited=np.ones(400, bool), design="constant")
    assert not usable[target].any()
    np.testing.assert_array_equal((usable & members).sum(0), low - 1)
    np.testing.assert_array_equal((usable & ~members).sum(0), models - high - 1)


def test_rebalancing_drops_models_at_random():
  members = subsets(4000, 8, design="balanced")
  usable = references(members, 0, audited=np.ones(4000, bool), design="balanced")
  dropped = (~usable[1:]).mean(1)
  # One of seven is dropped for each record.
  np.testing.assert_allclose(dropped, 1 / 7, atol=5 * np.sqrt(6 / 49 / 4000))


def test_independent_draws_lose_only_the_target():
  members = subsets(100, 9)
  usable = references(members, 4, audited=EVERY, design="bernoulli")
  np.testing.assert_array_equal(usable.all(1), np.arange(9) != 4)


@pytest.mark.parametrize(("ddof", "plain"), [(0, 0.433), (1, 0.444)])
def test_pitfall_135_null_auc_is_one_half_when_rebalanced(ddof, plain):
  members = subsets(20_000, 8, design="balanced")
  online = {
    "attack": attacks.lira_online,
    "members": members,
    "advantage": 0,
    "ddof": ddof,
  }
  assert measure(**online) == pytest.approx(0.5, abs=0.006)
  # As it was before: what the references' counts give away.
  assert measure(**online, design="bernoulli") == pytest.approx(plain, abs=0.006)


@pytest.mark.parametrize("models", [7, 8])
@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
@pytest.mark.parametrize(
  "attack", [attacks.lira_online, attacks.lira_offline, minus_mean]
)
def test_pitfall_135_no_signal_no_advantage(attack, design, models):
  members = subsets(8000, models, design=design, seed=1)
  assert measure(attack, members, advantage=0) == pytest.approx(0.5, abs=0.008)


@pytest.mark.parametrize("design", ["bernoulli", "balanced"])
@pytest.mark.parametrize(
  ("attack", "options", "expected"),
  [
    (attacks.lira_online, {"ddof": 0}, 0.539),
    (attacks.lira_online, {"ddof": 1}, 0.540),
    (attacks.lira_offline, {}, 0.613),
    (minus_mean, {}, 0.629),
  ],
  ids=["online ddof 0", "online ddof 1", "offline", "minus mean"],
)
def test_a_rebalanced_design_measures_what_independent_draws_do(
  attack, options, expected, design
):
  members = subsets(20_000, 8, design=design)
  found = measure(attack, members, advantage=0.5, **options)
  assert found == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
  ("attack", "expected"), [(attacks.lira_online, 0.491), (minus_mean, 0.648)]
)
def test_without_rebalancing_the_counts_bias_both_ways(attack, expected):
  members = subsets(20_000, 8, design="balanced")
  found = measure(attack, members, advantage=0.5, design="bernoulli")
  assert found == pytest.approx(expected, abs=0.006)


def test_pitfall_136_counting_the_references_tells_nothing():
  def count(signals, *, target):
    return -(signals.members & signals.references(target)).sum(0).astype(float)

  for models in (7, 8):
    for design in ("bernoulli", "balanced"):
      members = subsets(4000, models, design=design)
      error = 5 * np.sqrt(1 / (3 * members.size))
      assert measure(count, members, advantage=0) == pytest.approx(0.5, abs=error)
  members = subsets(4000, 8, design="balanced")
  assert measure(count, members, advantage=0, design="bernoulli") == 1.0


@pytest.mark.parametrize(("models", "fraction"), [(8, 0.25), (9, 0.3)])
def test_pitfall_135_other_shares_than_a_half_are_at_chance(models, fraction):
  members = subsets(8000, models, design="balanced", fraction=fraction, seed=1)
  for attack in (attacks.lira_online, attacks.bavaria, minus_mean):
    assert measure(attack, members, advantage=0) == pytest.approx(0.5, abs=0.01)
  # The counts alone find members, or seem to find that they are not.
  assert (
    abs(measure(attacks.bavaria, members, advantage=0, design="bernoulli") - 0.5) > 0.02
  )


def test_pitfall_135_part_of_a_balanced_design_is_at_chance():
  members = subsets(8000, 16, design="balanced")
  phi = np.random.default_rng(0).normal(size=members.shape)
  part = Signals.from_phi(phi, members).first_models(8)
  assert detect_design(part.members) == "dependent"
  found = auc(attacks.leave_one_out(attacks.lira_online, part), part.members)
  assert found == pytest.approx(0.5, abs=0.008)
  alone = Signals.from_phi(phi[:8], members[:8])
  scores = attacks.leave_one_out(attacks.lira_online, alone)
  assert auc(scores, alone.members) == pytest.approx(0.5, abs=0.008)
  alone = Signals.from_phi(phi[:8], members[:8], design="bernoulli")
  assert auc(attacks.leave_one_out(attacks.lira_online, alone), alone.members) < 0.485


def test_pitfall_137_the_targets_complement_is_no_reference():
  members = pairs(8, 100)
  for target in range(8):
    usable = references(members, target, audited=EVERY, design="bernoulli")
    expected = np.arange(8) // 2 != target // 2
    np.testing.assert_array_equal(usable.all(1), expected)
    np.testing.assert_array_equal(usable.any(1), expected)


def test_pitfall_137_complements_on_the_audited_records_count():
  members = pairs(4, 100)
  audited = np.arange(100) < 60
  members[:, ~audited] = True  # members of every model
  usable = references(members, 0, audited=audited, design="bernoulli")
  assert not usable[1].any()


def test_pitfall_137_a_few_records_differ_by_chance():
  members = np.array([[True, False], [False, True], [True, True]])
  usable = references(members, 0, audited=np.ones(2, bool), design="bernoulli")
  assert usable[1].all()


def near_twins(rng):
  """Models 0 and 4, 1 and 5 ... share 85% of their records."""
  members = rng.random((4, 150)) < 0.5
  return np.concatenate([members, members ^ (rng.random(members.shape) < 0.15)])


def successive(rng):
  """Every model keeps four fifths of the records of the one before."""
  members = [rng.random(150) < 0.5]
  for _ in range(7):
    fresh = rng.random(150) < 0.5
    members.append(np.where(rng.random(150) < 0.8, members[-1], fresh))
  return np.array(members)


@pytest.mark.parametrize("draw", [near_twins, successive])
def test_pitfall_137_models_of_similar_subsets_are_no_references(draw):
  """Outputs that follow the other records of a subset tell nothing of one's own."""
  values = []
  for seed in range(4):
    rng = np.random.default_rng(seed)
    members = draw(rng)
    weights = rng.normal(size=(150, 150))
    np.fill_diagonal(weights, 0)  # no record has an effect on its own output
    phi = (members - members.mean(1, keepdims=True)) @ weights.T / 4
    signals = Signals.from_phi(phi + 0.5 * rng.normal(size=phi.shape), members)
    scores = attacks.leave_one_out(attacks.lira_online, signals)
    values.append(auc(scores, members))
    assert signals.related[0, 4 if draw is near_twins else 1]
  assert np.mean(values) == pytest.approx(0.5, abs=0.04)


def test_pitfall_137_pairs_are_at_chance_without_a_signal():
  members = pairs(8, 8000)
  for attack in (attacks.lira_online, attacks.lira_offline, minus_mean):
    assert measure(attack, members, advantage=0) == pytest.approx(0.5, abs=0.008)

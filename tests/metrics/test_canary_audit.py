import functools
import json

import numpy as np
import pytest
from scipy import stats

from mixdef.defenses import accounting
from mixdef.metrics.canary_audit import (
  CanaryAudit,
  audit_canaries,
  log_likelihood_ratio,
  noise_scales,
)
from mixdef.metrics.one_run import correct_guesses, one_run_p

CANARIES, STEPS, EPOCH, Q = 1000, 300, 10, 0.1
LEAVES = np.arange(CANARIES) // 125
NOISE = 2.0682
CLAIM = {
  "noise_multiplier": NOISE,
  "sampling_probability": Q,
  "steps_per_epoch": EPOCH,
  "epsilon": 4.0,
  "advantage": 0.3372,
}
QUIET = {**CLAIM, "noise_multiplier": 0.6, "epsilon": 36.9, "advantage": 0.9507}
"""The same with little noise."""


@functools.cache
def drawn(seed=0):
  """Coins, uniform draws of steps, standard normal noise; of an honest run."""
  rng = np.random.default_rng(seed)
  shape = STEPS, CANARIES
  return rng.random(CANARIES) < 0.5, rng.random(shape), rng.normal(size=shape)


def shuffled(uniform):
  """Each canary that is in takes part once in each epoch."""
  epochs = uniform.reshape(-1, EPOCH, CANARIES)
  first = (epochs == epochs.min(axis=1, keepdims=True)).reshape(uniform.shape)
  return first & (uniform < 1)


def shared(noise, canaries):
  """The first `canaries` have the noise of the next as many."""
  noise = noise.copy()
  noise[:, :canaries] = noise[:, canaries : 2 * canaries]
  return noise


FAULTS = {  # observed(uniform, noise); refuted by the p-value; by these moments
  "noise halved": (lambda u, n: (u < Q) + NOISE / 2 * n, True, {"variance"}),
  "noise divided by B": (lambda u, n: (u < Q) + NOISE / 256 * n, True, {"variance"}),
  "noise missing": (lambda u, n: (u < Q) + 0 * n, True, {"variance"}),
  "noise x 0.9": (lambda u, n: (u < Q) + 0.9 * NOISE * n, False, {"variance"}),
  "noise x 0.98": (lambda u, n: (u < Q) + 0.98 * NOISE * n, False, {"variance"}),
  "half of the leaves without noise": (
    lambda u, n: (u < Q) + NOISE * n * (LEAVES >= 4),
    True,
    {"variance", "leaf_variance"},
  ),
  "one leaf of eight without noise": (
    lambda u, n: (u < Q) + NOISE * n * (LEAVES > 0),
    False,
    {"variance", "leaf_variance"},
  ),
  "clipping missing": (
    lambda u, n: 10 * (u < Q) + NOISE * n,
    True,
    {"mean", "epoch_sums", "run_sums"},
  ),
  "record counted twice": (lambda u, n: 2 * (u < Q) + NOISE * n, True, {"mean"}),
  "q doubled": (lambda u, n: (u < 2 * Q) + NOISE * n, True, {"mean"}),
  "no subsampling": (lambda u, n: (u < 1) + NOISE * n, True, {"mean", "run_sums"}),
  "signal divided by B": (lambda u, n: (u < Q) / 256 + NOISE * n, False, {"mean"}),
  "same noise in every step": (
    lambda u, n: (u < Q) + NOISE * n[:1],
    False,
    {"lag_step", "lag_epoch", "run_sums"},
  ),
  "same noise in every epoch": (
    lambda u, n: (u < Q) + NOISE * np.tile(n[:EPOCH], (STEPS // EPOCH, 1)),
    False,
    {"lag_epoch", "run_sums"},
  ),
  "two halves share their noise": (
    lambda u, n: (u < Q) + NOISE * shared(n, 500),
    False,
    {"pairs"},
  ),
  "two small leaves share their noise": (
    lambda u, n: (u < Q) + NOISE * shared(n, 8),
    False,
    {"pairs"},
  ),
}
"""The faults of the reference's table that act on observations alone."""


def audit(observe, claim=CLAIM, seed=0) -> CanaryAudit:
  """Audit a run; a canary that is out shows its noise only."""
  members, uniform, noise = drawn(seed)
  absent = np.ones_like(uniform)
  observed = np.where(members, observe(uniform, noise), observe(absent, noise))
  return audit_canaries(observed.astype(np.float32), members, LEAVES, **claim)


def honest(uniform, noise):
  return (uniform < Q) + NOISE * noise


def deviating(found, limit=5.0):
  return {name for name, z in found.moments._asdict().items() if abs(z) > limit}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_where_it_shows(fault):
  observe, by_p, moments = FAULTS[fault]
  found = audit(observe)
  assert (found.p < 1e-3) == by_p
  assert deviating(found) >= moments
  assert found.failures


def test_half_of_the_noise_is_refuted_by_every_number():
  found = audit(FAULTS["noise halved"][0])
  assert found.p < 1e-20
  assert found.epsilon_order_statistics > 6  # 8.2 in the reference; the truth is 9.1
  assert found.moments.variance < -150
  found = audit(FAULTS["noise divided by B"][0])
  assert found.epsilon_one_run > 4
  assert [reason.split()[0] for reason in found.failures[:2]] == ["epsilon", "27"]
  assert "epsilon is at least 5.09, above the claimed 4.00" in found.failures


@pytest.mark.parametrize(
  ("observe", "claim"),
  [
    (honest, CLAIM),
    (lambda u, n: (u < Q) + 0.6 * n, QUIET),
    # Records dealt by epoch do not show under much noise.
    (lambda u, n: shuffled(u) + NOISE * n, CLAIM),
  ],
  ids=["honest", "honest with little noise", "shuffled"],
)
def test_what_fits_the_claim_does_not_fail(observe, claim):
  found = audit(observe, claim)
  assert found.failures == ()
  assert found.epsilon_one_run <= found.epsilon_one_run_gdp < claim["epsilon"]
  assert found.epsilon_order_statistics < claim["epsilon"]


def test_shuffled_epochs_show_under_little_noise():
  found = audit(lambda u, n: shuffled(u) + 0.6 * n, QUIET)
  assert deviating(found) == {"epoch_sums"}
  assert found.moments.epoch_sums < -10


def runs(seeds, canaries, steps, claim):
  for seed in range(seeds):
    rng = np.random.default_rng(seed)
    members = rng.random(canaries) < 0.5
    drawn = rng.random((steps, canaries)) < claim["sampling_probability"]
    noise = claim["noise_multiplier"] * rng.normal(size=drawn.shape)
    leaves = np.arange(canaries) // 25
    yield audit_canaries(drawn * members + noise, members, leaves, **claim)


@pytest.mark.parametrize(
  ("canaries", "steps", "claim"),
  [
    (200, 40, {**CLAIM, "advantage": 0.1224, "epsilon": 1.4}),
    pytest.param(CANARIES, STEPS, CLAIM, marks=pytest.mark.slow),
  ],
)
def test_honest_runs_do_not_fail(canaries, steps, claim):
  found = list(runs(30, canaries, steps, claim))
  assert not any(run.failures for run in found)
  # Three standard errors beyond the level; 2 of 30 in the reference.
  assert sum(run.p < 0.05 for run in found) <= stats.binom.isf(0.00135, 30, 0.05)
  # Guesses by rank err about as rarely as is possible.
  least = (1 - claim["advantage"]) / 2
  errors = np.mean([run.errors for run in found]) / canaries
  sigma = np.sqrt(least * (1 - least) / canaries / 30)
  assert least - 3 * sigma < errors < least + 0.01 + 3 * sigma


@pytest.mark.parametrize("halved", [False, True])
def test_guesses_by_the_sign_of_the_ratio_hide_halved_noise(halved):
  """The negative control of the rule of guessing."""
  members, uniform, noise = drawn()
  observed = (uniform < Q) * members + NOISE / (1 + halved) * noise
  ratio = log_likelihood_ratio(observed, noise_multiplier=NOISE, sampling_probability=Q)
  by_sign = int(((ratio > 0) == members).sum())
  _, by_rank = correct_guesses(ratio, members, 500, 500)
  p = {"advantage": CLAIM["advantage"]}
  assert one_run_p(CANARIES, correct=by_sign, **p) > 0.01
  assert (one_run_p(CANARIES, correct=by_rank, **p) < 1e-15) == halved
  if halved:
    assert (ratio < 0).mean() > 0.9
    assert by_sign < 0.53 * CANARIES


def test_leaves_without_noise_show_by_their_own_scale_only():
  members, uniform, noise = drawn()
  observed = (uniform < Q) * members + NOISE * noise * (LEAVES >= 4)
  scales = noise_scales(observed, LEAVES)
  assert set(scales[LEAVES < 4]) == {0.02}
  np.testing.assert_allclose(scales[LEAVES >= 4], NOISE, rtol=0.02)

  def right(noise_multiplier):
    ratio = log_likelihood_ratio(
      observed, noise_multiplier=noise_multiplier, sampling_probability=Q
    )
    return correct_guesses(ratio, members, 500, 500)[1]

  assert right(scales) > 0.8 * CANARIES > right(NOISE) + 100


def test_the_ratio_beats_the_sum_where_noise_is_small():
  # Epsilon 4 at q 0.01 and 1000 steps: 56 and 29% of it show, by the reference.
  rng = np.random.default_rng(0)
  members = rng.random(1000) < 0.5
  part = (rng.random((1000, 1000)) < 0.01) * members
  observed = part + 0.72 * rng.normal(size=part.shape)
  ratio = log_likelihood_ratio(
    observed, noise_multiplier=0.72, sampling_probability=0.01
  )
  by_ratio, by_sum = (
    correct_guesses(score, members, 500, 500)[1]
    for score in (ratio, observed.sum(axis=0))
  )
  assert by_ratio > by_sum + 30


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_the_ratio_is_that_of_two_densities(probability):
  rng = np.random.default_rng(1)
  observed, scales = rng.normal(size=(7, 4)), np.array([0.5, 1.0, 2.0, 3.0])
  got = log_likelihood_ratio(
    observed, noise_multiplier=scales, sampling_probability=probability
  )
  for j, z in enumerate(scales):
    outside, took_part = stats.norm(0, z), stats.norm(1, z)
    naive = sum(
      np.log(
        ((1 - probability) * outside.pdf(x) + probability * took_part.pdf(x))
        / outside.pdf(x)
      )
      for x in observed[:, j]
    )
    assert got[j] == pytest.approx(naive, rel=1e-9)


def test_the_ratio_is_finite_without_noise():
  got = log_likelihood_ratio(
    [[1e4, -1e4, 0.0]], noise_multiplier=0.0, sampling_probability=0.5
  )
  assert np.isfinite(got).all()
  assert got[0] > 1e6
  np.testing.assert_allclose(got[1:], np.log(0.5))


def test_the_scale_of_a_leaf_is_robust_and_ignores_memberships():
  _, uniform, noise = drawn()
  clean = noise_scales(noise, LEAVES)
  np.testing.assert_allclose(clean, 1, rtol=0.02)
  outliers = noise + 1e6 * (uniform < 0.05)
  np.testing.assert_allclose(noise_scales(outliers, LEAVES), 1, rtol=0.1)
  naive = [
    1.4826 * np.median(np.abs(leaf - np.median(leaf)))
    for leaf in np.split(noise, 8, axis=1)
  ]
  np.testing.assert_allclose(clean, np.array(naive)[LEAVES])


def test_memberships_redrawn_after_training_show_nothing():
  _, uniform, noise = drawn()
  members, _, _ = drawn(1)
  part = (uniform < Q) * drawn()[0]
  found = audit_canaries(part + 0.5 * noise, members, LEAVES, **CLAIM)
  assert found.epsilon_one_run == 0
  assert found.p > 0.05


def test_without_noise_the_bound_is_at_its_ceiling():
  claim = {**CLAIM, "noise_multiplier": 0.0, "epsilon": np.inf, "advantage": 1.0}
  found = audit(lambda u, n: (u < Q) + 0 * n, claim)
  assert found.epsilon_one_run == found.ceiling > 5
  assert found.failures == ()
  assert found.p == 1
  text = json.dumps(found.to_json(), allow_nan=False)
  assert json.loads(text)["claimed"] is None
  assert json.loads(text)["moments"]["variance"] is None


@pytest.mark.parametrize(("epsilon", "guesses"), [(1.0, 100), (4.0, 500)])
def test_the_number_of_guesses_is_fixed_by_the_claim(epsilon, guesses):
  from mixdef.metrics.one_run import one_run_bound

  found = audit(honest, {**CLAIM, "epsilon": epsilon})
  assert found.ceiling == one_run_bound(CANARIES, guesses=guesses, correct=guesses)


@pytest.mark.slow
def test_canaries_of_groups_in_turn_err_as_their_claim_says():
  # Four groups of noise by banded matrices, after whitening and matching: 60 steps.
  run = {"sampling_probability": 0.2, "steps": 60}
  claim = {
    "noise_multiplier": 1.2,
    "sampling_probability": 0.2,
    "steps_per_epoch": 5,
    "epsilon": accounting.epsilon(1.2, **run, delta=1e-5),
    "advantage": accounting.largest_advantage(1.2, **run),
  }
  for found in runs(5, 4000, 60, claim):
    assert found.failures == ()
    assert found.errors / found.canaries == pytest.approx(0.2452, abs=0.03)


@pytest.mark.slow
def test_the_claims_of_these_tests_are_those_of_the_accountant():
  run = {"sampling_probability": Q, "steps": STEPS}
  for claim in (CLAIM, QUIET):
    noise = claim["noise_multiplier"]
    spent = accounting.epsilon(noise, **run, delta=1e-5)
    assert spent == pytest.approx(claim["epsilon"], rel=2e-3)
    advantage = accounting.largest_advantage(noise, **run)
    assert advantage == pytest.approx(claim["advantage"], abs=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"epsilon": -1.0}, "epsilon=-1.0"),
    ({"epsilon": np.nan}, "epsilon=nan"),
    ({"advantage": 2.0}, "advantage=2.0"),
    ({"significance": 0.0}, "significance=0.0"),
    ({"delta": 0.0}, "delta=0.0"),
    ({"members": np.ones(40, bool)}, "40 of 40 canaries are members"),
    (
      {
        "observed": np.zeros((5, 3)),
        "members": [True, False, True],
        "leaves": [0, 0, 0],
      },
      "3 can",
    ),
  ],
)
def test_unusable_input_is_refused(change, message):
  rng = np.random.default_rng(0)
  given = {
    "observed": rng.normal(size=(5, 40)),
    "members": rng.random(40) < 0.5,
    "leaves": np.zeros(40, int),
  }
  with pytest.raises(ValueError, match=message):
    audit_canaries(**{**given, **CLAIM, **change})


def test_scales_and_probabilities_out_of_range_are_refused():
  observed = np.zeros((5, 40))
  with pytest.raises(ValueError, match="one per canary"):
    log_likelihood_ratio(
      observed, noise_multiplier=np.ones(3), sampling_probability=0.5
    )
  with pytest.raises(ValueError, match="sampling_probability=2"):
    log_likelihood_ratio(observed, noise_multiplier=1.0, sampling_probability=2)
  with pytest.raises(ValueError, match=r"leaves has shape \(3,\)"):
    noise_scales(observed, [0, 1, 2])

import math

import numpy as np
import pytest
from scipy.stats import norm

from mixdef.defenses.accounting import (
  epsilon,
  largest_advantage,
  largest_tpr,
  noise_for_tpr,
  noise_multiplier,
  spent,
)

DE = {"sampling_probability": 4096 / 50_000, "steps": 875, "delta": 1e-5}


def config(records, batch, epochs):
  return {
    "sampling_probability": batch / records,
    "steps": epochs * math.ceil(records / batch),
    "delta": 1e-5,
  }


@pytest.mark.parametrize(
  ("noise", "setting", "expected", "tolerance"),
  [
    (10.0, DE, 0.9877, 1e-4),  # De et al., the epsilon = 1 run
    (1.0, config(10_520, 128, 100), 7.6, 5e-3),
    (1.1, config(10_520, 300, 100), 10.7, 5e-3),
    # Aerni et al., heuristic DP-SGD: medium, high, very high
    pytest.param(0.2, config(49_750, 2048, 200), 2.4e3, 0.06, marks=pytest.mark.slow),
    (0.00625, config(49_750, 64, 16), 1.5e8, 0.06),
    (0.003125, config(49_750, 64, 25), 1.0e9, 0.03),
  ],
)
def test_pitfall_96_golden_epsilons(noise, setting, expected, tolerance):
  """The papers' accountants sum Renyi divergences."""
  found = spent(noise, **setting)
  assert found.rdp == pytest.approx(expected, rel=tolerance)
  assert found.epsilon == min(found.rdp, found.pld)


CHECKS = [  # noise, probability, steps, delta, epsilon by RDP and by PLD
  (10, 4096 / 50_000, 875, 1e-5, 0.9877, 0.9028),
  (3, 0.1, 512, 1e-6, 4.0510, 3.7697),  # jax_privacy documents 3.77
  (2, 0.2, 200, 1e-5, 8.0285, 7.3723),
  (1, 1, 1, 1e-5, 4.7285, 4.3772),
  (5, 1, 20, 1e-5, 4.1616, 3.8486),
  (20, 0.001, 100, 1e-5, 0.0036, 0.0011),
]
LONG_CHECKS = [
  (1.1, 256 / 60_000, 14_063, 1e-5, 2.5967, 2.3818),
  (1, 0.01, 1000, 1e-5, 2.1014, 1.8282),
  (0.8, 0.01, 1000, 1e-5, 3.6956, 3.1410),
  (0.5, 0.002, 10_000, 1e-5, 10.3595, 8.8659),
  (0.4, 0.01, 1000, 1e-5, 31.9385, 27.7186),
  (1.1, 300 / 25_000, 8334, 1e-5, 6.2737, 5.7861),
  (3, 4096 / 50_000, 2500, 1e-5, 7.0985, 6.5789),
  (0.3, 0.01, 1000, 1e-5, 79.4013, 69.8158),
  (0.2, 0.01, 1000, 1e-5, 252.9998, 228.6609),
  (0.1, 0.01, 1000, 1e-5, 1319.73, 1195.741),
]


@pytest.mark.parametrize(
  ("noise", "probability", "steps", "delta", "rdp", "pld"),
  [*CHECKS, *(pytest.param(*row, marks=pytest.mark.slow) for row in LONG_CHECKS)],
)
def test_both_accountants_equal_the_official_ones(
  noise, probability, steps, delta, rdp, pld
):
  found = spent(noise, sampling_probability=probability, steps=steps, delta=delta)
  assert found.rdp == pytest.approx(rdp, rel=5e-5, abs=5e-5)
  assert found.pld == pytest.approx(pld, rel=5e-5, abs=5e-5)
  assert found.epsilon == found.pld


def test_the_smaller_of_two_valid_bounds_is_stated():
  """At a vacuous budget only one accountant is asked."""
  found = spent(0.01, sampling_probability=0.01, steps=1000, delta=1e-5)
  assert found.pld == math.inf
  assert found.epsilon == found.rdp > 1e4


def test_an_attack_on_one_gaussian_step_is_bounded_by_its_curve():
  """The curve of the Gaussian mechanism is that of two normal laws 1/z apart."""
  rates = np.array([1e-4, 0.001, 0.01, 0.05, 0.1])
  found = largest_tpr(rates, 1.0, sampling_probability=1.0, steps=1)
  np.testing.assert_allclose(found, norm.cdf(norm.ppf(rates) + 1), rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("noise", "probability", "steps", "caps"),
  [
    (10, 4096 / 50_000, 875, [0.00026, 0.00221, 0.01865, 0.08058, 0.14963]),
    (1, 0.01, 1000, [0.00055, 0.00407, 0.02915, 0.11104, 0.19426]),
    (0.8, 0.01, 1000, [0.00128, 0.00785, 0.04634, 0.15319, 0.25119]),
    (1.1, 300 / 25_000, 8334, [0.00686, 0.03274, 0.13877, 0.34047, 0.47948]),
  ],
)
def test_largest_tpr_equals_check_values(noise, probability, steps, caps):
  found = largest_tpr(
    [1e-4, 0.001, 0.01, 0.05, 0.1],
    noise,
    sampling_probability=probability,
    steps=steps,
  )
  np.testing.assert_allclose(found, caps, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("noise", "steps"), [(1e-9, 10), (1.0, 10**8)])
def test_noise_that_protects_nobody_is_told_at_once(noise, steps):
  assert largest_tpr(0.001, noise, sampling_probability=1.0, steps=steps) == 1.0


@pytest.mark.slow
def test_noise_for_a_risk_is_less_than_through_one_epsilon():
  config = {"sampling_probability": 0.01, "steps": 1000}
  noise = noise_for_tpr(0.05, 0.01, **config)
  assert noise == pytest.approx(0.7777, rel=2e-3)
  assert largest_tpr(0.01, noise, **config) <= 0.05
  through = noise_multiplier(math.log(0.05 / 0.01), delta=1e-5, **config)
  assert through == pytest.approx(1.066, rel=3e-3)


@pytest.mark.parametrize("rates", [(0.01, 0.05), (0.0, 0.0), (1.0, 0.1)])
def test_a_risk_that_guessing_exceeds_is_refused(rates):
  with pytest.raises(ValueError, match="0 < at_fpr < max_tpr < 1"):
    noise_for_tpr(*rates, sampling_probability=0.01, steps=10)


@pytest.mark.parametrize(
  ("noise", "probability", "steps", "rate"),
  [
    (2.0682, 0.1, 300, 0.3314),
    pytest.param(1.2, 0.2, 60, 0.2452, marks=pytest.mark.slow),
  ],
)
def test_the_least_rate_of_wrong_guesses_equals_check_values(
  noise, probability, steps, rate
):
  advantage = largest_advantage(noise, sampling_probability=probability, steps=steps)
  assert (1 - advantage) / 2 == pytest.approx(rate, abs=1e-4)


def test_the_largest_advantage_is_exact_without_sampling_and_without_noise():
  run = {"sampling_probability": 1.0, "steps": 4}
  exact = 2 * norm.cdf(2 / 3 / 2) - 1
  assert largest_advantage(3.0, **run) == pytest.approx(exact, abs=1e-6)
  assert largest_advantage(0.0, **run) == 1
  with pytest.raises(ValueError, match="noise_multiplier=-1"):
    largest_advantage(-1.0, **run)


def test_no_noise_bounds_no_attack():
  assert largest_tpr(0.01, 0.0, sampling_probability=0.01, steps=10) == 1.0


@pytest.mark.parametrize(
  ("setting", "expected"),
  [(config(10_520, 128, 100), 4.56), (config(10_520, 128, 50), 3.28)],
)
def test_noise_for_epsilon_one(setting, expected):
  """A tighter accountant needs 3 to 8% less noise than the papers' one."""
  noise = noise_multiplier(1.0, **setting)
  assert 0.92 * expected < noise < 0.97 * expected
  assert 0.99 <= epsilon(noise, **setting) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.1, 8.0, 1e3])
def test_calibration_spends_the_target_and_no_more(target):
  spent = epsilon(noise_multiplier(target, **DE), **DE)
  assert 0.99 * target <= spent <= target


def test_pitfall_97_no_noise_is_infinite():
  assert epsilon(0.0, **DE) == math.inf
  assert epsilon(0, **DE) == math.inf


def test_full_batches_agree_with_the_gaussian_mechanism():
  """Steps of the plain Gaussian mechanism compose to one of noise z / sqrt(steps)."""
  steps, delta = 100, 1e-5
  found = spent(20.0, sampling_probability=1.0, steps=steps, delta=delta)
  mu = math.sqrt(steps) / 20.0
  orders = np.linspace(1.01, 500, 100_000)
  classic = orders * mu**2 / 2 + math.log(1 / delta) / (orders - 1)
  assert 0.8 * classic.min() < found.rdp < classic.min()
  assert found.pld == pytest.approx(1.9931, abs=2e-4)  # of noise 2 in one step


def test_more_noise_steps_and_sampling_move_epsilon_the_right_way():
  base = epsilon(1.0, sampling_probability=0.01, steps=100, delta=1e-5)
  assert epsilon(2.0, sampling_probability=0.01, steps=100, delta=1e-5) < base
  assert epsilon(1.0, sampling_probability=0.02, steps=100, delta=1e-5) > base
  assert epsilon(1.0, sampling_probability=0.01, steps=200, delta=1e-5) > base
  assert epsilon(1.0, sampling_probability=0.01, steps=100, delta=1e-6) > base


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"sampling_probability": 0.0}, "sampling_probability=0.0"),
    ({"sampling_probability": 1.5}, "sampling_probability=1.5"),
    ({"steps": 0}, "steps=0"),
    ({"delta": 0.0}, "delta=0.0"),
  ],
)
def test_arguments_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    epsilon(1.0, **{**DE, **change})
  with pytest.raises(ValueError, match=message):
    noise_multiplier(1.0, **{**DE, **change})


@pytest.mark.parametrize("noise", [-1.0, math.inf, math.nan])
def test_noise_out_of_range_is_refused(noise):
  with pytest.raises(ValueError, match="noise_multiplier="):
    epsilon(noise, **DE)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_budget_out_of_range_is_refused(target):
  with pytest.raises(ValueError, match="epsilon="):
    noise_multiplier(target, **DE)


@pytest.mark.slow
def test_a_tiny_budget_is_met_with_huge_noise():
  assert epsilon(noise_multiplier(1e-6, **DE), **DE) <= 1e-6


def test_a_budget_that_no_noise_certifies_is_refused():
  with pytest.raises(ValueError, match="smaller than can be certified"):
    noise_multiplier(1e-6, **{**DE, "delta": 1e-12})

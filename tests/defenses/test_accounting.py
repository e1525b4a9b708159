import math

import numpy as np
import pytest

from mixdef.defenses.accounting import epsilon, noise_multiplier

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
    (10.0, DE, 0.988, 1e-3),  # De et al., the epsilon = 1 run
    (1.0, config(10_520, 128, 100), 7.6, 5e-3),
    (1.1, config(10_520, 300, 100), 10.7, 5e-3),
    # Aerni et al., heuristic DP-SGD: medium, high, very high
    (0.2, config(49_750, 2048, 200), 2.4e3, 0.06),
    (0.00625, config(49_750, 64, 16), 1.5e8, 0.06),
    (0.003125, config(49_750, 64, 25), 1.0e9, 0.03),
  ],
)
def test_pitfall_96_golden_epsilons(noise, setting, expected, tolerance):
  assert epsilon(noise, **setting) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
  ("setting", "expected"),
  [(config(10_520, 128, 100), 4.56), (config(10_520, 128, 50), 3.28)],
)
def test_noise_for_epsilon_one(setting, expected):
  noise = noise_multiplier(1.0, **setting)
  assert noise == pytest.approx(expected, abs=0.01)
  assert 0.99 <= epsilon(noise, **setting) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.1, 8.0, 1e4])
def test_calibration_spends_the_target_and_no_more(target):
  spent = epsilon(noise_multiplier(target, **DE), **DE)
  assert 0.99 * target <= spent <= target


def test_pitfall_97_no_noise_is_infinite():
  assert epsilon(0.0, **DE) == math.inf
  assert epsilon(0, **DE) == math.inf


def test_full_batches_agree_with_the_gaussian_mechanism():
  """Steps of the plain Gaussian mechanism compose to one of noise z / sqrt(steps)."""
  steps, delta = 100, 1e-5
  spent = epsilon(20.0, sampling_probability=1.0, steps=steps, delta=delta)
  mu = math.sqrt(steps) / 20.0
  orders = np.linspace(1.01, 500, 100_000)
  classic = orders * mu**2 / 2 + math.log(1 / delta) / (orders - 1)
  assert 0.8 * classic.min() < spent < classic.min()


def test_more_noise_steps_and_sampling_move_epsilon_the_right_way():
  base = epsilon(1.0, sampling_probability=0.01, steps=1000, delta=1e-5)
  assert epsilon(2.0, sampling_probability=0.01, steps=1000, delta=1e-5) < base
  assert epsilon(1.0, sampling_probability=0.02, steps=1000, delta=1e-5) > base
  assert epsilon(1.0, sampling_probability=0.01, steps=2000, delta=1e-5) > base
  assert epsilon(1.0, sampling_probability=0.01, steps=1000, delta=1e-6) > base


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

"""Epsilon of the best of several runs; the values are those of dp_accounting 0.6.0."""

import math

import pytest

from mixdef.defenses.selection import epsilon_of_selection

LONG = {
  "noise_multiplier": 4.5566,
  **{"sampling_probability": 128 / 10_520, "steps": 8300, "delta": 1e-5},
}
SHORT = {
  "noise_multiplier": 1.0,
  **{"sampling_probability": 0.01, "steps": 1000, "delta": 1e-5},
}


@pytest.mark.parametrize(
  ("base", "law", "mean", "expected"),
  [
    (LONG, "geometric", 10, 2.1292),
    (SHORT, "poisson", 10, 4.3295),
    (SHORT, "geometric", 10, 4.1033),
    (SHORT, "logarithmic", 10, 3.5226),
  ],
)
def test_golden_epsilons_of_ten_runs(base, law, mean, expected):
  found = epsilon_of_selection(**base, law=law, mean=mean)
  assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("law", "expected"),
  [
    ("poisson", (1.6922, 2.3215, 6.0304)),
    ("geometric", (1.9175, 2.1292, 2.5351)),
    (0.5, (1.7855, 1.9572, 2.2806)),
    ("logarithmic", (1.6321, 1.7645, 2.0145)),
  ],
)
def test_golden_epsilons(law, expected):
  found = [epsilon_of_selection(**LONG, law=law, mean=mean) for mean in (5, 10, 50)]
  assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"law": "uniform"}, "law='uniform': pass a shape > 0, or one of logarithmic"),
    ({"law": -1.0}, "law is -1.0"),
    ({"mean": 0.5}, "mean is 0.5; pass a number of at least 1"),
    ({"noise_multiplier": 0.0}, "noise_multiplier is 0.0"),
    ({"delta": math.nan}, "delta is nan"),
  ],
)
def test_other_procedures_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    epsilon_of_selection(**{**SHORT, "mean": 10, **changes})

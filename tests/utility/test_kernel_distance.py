"""The kernel distance: golden values, subsets and their seed."""

import numpy as np
import pytest

from mixdef.utility import kid, squared_mmd

A, B = [[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [2, 1]]


def naive(a, b):
  def k(x, y):
    return (x @ y / len(x) + 1) ** 3

  def others(x):
    return [k(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j]

  across = [k(p, q) for p in a for q in b]
  return np.mean(others(a)) + np.mean(others(b)) - 2 * np.mean(across)


def test_pitfall_124_golden_values_are_not_clipped():
  assert squared_mmd(A, B) == pytest.approx(-2.472222, abs=1e-6)
  assert squared_mmd(A, B, unbiased=False) == pytest.approx(2.444444, abs=1e-6)
  whole = kid(A, B)
  assert whole["kid"] == pytest.approx(-2.472222, abs=1e-6)
  assert whole["kid_std"] == pytest.approx(0, abs=1e-12)


def test_equals_loops_over_pairs():
  a, b = np.random.default_rng(0).normal(size=(2, 9, 4))
  assert squared_mmd(a, b[:7]) == pytest.approx(naive(a, b[:7]), rel=1e-9)


def test_pitfall_124_subsets_are_seeded():
  a, b = np.random.default_rng(0).normal(size=(2, 40, 3))
  first = kid(a, b, subsets=5, subset_size=20, seed=1)
  assert kid(a, b, subsets=5, subset_size=20, seed=1) == first
  assert kid(a, b, subsets=5, subset_size=20, seed=2) != first
  assert first["kid_std"] > 0


def test_estimates_are_unbiased_at_every_size():
  rng = np.random.default_rng(0)
  for size in (3, 30):
    values = [squared_mmd(*rng.normal(size=(2, size, 2))) for _ in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error


def test_arguments_out_of_range_are_refused():
  with pytest.raises(ValueError, match="subset_size=4 of 3 and 3 rows"):
    kid(A, B, subset_size=4)
  with pytest.raises(ValueError, match="subsets=0"):
    kid(A, B, subsets=0)

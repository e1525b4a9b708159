"""Density and coverage: golden values, ties, and what chance gives."""

import numpy as np
import pytest

from mixdef.utility import coverage, density_coverage

REAL = [[0], [1], [3], [6]]


def naive(real, fake, k):
  def squared(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)

  radius = np.sort(squared(real, real), 1)[:, k]
  inside = squared(real, fake) < radius[:, None]
  return {"density": inside.sum() / (k * len(fake)), "coverage": inside.any(1).mean()}


def test_pitfall_127_golden_values():
  result = density_coverage(REAL, [[0.5], [2], [10]], k=1)
  assert result == {"density": 1.0, "coverage": 0.75}


def test_pitfall_127_the_ball_is_open_and_its_centre_is_no_neighbour():
  # Radii 1, 1, 2, 3: the fake lies on the ball of 1 and inside that of 3.
  assert density_coverage(REAL, [[2]], k=1) == {"density": 1.0, "coverage": 0.25}


@pytest.mark.parametrize("k", [1, 5])
def test_equals_the_definition_in_every_block(k, monkeypatch):
  rng = np.random.default_rng(0)
  real, fake = rng.normal(size=(53, 6)), rng.normal(size=(31, 6))
  whole = density_coverage(real, fake, k=k)
  assert whole == pytest.approx(naive(real, fake, k))
  monkeypatch.setattr(coverage, "_ENTRIES", 500)  # nine records a block
  assert density_coverage(real, fake, k=k) == whole


def test_copies_of_the_real_records_have_density_1_whatever_the_rounding():
  rng = np.random.default_rng(0)
  for offset in (0, 1e3):
    x = offset + rng.normal(size=(200, 300))
    assert density_coverage(x, x, k=3) == {"density": 1.0, "coverage": 1.0}


def test_equal_rows_of_tables_count_as_neighbours():
  rng = np.random.default_rng(0)
  table = (rng.random((80, 4)) < 0.4).astype(float)
  assert density_coverage(table, table[:30], k=3) == naive(table, table[:30], 3)


def test_fakes_of_the_real_distribution_are_covered_as_chance_says():
  rng = np.random.default_rng(0)
  n, m, k = 40, 60, 2
  drawn = [density_coverage(*_split(rng, n, m), k=k) for _ in range(300)]
  expected = 1 - np.prod([(n - 1 - i) / (n + m - 1 - i) for i in range(k)])
  for name, value in (("density", 1), ("coverage", expected)):
    values = [result[name] for result in drawn]
    assert abs(np.mean(values) - value) < 4 * np.std(values) / np.sqrt(len(values))


def _split(rng, n, m):
  return np.split(rng.normal(size=(n + m, 3)), [n])


def test_far_fakes_cover_nothing():
  far = density_coverage(REAL, [[100], [200]], k=2)
  assert far == {"density": 0.0, "coverage": 0.0}


def test_k_out_of_range_is_refused():
  with pytest.raises(ValueError, match="k=4 of 4 real records; pass 1 to 3"):
    density_coverage(REAL, REAL, k=4)

"""The Frechet distance: golden values, degenerate sets, and its name."""

import numpy as np
import pytest

from mixdef.utility import (
  Extractor,
  fd,
  fid,
  frechet_distance,
  frechet_distance_of_moments,
)

MEANS = Extractor("means", lambda x: x.mean((1, 2)), "0f")


def gaussian(n, f, *, seed=0, shift=0.0):
  return np.random.default_rng(seed).normal(shift, 1 + np.arange(f) % 3, (n, f))


def naive(a, b):
  """Follow the formula with a matrix square root of the product."""
  import scipy.linalg

  s_a, s_b = np.cov(a.T), np.cov(b.T)
  root = scipy.linalg.sqrtm(s_a @ s_b).real
  return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * root)


def test_golden_values():
  one = np.zeros(2), np.diag([4.0, 1.0])
  two = np.array([1.0, 2.0]), np.diag([1.0, 9.0])
  assert frechet_distance_of_moments(one, two) == pytest.approx(10, abs=1e-12)
  one = np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]])
  two = np.zeros(2), np.diag([1.0, 3.0])
  assert frechet_distance_of_moments(one, two) == pytest.approx(0.516685, abs=1e-6)


def test_equals_the_formula_with_a_matrix_root():
  a, b = gaussian(60, 7), gaussian(90, 7, seed=1, shift=0.3)
  assert frechet_distance(a, b) == pytest.approx(naive(a, b), rel=1e-9)


@pytest.mark.parametrize("f", [3, 70])
def test_pitfall_121_a_set_is_at_0_from_itself_and_the_distance_is_symmetric(f):
  a, b = 30 * gaussian(50, f), 30 * gaussian(40, f, seed=1)
  assert abs(frechet_distance(a, a)) < 1e-6
  assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_pitfall_121_fewer_records_than_features_keep_all_digits():
  a, b = gaussian(30, 90), gaussian(20, 90, seed=1)
  centred = [x - x.mean(0) for x in (a, b)]
  common = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
  traces = sum(np.trace(np.cov(x.T)) for x in (a, b))
  exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * common / np.sqrt(29 * 19)
  assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-12)


def test_a_constant_set_has_a_distance():
  a, b = np.ones((5, 3)), np.zeros((4, 3))
  assert frechet_distance(a, b) == pytest.approx(3)


def test_features_that_do_not_compare_are_refused():
  with pytest.raises(ValueError, match="3 features and b 4"):
    frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
  with pytest.raises(ValueError, match="b has 1 rows"):
    frechet_distance(np.zeros((5, 3)), np.zeros((1, 3)))
  with pytest.raises(ValueError, match=r"a\[2\] is not finite"):
    frechet_distance([[0.0], [1.0], [np.nan]], [[0.0], [1.0]])
  with pytest.raises(ValueError, match=r"two pairs of \[F\] and \[F,F\]"):
    frechet_distance_of_moments((np.zeros(2), np.eye(2)), (np.zeros(3), np.eye(3)))


def test_pitfall_120_fid_is_refused_without_the_true_weights():
  x = np.random.default_rng(0).random((12, 4, 4, 3), np.float32)
  result = fd(MEANS, x, x[:9])
  assert set(result) == {"fd_means", "num_real", "num_fake", "weights"}
  assert (result["num_real"], result["num_fake"], result["weights"]) == (12, 9, "0f")
  with pytest.raises(ValueError, match="fd_means"):
    fid(MEANS, x, x)


def test_fid_takes_the_name_of_the_true_weights():
  x = np.random.default_rng(0).random((12, 4, 4, 3), np.float32)
  true = MEANS._replace(name="inception")
  assert fid(true, x, x[:9])["fid"] == fd(MEANS, x, x[:9])["fd_means"]

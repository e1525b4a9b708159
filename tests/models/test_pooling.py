"""Pooling equals linen's, in value and in where the gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.models import max_pool
from mixdef.models.pooling import avg_pool


def few_values(*shape):
  """Draw from four values, so that most windows have tied maxima."""
  return jax.random.randint(jax.random.key(0), shape, 0, 4).astype(jnp.float32)


def pull_back(pool, x):
  y, pull = jax.vjp(pool, x)
  return y, pull(jnp.arange(1.0, y.size + 1).reshape(y.shape))[0]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 7, 5, 2), (1, 3, 4, 1)])
def test_max_pool_equals_linen_with_ties_and_odd_sizes(window, shape):
  x = few_values(*shape)
  size = (window, window)
  desired = pull_back(lambda x: nn.max_pool(x, size, size), x)
  actual = jax.jit(lambda x: pull_back(lambda x: max_pool(x, window), x))(x)
  jax.tree.map(np.testing.assert_array_equal, actual, desired)


def test_max_pool_gives_the_gradient_to_the_first_of_equal_maxima():
  x = jnp.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
  gradient = jax.grad(lambda x: max_pool(x).sum())(x)
  np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


def test_max_pool_under_vmap_equals_one_by_one():
  x = few_values(3, 2, 4, 4, 2)
  actual = jax.vmap(lambda x: pull_back(max_pool, x))(x)
  for s in range(3):
    desired = pull_back(max_pool, x[s])
    np.testing.assert_array_equal(actual[0][s], desired[0])
    np.testing.assert_array_equal(actual[1][s], desired[1])


@pytest.mark.parametrize("position", range(4))
def test_max_pool_does_not_hide_nan(position):
  x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
  assert jnp.isnan(max_pool(x)).all()


def test_avg_pool_equals_linen():
  x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
  desired = nn.avg_pool(x, (2, 2), (2, 2))
  np.testing.assert_allclose(avg_pool(x), desired, atol=1e-6)


@pytest.mark.parametrize("window", [0, 3])
def test_a_window_that_does_not_fit_is_refused(window):
  with pytest.raises(ValueError, match="does not fit a map of 2x5"):
    max_pool(jnp.zeros((1, 2, 5, 1)), window)

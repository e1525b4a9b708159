"""Pooling equals linen's, in value and in where the gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.kernels import max_pool
from mixdef.kernels.pooling import avg_pool


def few_values(*shape):
  """Draw from four values, so that most windows have tied maxima."""
  return jax.random.randint(jax.random.key(0), shape, 0, 4).astype(jnp.float32)


def pull_back(pool, x):
  y, pull = jax.vjp(pool, x)
  return y, pull(jnp.arange(1.0, y.size + 1).reshape(y.shape))[0]


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 7, 5, 2), (1, 3, 4, 1)])
def test_max_pool_equals_linen_with_ties_and_odd_sizes(window, shape):
  size = (window, window)

  @jax.jit
  def both(x):
    ours = pull_back(lambda x: max_pool(x, window), x)
    return ours, pull_back(lambda x: nn.max_pool(x, size, size), x)

  jax.tree.map(np.testing.assert_array_equal, *both(few_values(*shape)))


def test_max_pool_gives_the_gradient_to_the_first_of_equal_maxima():
  x = jnp.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
  gradient = jax.grad(lambda x: max_pool(x).sum())(x)
  np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


def test_max_pool_under_vmap_equals_one_large_batch():
  x = few_values(3, 2, 4, 4, 2)

  def gradient(x):
    return jax.grad(lambda x: (max_pool(x) ** 2).sum())(x)

  actual = jax.jit(jax.vmap(gradient))(x)
  desired = jax.jit(gradient)(x.reshape(6, 4, 4, 2))
  np.testing.assert_array_equal(actual.reshape(desired.shape), desired)


@pytest.mark.parametrize("position", range(4))
def test_max_pool_does_not_hide_nan(position):
  x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
  assert jnp.isnan(max_pool(x)).all()


def test_avg_pool_averages_blocks_and_drops_the_remainder():
  x = np.asarray(few_values(2, 5, 4, 3))
  desired = np.zeros((2, 2, 2, 3))
  for p, q in np.ndindex(2, 2):
    desired[:, p, q] = x[:, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].mean((1, 2))
  np.testing.assert_allclose(avg_pool(jnp.asarray(x)), desired, atol=1e-6)


@pytest.mark.parametrize("window", [0, 3])
def test_a_window_that_does_not_fit_is_refused(window):
  with pytest.raises(ValueError, match="does not fit a map of 2x5"):
    max_pool(jnp.zeros((1, 2, 5, 1)), window)

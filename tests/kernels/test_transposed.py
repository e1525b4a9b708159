"""The transposed convolution: in value and two orders of gradients, however lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.kernels.convolution import convolution
from mixdef.kernels.transposed import ConvTranspose

LOWERINGS = ("auto", "native", "canonical", "im2col")
# x, size of the result, window, stride, padding: even and odd sizes, not square.
GEOMETRIES = [
  ((4, 4), (8, 8), (5, 5), 2, 2),
  ((4, 4), (7, 7), (5, 5), 2, 2),
  ((2, 3), (4, 6), (5, 5), 2, 2),
  ((3, 2), (5, 5), (3, 4), 1, 0),
  ((2, 2), (6, 5), (3, 3), 3, 1),
]


def draw(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def layer_of(geometry, lowering="auto", features=2):
  _, size, window, strides, padding = geometry
  shape = {"window": window, "strides": strides, "padding": padding}
  return ConvTranspose(features, size, **shape, lowering=lowering)


def naive(x, kernel, geometry):
  """Let every pixel of x add its window of the kernel to the padded result."""
  _, (height, width), (rows, columns), stride, pad = geometry
  y = np.zeros((len(x), height + 2 * pad + stride, width + 2 * pad + stride, 2))
  for b, p, q in np.ndindex(*x.shape[:3]):
    for i, j in np.ndindex(rows, columns):
      y[b, p * stride + i, q * stride + j] += kernel[i, j] @ x[b, p, q]
  return y[:, pad : pad + height, pad : pad + width]


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_a_naive_loop(geometry, lowering):
  x = draw(2, *geometry[0], 3)
  layer = layer_of(geometry, lowering)
  params = {"kernel": draw(*geometry[2], 2, 3, seed=1), "bias": jnp.array([1.0, -2.0])}
  y = layer.apply({"params": params}, x)
  expected = naive(np.asarray(x), np.asarray(params["kernel"]), geometry)
  np.testing.assert_allclose(y, expected + np.array([1.0, -2.0]), atol=1e-4)


def test_equals_that_of_jax():
  geometry = GEOMETRIES[0]
  x, kernel = draw(2, 4, 4, 3), draw(5, 5, 2, 3, seed=1)
  # An output padding of one, as the official networks have: (2, 3) on the other side.
  expected = jax.lax.conv_transpose(
    *(x, kernel, (2, 2), [(2, 3)] * 2),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    transpose_kernel=True,
  )
  layer = ConvTranspose(2, geometry[1], use_bias=False)
  y = layer.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(y, expected, atol=1e-4)


@functools.cache
def two_orders(lowering):
  """Gradients of a loss, and those of the squared gradient by x, as in a penalty."""
  layer = layer_of(GEOMETRIES[1], lowering)

  def loss(params, x):
    return jnp.tanh(layer.apply({"params": params}, x)).sum()

  def penalty(params, x):
    return (jax.grad(loss, argnums=1)(params, x) ** 2).sum()

  def both(params, x):
    return tuple(jax.grad(f, argnums=(0, 1))(params, x) for f in (loss, penalty))

  x = draw(2, 4, 4, 3)
  params = {"kernel": 0.2 * draw(5, 5, 2, 3, seed=1), "bias": jnp.zeros(2)}
  return jax.jit(both)(params, x)


@pytest.mark.parametrize("lowering", ["canonical", "im2col"])
def test_gradients_of_two_orders_equal_native(lowering):
  native, rewritten = two_orders("native"), two_orders(lowering)
  pairs = zip(jax.tree.leaves(rewritten), jax.tree.leaves(native), strict=True)
  for one, other in pairs:
    assert np.abs(other).max() > 0
    np.testing.assert_allclose(one, other, atol=1e-4 * float(abs(other).max()))


@pytest.mark.parametrize("lowering", ["native", "canonical"])
def test_it_is_the_transpose_of_the_convolution(lowering):
  geometry = GEOMETRIES[4]
  image, small = draw(2, 6, 5, 2), draw(2, 2, 2, 3, seed=2)
  kernel = draw(3, 3, 2, 3, seed=1)
  layer = layer_of(geometry, lowering)
  large = layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(2)}}, small)
  shrunk = convolution(image, kernel, 3, 1)
  np.testing.assert_allclose((large * image).sum(), (small * shrunk).sum(), rtol=1e-4)


def test_vmap_over_kernels_equals_one_by_one():
  layer = layer_of(GEOMETRIES[0], "canonical")
  x, kernels = draw(2, 4, 4, 3), draw(3, 5, 5, 2, 3, seed=1)
  run = jax.jit(
    jax.vmap(lambda k: layer.apply({"params": {"kernel": k, "bias": jnp.zeros(2)}}, x))
  )
  for y, kernel in zip(run(kernels), kernels, strict=True):
    expected = naive(np.asarray(x), np.asarray(kernel), GEOMETRIES[0])
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_weights_start_at_the_scale_of_the_inputs():
  """LeCun's variance: one over the inputs of a pixel, window and channels in."""
  layer = ConvTranspose(64, (8, 8))
  kernel = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
  assert kernel.shape == (5, 5, 64, 32)
  np.testing.assert_allclose(kernel.var(), 1 / (25 * 32), rtol=0.05)


def test_a_size_that_the_stride_cannot_reach_is_refused():
  layer = ConvTranspose(2, (10, 10))
  with pytest.raises(ValueError, match=r"maps of \(4, 4\) cannot be enlarged to"):
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))

"""Every lowering is the same convolution: in value, in gradient, under transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef.kernels import convolution

REWRITTEN = ("canonical", "im2col")

# kernel, stride, padding: every kind of each, and shapes that are not square.
GEOMETRIES = [
  ((3, 3), 1, "SAME"),
  ((3, 3), 2, "SAME"),
  ((3, 3), 2, 1),
  ((3, 3), 1, "VALID"),
  ((5, 5), 1, "SAME"),
  ((5, 5), 2, "VALID"),
  ((1, 1), 1, "SAME"),
  ((1, 1), 2, "VALID"),
  ((2, 3), (3, 1), ((0, 2), (1, 0))),
  ((4, 3), (2, 3), ((2, 1), (0, 3))),
]


def naive(x, kernel, strides, pads):
  """Sum over the window of every output pixel, one loop per index."""
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  rows = (x.shape[1] - kernel.shape[0]) // strides[0] + 1
  columns = (x.shape[2] - kernel.shape[1]) // strides[1] + 1
  y = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
  for b, p, q, o in np.ndindex(*y.shape):
    for i, j, c in np.ndindex(*kernel.shape[:3]):
      pixel = x[b, p * strides[0] + i, q * strides[1] + j, c]
      y[b, p, q, o] += pixel * kernel[i, j, c, o]
  return y


def draw(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def assert_close(actual, desired):
  """Compare to 1e-4 of the largest entry."""
  for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
    assert a.shape == d.shape
    np.testing.assert_allclose(a, d, rtol=0, atol=1e-4 * float(jnp.abs(d).max()))


@functools.cache
def value_and_gradients(lowering, strides, padding):
  """Return a compiled function of (x, kernel): ((loss, y), both gradients)."""

  def loss(x, kernel):
    y = convolution(x, kernel, strides, padding, lowering=lowering)
    # Uneven weights: a gradient of ones would hide a transposed or flipped axis.
    weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)
    return (y * weights).sum(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("lowering", ["auto", "native", *REWRITTEN])
@pytest.mark.parametrize(
  ("strides", "pads"), [((1, 1), ((1, 1), (1, 1))), ((2, 1), ((0, 0), (2, 1)))]
)
def test_equals_a_naive_loop(lowering, strides, pads):
  x, kernel = draw(2, 5, 4, 3), draw(3, 3, 3, 2, seed=1)
  (_, y), _ = value_and_gradients(lowering, strides, pads)(x, kernel)
  assert_close(y, naive(np.asarray(x), np.asarray(kernel), strides, pads))


@pytest.mark.slow
@pytest.mark.parametrize("lowering", REWRITTEN)
@pytest.mark.parametrize(("window", "strides", "padding"), GEOMETRIES)
def test_gradients_equal_native(lowering, window, strides, padding):
  # Six images: the kernel gradient is summed over more than one chunk.
  x, kernel = draw(6, 9, 8, 3), draw(*window, 3, 4, seed=1)
  desired = value_and_gradients("native", strides, padding)(x, kernel)
  actual = value_and_gradients(lowering, strides, padding)(x, kernel)
  assert_close(actual, desired)


# Few channels go several outputs at a time, many as they are; odd widths one by one.
@pytest.mark.slow
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
  ("width", "inputs", "outputs"), [(8, 1, 20), (7, 3, 16), (6, 8, 8), (8, 17, 3)]
)
def test_any_number_of_channels_equals_native(width, inputs, outputs, strides):
  x, kernel = draw(2, 6, width, inputs), draw(3, 3, inputs, outputs, seed=1)
  desired = value_and_gradients("native", strides, 1)(x, kernel)
  assert_close(value_and_gradients("canonical", strides, 1)(x, kernel), desired)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", REWRITTEN)
@pytest.mark.parametrize(
  ("axes", "strides"), [((None, 0), 1), ((0, 0), 2), ((0, None), 1)]
)
def test_vmap_equals_native_one_by_one(lowering, axes, strides):
  x, kernels = draw(3, 4, 6, 6, 2), draw(3, 3, 3, 2, 5, seed=1)
  x = x if axes[0] == 0 else x[0]
  kernels = kernels if axes[1] == 0 else kernels[0]
  native = value_and_gradients("native", strides, "SAME")
  own = [
    (x if axes[0] is None else x[s], kernels if axes[1] is None else kernels[s])
    for s in range(3)
  ]
  each = [native(*one) for one in own]
  run = value_and_gradients(lowering, strides, "SAME")
  (_, y), gradients = jax.jit(jax.vmap(run, in_axes=axes))(x, kernels)
  for s, ((_, one_y), one_gradients) in enumerate(each):
    assert_close((y[s], [g[s] for g in gradients]), (one_y, list(one_gradients)))


@pytest.mark.parametrize("lowering", REWRITTEN)
def test_descent_inside_scan_equals_a_python_loop(lowering):
  images, start = draw(3, 4, 6, 6, 2), 0.1 * draw(3, 3, 2, 2, seed=1)

  def step(kernel, x, lowering):
    def loss(kernel):
      return (convolution(x, kernel, 2, 1, lowering=lowering) ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(kernel)
    return kernel - 0.1 * gradient, value

  native = jax.jit(lambda kernel, x: step(kernel, x, "native"))
  desired, values = start, []
  for x in images:
    desired, value = native(desired, x)
    values.append(value)
  actual = jax.jit(
    lambda kernel: jax.lax.scan(lambda k, x: step(k, x, lowering), kernel, images)
  )(start)
  assert_close(actual, (desired, jnp.stack(values)))


@pytest.mark.parametrize("lowering", REWRITTEN)
@pytest.mark.parametrize("strides", [1, 2])
def test_gradient_penalty_equals_native(lowering, strides):
  x, kernel = draw(2, 6, 6, 2), draw(3, 3, 2, 3, seed=1)

  def penalty(kernel, lowering):
    def score(x):
      return jnp.tanh(convolution(x, kernel, strides, lowering=lowering)).sum()

    return (jax.grad(score)(x) ** 2).sum()

  run = jax.jit(jax.grad(penalty), static_argnums=1)
  assert_close(run(kernel, lowering), run(kernel, "native"))


def test_gradient_of_the_kernel_gradient_equals_native():
  x, kernel = draw(2, 6, 6, 2), draw(3, 3, 2, 3, seed=1)

  def squared_norm(x, kernel, lowering):
    def score(kernel):
      return jnp.tanh(convolution(x, kernel, 2, lowering=lowering)).sum()

    return (jax.grad(score)(kernel) ** 2).sum()

  run = jax.jit(jax.grad(squared_norm, argnums=(0, 1)), static_argnums=2)
  assert_close(run(x, kernel, "canonical"), run(x, kernel, "native"))


def test_nested_vmap_equals_a_loop_over_pairs():
  """Models over records, as per-example gradients of an ensemble are taken."""
  x, kernels = draw(2, 1, 6, 6, 2), draw(2, 3, 3, 2, 3, seed=1)

  def gradient(lowering):
    def of_one(x, kernel):
      y = convolution(x, kernel, lowering=lowering)
      return jax.grad(lambda k: (convolution(x, k, lowering=lowering) * y).sum())(
        kernel
      )

    return jax.jit(of_one)

  records = jax.vmap(gradient("canonical"), in_axes=(0, None))
  actual = jax.jit(jax.vmap(records, in_axes=(None, 0)))(x, kernels)
  one = gradient("native")
  assert_close(actual, jnp.stack([jnp.stack([one(r, k) for r in x]) for k in kernels]))


def test_half_precision_gradients_are_summed_in_single_precision():
  # 31 images of 25 windows: in bfloat16, 25 more stop counting right beyond 256.
  x, kernel = (
    jnp.ones((31, 5, 5, 1), jnp.bfloat16),
    jnp.ones((1, 3, 1, 1), jnp.bfloat16),
  )
  gradient = jax.grad(
    lambda kernel: convolution(x, kernel, lowering="canonical").sum().astype(float)
  )(kernel)
  assert gradient[0, 1, 0, 0] == jnp.bfloat16(31 * 25)


@pytest.mark.parametrize("lowering", REWRITTEN)
def test_groups_keep_channels_apart(lowering):
  x, kernel = draw(2, 4, 4, 4), draw(3, 3, 2, 6, seed=1)

  @jax.jit
  def whole_and_halves(x, kernel):
    whole = convolution(x, kernel, lowering=lowering, feature_group_count=2)
    left = convolution(x[..., :2], kernel[..., :3], lowering=lowering)
    right = convolution(x[..., 2:], kernel[..., 3:], lowering=lowering)
    return whole, jnp.concatenate([left, right], axis=-1)

  assert_close(*whole_and_halves(x, kernel))


@pytest.mark.parametrize("lowering", REWRITTEN)
def test_half_precision_stays_half_precision(lowering):
  x = draw(2, 4, 4, 1).astype(jnp.bfloat16)
  kernel = draw(3, 3, 1, 2).astype(jnp.bfloat16)
  _, gradients = value_and_gradients(lowering, 1, "SAME")(x, kernel)
  assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shapes", "options", "message"),
  [
    (((1, 4, 4, 1), (3, 3, 1, 1)), {"lowering": "fft"}, "lowering 'fft'"),
    (((1, 4, 4, 1), (3, 3, 1, 1)), {"padding": "FULL"}, "padding 'FULL'"),
    (((1, 4, 4, 1), (5, 5, 1, 1)), {"padding": "VALID"}, "5x5 kernel .* 4x4"),
    (((1, 4, 4, 3), (3, 3, 1, 1)), {}, "3 channels"),
    (((4, 4, 1), (3, 3, 1, 1)), {}, r"\[B,H,W,C\]"),
  ],
)
def test_bad_arguments_are_refused_in_one_line(shapes, options, message):
  with pytest.raises(ValueError, match=message) as error:
    convolution(*map(jnp.zeros, shapes), **options)
  assert "\n" not in str(error.value)

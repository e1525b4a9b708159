"""GroupNorm with its ReLU: float64, flax.linen, large means, all derivatives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example_cases import clipped

from mixdef.core.hooks import Batch
from mixdef.defenses.per_example import ghost, microbatch
from mixdef.kernels.group_norm import GroupNorm, group_norm

GROUPS = 4


def draw_case(mean=0.0, shape=(3, 6, 5, 8), seed=0):
  """Draw x, scale, bias and a cotangent, in float32."""
  rng = np.random.default_rng(seed)
  channels = shape[-1]
  values = (
    rng.normal(size=shape) + mean,
    rng.uniform(0.5, 1.5, channels),
    rng.normal(size=channels),
    rng.normal(size=shape),
  )
  return tuple(np.float32(value) for value in values)


def reference(x, scale, bias, cotangent, relu):
  """Return the result and its gradients in float64, group by group."""
  x = np.float64(x)
  y, dx = np.zeros_like(x), np.zeros_like(x)
  d_scale, d_bias = np.zeros_like(scale, float), np.zeros_like(bias, float)
  size = x.shape[-1] // GROUPS
  for image in range(x.shape[0]):
    for group in range(GROUPS):
      c = slice(group * size, (group + 1) * size)
      part = x[image, ..., c]
      deviation = np.sqrt(part.var() + 1e-6)
      unit = (part - part.mean()) / deviation
      y[image, ..., c] = unit * scale[c] + bias[c]
      dy = np.where(relu & (y[image, ..., c] < 0), 0, cotangent[image, ..., c])
      d_scale[c] += (dy * unit).sum((0, 1))
      d_bias[c] += dy.sum((0, 1))
      du = dy * scale[c]
      dx[image, ..., c] = (du - du.mean() - unit * (du * unit).mean()) / deviation
  return (np.maximum(y, 0) if relu else y), dx, d_scale, d_bias


def with_flax(x, scale, bias, *, relu):
  layer = nn.GroupNorm(GROUPS)
  y = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
  return nn.relu(y) if relu else y


@functools.partial(jax.jit, static_argnames=("relu", "reverse_only"))
def ours(x, scale, bias, *, relu, reverse_only=True):
  options = {"relu": relu, "reverse_only": reverse_only}
  return group_norm(x, scale, bias, num_groups=GROUPS, **options)


@pytest.mark.parametrize("reverse_only", [False, True])
@pytest.mark.parametrize(("mean", "relu"), [(0.0, False), (-100.0, True), (1e4, True)])
def test_values_and_gradients_are_those_of_float64_whatever_the_mean(
  mean, relu, reverse_only
):
  x, scale, bias, cotangent = draw_case(mean)

  @jax.jit
  def run(x, scale, bias):
    layer = functools.partial(ours, relu=relu, reverse_only=reverse_only)
    y, pull = jax.vjp(layer, x, scale, bias)
    return y, *pull(cotangent)

  desired = reference(x, scale, bias, cotangent, relu)
  for a, d in zip(run(x, scale, bias), desired, strict=True):
    np.testing.assert_allclose(a, d, rtol=0, atol=5e-6 * np.abs(d).max())


def test_a_single_outlying_pixel_costs_few_digits():
  x, scale, bias, _ = draw_case()
  x[:, 3, 2] += 1e4  # the pixel that the sums are shifted by
  desired = reference(x, scale, bias, np.ones_like(x), False)[0]
  actual = ours(x, scale, bias, relu=False)
  np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_flax_parameters_give_the_result_of_flax_and_its_dtype(dtype, param_dtype):
  x = jnp.asarray(draw_case(1.0)[0], dtype)
  layer = nn.GroupNorm(GROUPS, param_dtype=param_dtype)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  desired = nn.relu(jax.jit(layer.apply)(variables, x))
  actual = jax.jit(GroupNorm(GROUPS, relu=True).apply)(variables, x)
  assert actual.dtype == desired.dtype
  atol = 1e-5 if desired.dtype == jnp.float32 else 0.02
  np.testing.assert_allclose(np.float32(actual), np.float32(desired), atol=atol)


def test_the_layer_names_and_draws_its_parameters_as_flax_does():
  def network(layer):
    class Network(nn.Module):
      @nn.compact
      def __call__(self, x):
        return layer(GROUPS)(layer(2)(x))

    return Network()

  x = jnp.ones((1, 2, 2, 8))
  mine, flax = (
    jax.jit(network(layer).init)(jax.random.key(0), x)
    for layer in (GroupNorm, nn.GroupNorm)
  )
  jax.tree.map(np.testing.assert_array_equal, mine, flax)


def test_a_constant_image_gives_the_bias_and_finite_second_derivatives():
  _, scale, bias, _ = draw_case()
  x = jnp.full((2, 6, 5, 8), 0.3)
  expected = np.broadcast_to(np.maximum(bias, 0), x.shape)
  np.testing.assert_array_equal(ours(x, scale, bias, relu=True), expected)

  def slope(x):
    return jax.grad(lambda x: (ours(x, scale, bias, relu=True) ** 2).sum())(x)

  curvature = jax.jit(jax.grad(lambda x: (slope(x) ** 2).sum()))(x)
  assert jnp.isfinite(curvature).all()


def cubes(layer, direction):
  """Return `along(t, x, ...)`: the gradient of a loss at `x + t direction`."""

  def loss(*args):
    return (layer(*args, relu=True) ** 3).sum()

  def along(t, x, scale, bias):
    return jax.grad(loss, argnums=(0, 1, 2))(x + t * direction, scale, bias)

  return along


def assert_close(actual, desired):
  for a, d in zip(actual, desired, strict=True):
    np.testing.assert_allclose(a, d, rtol=0, atol=1e-4 * jnp.abs(d).max())


def test_forward_and_second_derivatives_equal_those_of_flax():
  x, scale, bias, direction = draw_case(shape=(2, 3, 3, 8))

  @functools.partial(jax.jit, static_argnums=0)
  def curvature(layer):
    along = cubes(layer, direction)
    return jax.jvp(lambda t: along(t, x, scale, bias), (0.0,), (1.0,))[1]

  plain = functools.partial(ours, reverse_only=False)
  assert_close(curvature(plain), curvature(with_flax))


def test_second_derivatives_in_reverse_mode_equal_those_of_flax():
  x, scale, bias, direction = draw_case(shape=(2, 3, 3, 8))

  @functools.partial(jax.jit, static_argnums=0)
  def curvature(layer):
    def slope(*args):
      grads = cubes(layer, direction)(0.0, *args)
      return (grads[0] * direction).sum() + grads[1].sum() + grads[2].sum()

    return jax.grad(slope, argnums=(0, 1, 2))(x, scale, bias)

  assert_close(curvature(ours), curvature(with_flax))


def test_a_batch_of_layers_equals_one_after_the_other():
  cases = [draw_case(seed=seed)[:3] for seed in range(3)]
  stacked = [jnp.stack(values) for values in zip(*cases, strict=True)]
  together = jax.vmap(lambda *args: ours(*args, relu=True))(*stacked)
  for result, case in zip(together, cases, strict=True):
    np.testing.assert_allclose(result, ours(*case, relu=True), atol=1e-6)


def test_ghost_clipping_sees_its_parameters():
  x, scale, bias, _ = draw_case()
  layer = GroupNorm(GROUPS, relu=True, reverse_only=True)
  params = {"scale": scale, "bias": bias}

  def losses_fn(params, batch, ctx):
    del ctx
    return (layer.apply({"params": params}, batch.x) ** 2).mean((1, 2, 3)), ()

  ones, ids = jnp.ones(3), jnp.arange(3)
  batch = Batch(jnp.asarray(x), ones, ids, ones, ones, ids, ones)
  limits = {"clip": 0.1, "denominator": 3.0}
  (_, grads), (_, desired) = (
    jax.jit(clipped(estimate, losses_fn, **limits))(params, batch, (), None)
    for estimate in (ghost, microbatch)
  )
  for name in params:
    assert jnp.abs(desired[name]).max() > 1e-3
    np.testing.assert_allclose(grads[name], desired[name], atol=1e-6)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
  with pytest.raises(ValueError, match=f"8 channels do not split into {groups} groups"):
    group_norm(jnp.ones((1, 2, 2, 8)), 1.0, 0.0, num_groups=groups)

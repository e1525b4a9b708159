import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from mixdef.defense import Batch, Ctx
from mixdef.defenses.per_example import ghost, microbatch

B, K = 6, 3
CLIP = 0.3
CTX = Ctx(jax.random.key(3), 0, 0, 1)


def flat(x):
  return x.reshape(x.shape[0], -1)


class Dense(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(5)(flat(x)))
    return nn.Dense(K, use_bias=False)(x)


class DenseOverPositions(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4)(x))  # 36 positions, small kernel
    x = nn.tanh(nn.Dense(20)(x[:, :1, :2]))  # 2 positions, larger kernel
    return nn.Dense(K)(flat(x))


class Conv(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.tanh(nn.Conv(5, (2, 3), padding=((1, 0), (2, 1)), use_bias=False)(x))
    x = nn.tanh(nn.Conv(5, (3, 3), kernel_dilation=2, padding=2)(x))
    x = nn.tanh(nn.Conv(6, (3, 3), padding="VALID")(x))
    return nn.Dense(K)(flat(x))


def conv_by_name(x, kernel, strides, padding, **kwargs):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


class OtherConv(nn.Module):
  """Convolutions that the per-layer rule takes, and one of a custom function."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(4, (3, 3), conv_general_dilated=conv_by_name)(x))
    x = nn.tanh(nn.Conv(4, (3, 3), feature_group_count=2)(x))
    x = nn.tanh(nn.Conv(2, (3, 3), padding="CIRCULAR")(x))
    x = nn.tanh(nn.Conv(3, (3,), padding="CAUSAL")(x.reshape(x.shape[0], -1, 2)))
    return nn.Dense(K)(flat(x))


class Norms(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
    x = nn.LayerNorm()(x)
    return nn.Dense(K)(x.mean((1, 2)))


class Small(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.LayerNorm()(nn.Dense(5)(flat(x)))))


class Embed(nn.Module):
  @nn.compact
  def __call__(self, x):
    tokens = (jnp.abs(flat(x)) * 3).astype(jnp.int32) % 7
    return nn.Dense(K)(nn.tanh(nn.Embed(7, 4)(tokens)).mean(1))


class Standardised(nn.Module):
  """A custom leaf module: weight-standardised convolution, with a helper method."""

  def rescale(self, kernel):
    return (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-3)

  @nn.compact
  def __call__(self, x, train=True):
    init = nn.initializers.lecun_normal()
    kernel = self.param("kernel", init, (3, 3, x.shape[-1], 4))
    dims = ("NHWC", "HWIO", "NHWC")
    kernel = self.rescale(kernel)
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=dims
    )


class Custom(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(Standardised()(x, train=True))
    return nn.Dense(K)(x.mean((1, 2)))


class FromSetup(nn.Module):
  def setup(self):
    self.hidden = nn.Dense(4)
    self.out = nn.Dense(K)

  def __call__(self, x):
    return self.out(nn.tanh(self.hidden(flat(x))))


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(36 * 2)
    return nn.Dense(K)(layer(nn.tanh(layer(flat(x)))))


class GainBesideLayers(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(flat(x))
    gain = self.param("gain", nn.initializers.ones, (4,))
    return nn.Dense(K)(nn.tanh(x) * gain)


class Remat(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.remat(nn.Dense)(4)(flat(x))))


class RowsMerged(nn.Module):
  @nn.compact
  def __call__(self, x):
    rows = nn.Dense(4)(x.reshape(-1, x.shape[-1]))
    return nn.Dense(K)(nn.tanh(rows).reshape(x.shape[0], -1))


class Tied(nn.Module):
  """Its table is used by a method other than __call__ as well."""

  @nn.compact
  def __call__(self, x):
    table = nn.Embed(K, 4)
    tokens = (jnp.abs(flat(x)) * 3).astype(jnp.int32) % K
    return table.attend(nn.tanh(table(tokens)).mean(1))


class DropoutInLeaf(nn.Module):
  """A leaf module that draws numbers: alone it cannot be run again."""

  @nn.compact
  def __call__(self, x):
    x = flat(x)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], K))
    return nn.Dropout(0.0, deterministic=False)(x @ kernel) + 0 * self.draw()

  def draw(self):
    return jax.random.normal(self.make_rng("dropout"))


GHOST = [
  Dense,
  DenseOverPositions,
  Conv,
  OtherConv,
  Norms,
  Embed,
  Custom,
  FromSetup,
]
FALLBACK = [
  Shared,
  GainBesideLayers,
  Remat,
  RowsMerged,
  Tied,
  DropoutInLeaf,
]


def make_batch(weight=None, seed=0):
  rng = np.random.default_rng(seed)
  y = rng.dirichlet(np.ones(K), B)
  rows = jnp.arange(B)
  return Batch(
    x=jnp.asarray(rng.normal(size=(B, 6, 6, 2)), jnp.float32),
    y=jnp.asarray(y, jnp.float32),
    index=rows + 10,
    weight=jnp.ones(B) if weight is None else jnp.asarray(weight, jnp.float32),
    reference=jnp.zeros(B),
    partner=rows + 10,
    lam=jnp.ones(B),
  )


def init(model, seed=0):
  keys = {"params": jax.random.key(seed), "dropout": jax.random.key(0)}
  return jax.jit(model.init)(keys, make_batch().x)["params"]


def cross_entropy(model):
  def losses_fn(params, batch, ctx):
    logits, _ = model.apply(
      {"params": params}, batch.x, rngs={"dropout": ctx.key}, mutable=[]
    )
    log_probs = jax.nn.log_softmax(logits)
    return -(batch.y * log_probs).sum(-1), (log_probs, {})

  return losses_fn


def naive(losses_fn, params, batch, clip, denominator):
  """Clip one record's gradient after the other, in numpy."""
  gradient = jax.jit(jax.grad(lambda p, row: losses_fn(p, row, CTX)[0][0]))
  total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
  for i in range(batch.weight.shape[0]):
    row = jax.tree.map(lambda a, i=i: a[i : i + 1], batch)
    grads = jax.tree.map(np.float64, gradient(params, row))
    norm = math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    factor = float(batch.weight[i]) * min(1.0, clip / norm) / denominator
    total = jax.tree.map(lambda t, g, f=factor: t + f * g, total, grads)
  return total


def assert_close(tree, expected, tolerance=1e-5):
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * scale),
    tree,
    expected,
  )


@pytest.fixture
def warnings(monkeypatch):
  """What was logged, as text."""
  said = []
  monkeypatch.setattr(
    logging, "warning", lambda message, *args: said.append(message % args)
  )
  return said


@pytest.mark.parametrize("net", GHOST, ids=lambda net: net.__name__)
def test_ghost_equals_a_loop_over_the_records(net, warnings):
  weight = [1, 1, 0, 1, 1, 1]
  model, batch = net(), make_batch(weight)
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(ghost(losses_fn, clip=CLIP, denominator=4.0))
  (value, (losses, (log_probs, _))), grads = estimate(params, batch, None, CTX)
  expected = naive(losses_fn, params, batch, CLIP, 4.0)
  assert_close(grads, expected)
  plain, (plain_log_probs, _) = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  np.testing.assert_allclose(log_probs, plain_log_probs, rtol=1e-5)
  assert float(value) == pytest.approx(np.average(plain, weights=weight), rel=1e-5)
  assert not warnings


@pytest.mark.parametrize("net", FALLBACK, ids=lambda net: net.__name__)
def test_ghost_hands_over_to_microbatches_with_a_reason(net, warnings):
  model, batch = net(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(ghost(losses_fn, clip=CLIP, denominator=4.0, size=4))
  _, grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  estimate(params, batch, None, CTX)
  assert len(warnings) == 1, "logged when traced, not at every step"
  assert "microbatches of 4 instead: " in warnings[0]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_microbatch_equals_a_loop_over_the_records(size):
  model, batch = Small(), make_batch([1, 1, 0, 1, 1, 1])
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(microbatch(losses_fn, clip=CLIP, denominator=4.0, size=size))
  (value, (losses, _)), grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  plain, _ = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  assert float(value) == pytest.approx(np.average(plain, weights=batch.weight))


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_no_clipping_gives_the_ordinary_gradient(estimator):
  model, batch = Small(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(estimator(losses_fn, clip=math.inf, denominator=B))
  _, grads = estimate(params, batch, None, CTX)
  expected = jax.jit(jax.grad(lambda p: losses_fn(p, batch, CTX)[0].mean()))(params)
  assert_close(grads, expected)


def test_a_loss_that_is_nonlinear_in_the_record_is_differentiated_whole():
  """A smoothed output and a focal loss, as other parts of a chain make them."""
  model, batch = Dense(), make_batch()
  table = jnp.linspace(0.1, 0.9, 20)

  def losses_fn(params, batch, ctx):
    _, (log_probs, aux) = cross_entropy(model)(params, batch, ctx)
    share = table[batch.index][:, None]
    smooth = jnp.log(share * jnp.exp(log_probs) + (1 - share) / K)
    losses = -(batch.y * smooth).sum(-1)
    return (1 - jnp.exp(-losses)) ** 2 * losses, (smooth, aux)

  params = init(model)
  _, grads = jax.jit(ghost(losses_fn, clip=0.05, denominator=B))(
    params, batch, None, CTX
  )
  assert_close(grads, naive(losses_fn, params, batch, 0.05, B))


def test_equals_optax_without_noise():
  model, batch = Small(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  rows = jax.tree.map(lambda a: a[:, None], batch)
  one = jax.grad(lambda p, row: losses_fn(p, row, CTX)[0][0])
  per_example = jax.jit(jax.vmap(one, (None, 0)))(params, rows)
  aggregate = optax.contrib.differentially_private_aggregate(
    CLIP, 0.0, jax.random.key(0)
  )
  expected, _ = aggregate.update(per_example, aggregate.init(params))
  for estimator in (ghost, microbatch):
    _, grads = jax.jit(estimator(losses_fn, clip=CLIP, denominator=B))(
      params, batch, None, CTX
    )
    assert_close(grads, expected)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_vmap_over_models_equals_a_loop(estimator):
  model, batch = Small(), make_batch([1, 0, 1, 1, 1, 1])
  models = [init(model, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
  estimate = estimator(cross_entropy(model), clip=CLIP, denominator=4.0)
  run = jax.jit(lambda params: estimate(params, batch, None, CTX)[1])
  together = jax.jit(jax.vmap(lambda params: estimate(params, batch, None, CTX)[1]))(
    stacked
  )
  for i, params in enumerate(models):
    assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), run(params))


class Overflowing(nn.Module):
  """Its gradient is infinite at x[0] = 0 although its loss is finite."""

  @nn.compact
  def __call__(self, x):
    x = flat(x)
    root = jnp.sqrt(jnp.abs(nn.Dense(K, use_bias=False)(x)))
    return jnp.tanh(root)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
@pytest.mark.parametrize("net", [Norms, Small], ids=lambda net: net.__name__)
def test_pitfall_90_one_bad_record_adds_exactly_zero(estimator, net):
  model, batch = net(), make_batch()
  params = init(model)
  estimate = jax.jit(estimator(cross_entropy(model), clip=CLIP, denominator=4.0))
  others = batch._replace(weight=batch.weight.at[0].set(0))
  (expected_value, _), expected = estimate(params, others, None, CTX)
  for poison in (np.nan, np.inf):
    bad = batch._replace(x=batch.x.at[0, 1].set(poison))
    (value, (losses, _)), grads = estimate(params, bad, None, CTX)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(B) == 0)
    assert_close(grads, expected, 1e-6)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-6)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_pitfall_90_an_infinite_gradient_with_a_finite_loss_adds_zero(estimator):
  model, batch = Overflowing(), make_batch()
  params = init(model)
  estimate = jax.jit(estimator(cross_entropy(model), clip=CLIP, denominator=4.0))
  bad = batch._replace(x=batch.x.at[2].set(0.0))
  (_, (losses, _)), grads = estimate(params, bad, None, CTX)
  _, expected = estimate(
    params, batch._replace(weight=batch.weight.at[2].set(0)), None, CTX
  )
  assert_close(grads, expected, 1e-6)
  np.testing.assert_array_equal(np.isnan(losses), np.arange(B) == 2)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_a_batch_of_bad_records_gives_a_zero_gradient(estimator):
  model, batch = Dense(), make_batch()
  bad = batch._replace(x=jnp.full_like(batch.x, jnp.nan))
  (value, _), grads = estimator(cross_entropy(model), clip=CLIP, denominator=4.0)(
    init(model), bad, None, CTX
  )
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
  assert float(value) == 0


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(20)(flat(x))))
    return nn.Dense(K)(x)


def keyed(model):
  """Losses whose dropout masks depend on the first row's id, as a classifier's do."""

  def losses_fn(params, batch, ctx):
    key = jax.random.fold_in(ctx.key, batch.index[0])
    return cross_entropy(model)(params, batch, ctx._replace(key=key))

  return losses_fn


def test_dropout_uses_one_mask_in_both_passes():
  model, batch = Dropped(), make_batch()
  params = init(model)
  losses_fn = keyed(model)

  def one(params, i):
    return losses_fn(params, batch, CTX)[0][i]

  gradient = jax.jit(jax.grad(one))
  rows = [gradient(params, i) for i in range(B)]
  norms = [float(optax.tree.norm(row)) for row in rows]
  expected = jax.tree.map(
    lambda *g: sum(min(1, CLIP / n) * a for n, a in zip(norms, g, strict=True)), *rows
  )
  _, grads = jax.jit(ghost(losses_fn, clip=CLIP, denominator=1.0))(
    params, batch, None, CTX
  )
  assert_close(grads, expected)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_a_bad_first_record_does_not_change_the_dropout_of_the_others(estimator):
  model, batch = Dropped(), make_batch()
  params = init(model)
  estimate = jax.jit(estimator(keyed(model), clip=CLIP, denominator=1.0))
  bad = batch._replace(x=batch.x.at[0].set(jnp.nan))
  without = batch._replace(weight=batch.weight.at[0].set(0))
  _, grads = estimate(params, bad, None, CTX)
  assert_close(grads, estimate(params, without, None, CTX)[1], 1e-6)


def test_microbatch_draws_a_mask_per_record():
  model, batch = Dropped(), make_batch()
  same = batch._replace(
    x=batch.x.at[:].set(batch.x[0]), y=batch.y.at[:].set(batch.y[0])
  )
  estimate = jax.jit(microbatch(keyed(model), clip=CLIP, denominator=1.0))
  (_, (losses, _)), _ = estimate(init(model), same, None, CTX)
  assert len(np.unique(losses)) == B


def test_ghost_leaves_a_frozen_second_network_alone(warnings):
  """The second network's parameters are no part of the norm."""
  model, frozen = Dense(), Small()
  frozen_params = init(frozen, 1)
  batch, params = make_batch(), init(model)

  def losses_fn(params, batch, ctx):
    losses, aux = cross_entropy(model)(params, batch, ctx)
    advice = cross_entropy(frozen)(frozen_params, batch, ctx)[1][0]
    return losses - (jnp.exp(advice) * aux[0]).sum(-1), aux

  _, grads = jax.jit(ghost(losses_fn, clip=CLIP, denominator=1.0))(
    params, batch, None, CTX
  )
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 1.0))
  assert not warnings


def test_half_precision_layers_are_measured_in_single_precision(warnings):
  class Half(nn.Module):
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
      x = nn.tanh(nn.Dense(8, dtype=self.dtype)(flat(x)))
      return nn.Dense(K)(x.astype(jnp.float32))

  model, batch = Half(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  _, grads = jax.jit(ghost(losses_fn, clip=CLIP, denominator=B))(
    params, batch, None, CTX
  )
  assert jax.tree.leaves(grads)[0].dtype == jnp.float32
  assert_close(grads, naive(losses_fn, params, batch, CLIP, B), 0.02)
  assert not warnings

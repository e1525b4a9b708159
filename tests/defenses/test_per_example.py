"""Per-example gradients: ghost and microbatch against a loop over the records."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from per_example_cases import (
  CLIP,
  CTX,
  FALLBACK,
  GHOST,
  B,
  Conv,
  Custom,
  Dense,
  DenseOverPositions,
  Difference,
  Dropped,
  Embed,
  K,
  Norms,
  Overflowing,
  Small,
  assert_close,
  clipped,
  cross_entropy,
  flat,
  init,
  keyed,
  make_batch,
  make_views,
  naive,
)

from mixdef.defenses.per_example import ghost, microbatch


@pytest.mark.slow
@pytest.mark.parametrize("net", GHOST, ids=lambda net: net.__name__)
def test_ghost_equals_a_loop_over_the_records(net, warnings):
  weight = [1, 1, 0, 1, 1, 1]
  model, batch = net(), make_batch(weight)
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  (value, (losses, (log_probs, _))), grads = estimate(params, batch, None, CTX)
  expected = naive(losses_fn, params, batch, CLIP, 4.0)
  assert_close(grads, expected)
  plain, (plain_log_probs, _) = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  np.testing.assert_allclose(log_probs, plain_log_probs, rtol=1e-5)
  assert float(value) == pytest.approx(np.average(plain, weights=weight), rel=1e-5)
  assert not warnings


@pytest.mark.slow
@pytest.mark.parametrize("net", FALLBACK, ids=lambda net: net.__name__)
def test_ghost_hands_over_to_microbatches_with_a_reason(net, warnings):
  model, batch = net(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0, size=4))
  _, grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  estimate(params, batch, None, CTX)
  assert len(warnings) == 1, "logged when traced, not at every step"
  assert "microbatches of 4 are used instead: " in warnings[0]
  assert "instead:  " not in warnings[0], "the layer is named, the whole model too"


def test_a_penalty_on_the_parameters_is_clipped_with_each_record(warnings):
  model, batch = Small(), make_batch()
  params = init(model)

  def losses_fn(params, batch, ctx):
    losses, aux = cross_entropy(model)(params, batch, ctx)
    return losses + sum((leaf**2).sum() for leaf in jax.tree.leaves(params)), aux

  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  _, grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  assert "is used outside a plain leaf module" in warnings[0]


def test_a_parameter_that_nothing_uses_has_no_gradient(warnings):
  model, batch = Small(), make_batch()
  params = {**init(model), "spare": {"kernel": jnp.ones(2)}}
  estimate = jax.jit(clipped(ghost, cross_entropy(model), clip=CLIP, denominator=4.0))
  grads = estimate(params, batch, None, CTX)[1]
  np.testing.assert_array_equal(grads["spare"]["kernel"], [0, 0])
  assert not warnings


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1e4])
def test_no_record_exceeds_its_norm_where_terms_cancel(offset):
  x = offset + np.random.default_rng(0).normal(size=(B, 2, 64))
  model, batch = Difference(), make_batch()._replace(x=jnp.asarray(x, jnp.float32))
  params = model.init(jax.random.key(0), batch.x)["params"]
  estimate = clipped(ghost, cross_entropy(model), clip=CLIP, denominator=1)

  def norm(weight):
    _, grads = estimate(params, batch._replace(weight=weight), None, CTX)
    return optax.tree.norm(grads)

  norms = jax.jit(jax.vmap(norm))(jnp.eye(B))
  assert norms.max() < CLIP * (1 + 1e-4)
  assert offset or norms.min() > CLIP * (1 - 1e-3), "these records are clipped"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 100])
def test_microbatch_equals_a_loop_over_the_records(size):
  model, batch = Small(), make_batch([1, 1, 0, 1, 1, 1])
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(
    clipped(microbatch, losses_fn, clip=CLIP, denominator=4.0, size=size)
  )
  (value, (losses, _)), grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  plain, _ = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  assert float(value) == pytest.approx(np.average(plain, weights=batch.weight))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "views"), [(5, 1), (6, 2)])
def test_a_last_microbatch_that_is_short_counts_no_record_twice(rows, views):
  model = Small()
  batch = make_views(views, [1, 0.5, 1, 1, 1, 1][: B // views])
  batch = jax.tree.map(lambda a: a[:rows], batch)
  params, losses_fn = init(model), cross_entropy(model)
  options = {"clip": CLIP, "denominator": 4.0, "views": views}
  estimate = jax.jit(clipped(microbatch, losses_fn, size=2, **options))
  (_, (losses, (log_probs, _))), grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0, views))
  plain, (plain_log_probs, _) = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  np.testing.assert_allclose(log_probs, plain_log_probs, rtol=1e-5)


GROUPED = [(ghost, n) for n in (Dense, DenseOverPositions, Conv, Norms, Embed, Custom)]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("estimator", "net"), [*GROUPED, (microbatch, Small), (microbatch, Norms)]
)
def test_pitfall_92_the_mean_of_a_records_views_is_clipped(estimator, net, warnings):
  views = 2
  model, batch = net(), make_views(views, [1, 0, 1])
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(
    clipped(estimator, losses_fn, clip=CLIP, denominator=4.0, views=views)
  )
  (value, (losses, (log_probs, _))), grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0, views))
  plain, (plain_log_probs, _) = jax.jit(losses_fn)(params, batch, CTX)
  np.testing.assert_allclose(losses, plain, rtol=1e-5)
  np.testing.assert_allclose(log_probs, plain_log_probs, rtol=1e-5)
  assert float(value) == pytest.approx(np.average(plain, weights=batch.weight))
  assert not warnings


def test_views_survive_the_change_to_microbatches(warnings):
  model, batch = FALLBACK[0](), make_views(3, [1, 1])
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(
    clipped(ghost, losses_fn, clip=CLIP, denominator=4.0, size=1, views=3)
  )
  _, grads = estimate(params, batch, None, CTX)
  assert_close(grads, naive(losses_fn, params, batch, CLIP, 4.0, 3))
  assert len(warnings) == 1


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_no_clipping_gives_the_ordinary_gradient(estimator):
  model, batch = Small(), make_batch()
  params = init(model)
  losses_fn = cross_entropy(model)
  estimate = jax.jit(clipped(estimator, losses_fn, clip=math.inf, denominator=B))
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
  _, grads = jax.jit(clipped(ghost, losses_fn, clip=0.05, denominator=B))(
    params, batch, None, CTX
  )
  assert_close(grads, naive(losses_fn, params, batch, 0.05, B))


@pytest.mark.slow
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
    _, grads = jax.jit(clipped(estimator, losses_fn, clip=CLIP, denominator=B))(
      params, batch, None, CTX
    )
    assert_close(grads, expected)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_vmap_over_models_equals_a_loop(estimator):
  model, batch = Small(), make_batch([1, 0, 1, 1, 1, 1])
  models = [init(model, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
  estimate = clipped(estimator, cross_entropy(model), clip=CLIP, denominator=4.0)
  run = jax.jit(lambda params: estimate(params, batch, None, CTX)[1])
  together = jax.jit(jax.vmap(lambda params: estimate(params, batch, None, CTX)[1]))(
    stacked
  )
  for i, params in enumerate(models):
    assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), run(params))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ghost, microbatch])
@pytest.mark.parametrize("net", [Norms, Conv], ids=lambda net: net.__name__)
def test_pitfall_90_one_bad_record_adds_exactly_zero(estimator, net):
  model, batch = net(), make_batch()
  params = init(model)
  estimate = jax.jit(
    clipped(estimator, cross_entropy(model), clip=CLIP, denominator=4.0)
  )
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
  estimate = jax.jit(
    clipped(estimator, cross_entropy(model), clip=CLIP, denominator=4.0)
  )
  bad = batch._replace(x=batch.x.at[2].set(0.0))
  (_, (losses, _)), grads = estimate(params, bad, None, CTX)
  _, expected = estimate(
    params, batch._replace(weight=batch.weight.at[2].set(0)), None, CTX
  )
  assert_close(grads, expected, 1e-6)
  np.testing.assert_array_equal(np.isnan(losses), np.arange(B) == 2)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_one_bad_view_leaves_its_record_out(estimator):
  model, batch = Small(), make_views(2, [1, 1, 1])
  params = init(model)
  options = {"clip": CLIP, "denominator": 4.0, "views": 2}
  estimate = jax.jit(clipped(estimator, cross_entropy(model), **options))
  bad = batch._replace(x=batch.x.at[1].set(np.nan))
  without = batch._replace(weight=batch.weight.at[:2].set(0))
  (value, (losses, _)), grads = estimate(params, bad, None, CTX)
  (expected_value, _), expected = estimate(params, without, None, CTX)
  np.testing.assert_array_equal(np.isnan(losses), np.arange(B) < 2)
  assert_close(grads, expected, 1e-6)
  assert float(value) == pytest.approx(float(expected_value), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ghost, microbatch])
@pytest.mark.parametrize("net", [Norms, Small], ids=lambda net: net.__name__)
def test_a_batch_of_bad_records_gives_a_zero_gradient(estimator, net):
  model, batch = net(), make_batch()
  bad = batch._replace(x=jnp.full_like(batch.x, jnp.nan))
  estimate = jax.jit(
    clipped(estimator, cross_entropy(model), clip=CLIP, denominator=4.0)
  )
  (value, _), grads = estimate(init(model), bad, None, CTX)
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
  assert float(value) == 0


@pytest.mark.slow
def test_norms_and_sum_see_one_dropout_mask():
  model, batch = Dropped(), make_batch()
  params = init(model)
  losses_fn = keyed(model)

  def one(params, row):
    return losses_fn(params, row, CTX)[0][0]

  gradient = jax.jit(jax.grad(one))
  rows = [
    gradient(params, jax.tree.map(lambda a, i=i: a[i : i + 1], batch)) for i in range(B)
  ]
  norms = [float(optax.tree.norm(row)) for row in rows]
  expected = jax.tree.map(
    lambda *g: sum(min(1, CLIP / n) * a for n, a in zip(norms, g, strict=True)), *rows
  )
  _, grads = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=1.0))(
    params, batch, None, CTX
  )
  assert_close(grads, expected)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_a_bad_first_record_does_not_change_the_dropout_of_the_others(estimator):
  model, batch = Dropped(), make_batch()
  params = init(model)
  estimate = jax.jit(clipped(estimator, keyed(model), clip=CLIP, denominator=1.0))
  bad = batch._replace(x=batch.x.at[0].set(jnp.nan))
  without = batch._replace(weight=batch.weight.at[0].set(0))
  _, grads = estimate(params, bad, None, CTX)
  assert_close(grads, estimate(params, without, None, CTX)[1], 1e-6)


@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_a_record_draws_a_mask_of_its_own(estimator):
  model, batch = Dropped(), make_batch()
  same = batch._replace(
    x=batch.x.at[:].set(batch.x[0]), y=batch.y.at[:].set(batch.y[0])
  )
  estimate = jax.jit(clipped(estimator, keyed(model), clip=CLIP, denominator=1.0))
  (_, (losses, _)), _ = estimate(init(model), same, None, CTX)
  assert len(np.unique(losses)) == B


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ghost, microbatch])
def test_every_view_draws_a_mask_that_norm_and_sum_share(estimator):
  """Clipped to a thousandth, each record's gradient has that norm under one draw."""
  model, batch = Dropped(), make_views(3, [1, 1])
  same = batch._replace(x=jnp.broadcast_to(batch.x[0], batch.x.shape))
  params, losses_fn = init(model), keyed(model)
  tight = clipped(estimator, losses_fn, clip=1e-3, denominator=1.0, views=3)
  (_, (losses, _)), grads = jax.jit(tight)(params, same, None, CTX)
  assert len(np.unique(losses)) == B

  def mean(params, record):
    rows = slice(3 * record, 3 * record + 3)
    return losses_fn(params, jax.tree.map(lambda a: a[rows], same), CTX)[0].mean()

  each = [jax.jit(jax.grad(mean), static_argnums=1)(params, r) for r in range(2)]
  norms = [float(optax.tree.norm(one)) for one in each]
  expected = jax.tree.map(lambda a, b: 1e-3 * (a / norms[0] + b / norms[1]), *each)
  assert_close(grads, expected)


def test_ghost_leaves_a_frozen_second_network_alone(warnings):
  """The second network's parameters are no part of the norm."""
  model, frozen = Dense(), Small()
  frozen_params = init(frozen, 1)
  batch, params = make_batch(), init(model)

  def losses_fn(params, batch, ctx):
    losses, aux = cross_entropy(model)(params, batch, ctx)
    advice = cross_entropy(frozen)(frozen_params, batch, ctx)[1][0]
    return losses - (jnp.exp(advice) * aux[0]).sum(-1), aux

  _, grads = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=1.0))(
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
  _, grads = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=B))(
    params, batch, None, CTX
  )
  assert jax.tree.leaves(grads)[0].dtype == jnp.float32
  assert_close(grads, naive(losses_fn, params, batch, CLIP, B), 0.02)
  assert not warnings

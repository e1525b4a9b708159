"""Penalties, dropout, averages and snapshots in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  DATA,
  KEEP,
  REFERENCE,
  SPEC,
  STEPS_PER_EPOCH,
  K,
  Loop,
  N,
  after,
  assert_same,
  ctx_at,
  in_epoch,
  init,
  learner_of,
  make_log_probs,
  rows_at,
)

from mixdef.defenses import (
  dropout,
  early_stopping,
  ema,
  l1,
  spatial_dropout,
  weight_decay,
)

PARAMS = {
  "kernel": jnp.array([[1.0, -2.0], [0.0, 4.0]]),
  "bias": jnp.array([3.0, -3.0]),
}


def penalty_of(part):
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  return part.grads(zeros, (), in_epoch(0)._replace(variables={"params": PARAMS}))[0]


def test_penalties_add_their_gradient_to_kernels_only():
  decay, sparse = penalty_of(weight_decay(0.1)), penalty_of(l1(0.1))
  np.testing.assert_allclose(decay["kernel"], 0.1 * PARAMS["kernel"])
  np.testing.assert_allclose(sparse["kernel"], [[0.1, -0.1], [0, 0.1]])
  for grads in (decay, sparse):
    np.testing.assert_array_equal(grads["bias"], 0)
  np.testing.assert_allclose(
    penalty_of(weight_decay(0.1, biases=True))["bias"], [0.3, -0.3]
  )


def test_weight_decay_is_the_gradient_of_half_the_squared_norm():
  loss = lambda params: 0.5 * 0.1 * (params["kernel"] ** 2).sum()  # noqa: E731
  expected = jax.grad(loss)(PARAMS)["kernel"]
  np.testing.assert_allclose(penalty_of(weight_decay(0.1))["kernel"], expected)


@pytest.mark.parametrize("part", [weight_decay(0.1), l1(0.1)])
def test_pitfall_76_a_penalty_moves_the_parameters(part):
  plain, penalised = Loop().train(steps=1), Loop(part).train(steps=1)
  kernels = [s.params["Dense_0"]["kernel"] for s in (plain, penalised)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
  biases = [s.params["Dense_0"]["bias"] for s in (plain, penalised)]
  np.testing.assert_allclose(*biases, atol=1e-7)


def test_pitfall_77_penalties_do_not_accumulate():
  """Four steps on a flat loss are four times the same factor."""
  part = weight_decay(0.5)
  params = PARAMS
  for _ in range(4):
    zeros = jax.tree.map(jnp.zeros_like, params)
    ctx = in_epoch(0)._replace(variables={"params": params})
    grads, _ = part.grads(zeros, (), ctx)
    params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
  np.testing.assert_allclose(params["kernel"], PARAMS["kernel"] * 0.95**4, rtol=1e-6)


@pytest.mark.parametrize("part", [dropout(0.5), spatial_dropout(0.5)])
def test_pitfall_85_dropout_is_off_at_query_time_and_differs_per_model(part):
  loop = Loop(part)
  state = loop.train(steps=1)
  answers = loop.learner.predict(state, DATA.x)
  assert_same(answers, loop.learner.predict(state, DATA.x))
  same_params = Loop().learner.predict(state._replace(defense={}), DATA.x)
  assert_same(answers, same_params, 1e-6)
  other = state._replace(key=jax.random.key(9))
  a, b = (loop.jitted(s, DATA, rows_at(8), ctx_at(8))[0].params for s in (state, other))
  assert not np.allclose(a["Dense_1"]["kernel"], b["Dense_1"]["kernel"])


def test_a_network_without_the_field_is_refused():
  class Bare(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(K)(x)

  with pytest.raises(ValueError, match="dropout sets the field 'dropout', which Bare"):
    learner_of(dropout(), net=Bare())


def test_ema_equals_a_naive_loop_and_covers_running_statistics():
  part = ema(0.3)
  trees = [
    {"params": jnp.float32(i), "batch_stats": {"mean": jnp.float32(10 * i)}}
    for i in range(6)
  ]
  state = part.init(None, SPEC._replace(variables=trees[0]))
  expected = 0.0
  for t, tree in enumerate(trees[1:]):
    ctx = in_epoch(0)._replace(step=jnp.int32(t), variables=tree)
    state = part.update(state, ctx)
    d = min(0.3, (1 + t) / (10 + t))
    expected = d * expected + (1 - d) * (t + 1)
  np.testing.assert_allclose(state["params"], expected, rtol=1e-6)
  np.testing.assert_allclose(state["batch_stats"]["mean"], 10 * expected, rtol=1e-6)


def answers_of(params):
  """What a network without release hooks answers with these parameters."""
  plain = Loop().learner
  return plain.predict(init(plain)._replace(params=params), DATA.x)


def test_ema_is_what_is_released():
  loop, plain = Loop(ema(0.9)), Loop()
  state, undefended = loop.train(), plain.train()
  assert_same(state.params, undefended.params, 1e-6)
  for raw in (False, True):  # raw skips output hooks, not the release of weights
    released = loop.learner.predict(state, DATA.x, raw=raw)
    assert_same(released, answers_of(state.defense["ema"]["params"]), 1e-6)
    assert np.abs(released - answers_of(state.params)).max() > 1e-3


def epochs_of(loop, epochs):
  """Train from epoch 0; return the state and the parameters after each epoch."""
  state, after = init(loop.learner), []
  for i in range(epochs * STEPS_PER_EPOCH):
    state, _ = loop.jitted(state, DATA, rows_at(i), ctx_at(i))
    if i % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1:
      after.append(state)
  return state, after


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "epochs"), [(1, 4), (3, 4), (4, 4), (9, 4)])
def test_early_stopping_releases_the_end_of_its_epoch_or_the_last(epoch, epochs):
  loop = Loop(early_stopping(epoch))
  state, after = epochs_of(loop, epochs)
  chosen = after[min(epoch, epochs) - 1]
  released = loop.learner.predict(state, DATA.x)
  assert_same(released, answers_of(chosen.params), 1e-6)
  last = answers_of(state.params)
  assert (np.abs(released - last).max() > 1e-4) == (epoch < epochs)


def test_early_stopping_keeps_the_best_epoch_until_its_patience_ends():
  part = early_stopping(patience=2)
  state = part.init(None, SPEC._replace(variables={"w": jnp.float32(-1)}))
  best = []
  levels = [0.5, np.nan, 0.6, 0.7, 0.4, 0.2, 0.9]  # two epochs in a row without gain
  for epoch, level in enumerate([0.4, 0.3, *levels]):
    confidence = jnp.where(REFERENCE, level, 0.01)[:, None]
    log_probs = jnp.log(jnp.where(jax.nn.one_hot(DATA.y, K) > 0, confidence, 0.1))
    ctx = after(in_epoch(epoch), log_probs, variables={"w": jnp.float32(epoch)})
    state = part.epoch(state, ctx)
    best.append(int(part.release_params(None, state, ctx)["w"]))
  # NaN is one bad epoch; 0.4 and 0.2 use the patience up, so 0.9 comes too late.
  assert best == [0, 0, 2, 2, 4, 5, 5, 5, 5]


def test_pitfall_78_best_epoch_reads_reference_rows_only():
  part = early_stopping(patience=2)
  state = part.init(None, SPEC._replace(variables={"w": jnp.float32(0)}))
  log_probs = make_log_probs(N)
  other = jnp.where(REFERENCE[:, None], log_probs, -7.0)
  given = {"variables": {"w": jnp.float32(1)}}
  a, b = (
    part.epoch(state, after(in_epoch(0), answers, **given))
    for answers in (log_probs, other)
  )
  assert_same(a, b)
  assert part.traits.needs_auxiliary
  assert not early_stopping(3).traits.needs_auxiliary
  assert not bool((KEEP & REFERENCE).any())

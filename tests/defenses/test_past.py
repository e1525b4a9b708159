"""Privacy-aware sparsity tuning: the formula, its second phase, and who is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  DATA,
  Loop,
  assert_same,
  in_epoch,
  init,
  make_batch,
)

from mixdef import models
from mixdef.core import chain
from mixdef.core.estimators import mean_value_and_grad
from mixdef.data import Dataset
from mixdef.defenses import dp_sgd, l1, past
from mixdef.defenses.past import sensitivity
from mixdef.learners import classifier
from mixdef.training import fit, fit_many

WEIGHT = (1, 1, 1, 0, 0, 0)
REFERENCE = (0, 0, 0, 1, 1, 0)  # the last row is padding


def rows():
  batch = make_batch(weight=WEIGHT)
  return batch._replace(auxiliary=jnp.array(REFERENCE, jnp.float32))


def make_params(seed=0):
  """Two linear layers, and one that no loss reads."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.array(rng.normal(size=shape), jnp.float32)

  return {
    "in": {"kernel": draw(5, 4), "bias": draw(4)},
    "out": {"kernel": draw(4, 3), "bias": draw(3)},
    "idle": {"scale": draw(4)},
  }


def losses_fn(params, batch, ctx):
  hidden = batch.x @ params["in"]["kernel"] + params["in"]["bias"]
  logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
  log_probs = jax.nn.log_softmax(logits)
  return -(batch.y * log_probs).sum(-1), log_probs


def naive_gradient(params, batch, row):
  """One record's loss and gradient, in float64."""
  p = jax.tree.map(np.float64, params)
  x, y = np.float64(batch.x[row]), np.float64(batch.y[row])
  hidden = x @ p["in"]["kernel"] + p["in"]["bias"]
  logits = hidden @ p["out"]["kernel"] + p["out"]["bias"]
  probs = np.exp(logits) / np.exp(logits).sum()
  above = p["out"]["kernel"] @ (probs - y)
  grads = {
    "in": {"kernel": np.outer(x, above), "bias": above},
    "out": {"kernel": np.outer(hidden, probs - y), "bias": probs - y},
    "idle": {"scale": np.zeros(4)},
  }
  return -np.log((probs * y).sum()), grads


def naive_past(params, batch, coefficient):
  """The gradient of the mean loss and of the penalty, gamma a constant."""
  members = [naive_gradient(params, batch, i) for i in (0, 1, 2)]
  others = [naive_gradient(params, batch, i) for i in (3, 4)]
  gap = np.mean([loss for loss, _ in members]) - np.mean([loss for loss, _ in others])
  total = {}
  for layer, leaves in params.items():
    mean, of_gap = {}, {}
    for name in leaves:
      mean[name] = np.mean([grads[layer][name] for _, grads in members], axis=0)
      other = np.mean([grads[layer][name] for _, grads in others], axis=0)
      of_gap[name] = np.sign(gap) * (mean[name] - other)
    size = sum(leaf.size for leaf in leaves.values())
    amount = sum(np.abs(g).sum() for g in of_gap.values())
    total[layer] = {}
    for name, theta in leaves.items():
      gamma = size * np.abs(of_gap[name]) / amount if amount else np.ones(theta.shape)
      total[layer][name] = mean[name] + coefficient * gamma * np.sign(theta)
  return total


def estimate(part, params, batch, ctx=None):
  run = part.value_and_grad(losses_fn)
  return jax.jit(run)(params, batch, (), in_epoch(5) if ctx is None else ctx)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_a_loop_over_the_records(seed):
  params, batch = make_params(seed), rows()
  (value, (losses, _)), grads = estimate(past(0.3, start=0.5), params, batch)
  expected = naive_past(params, batch, 0.3)
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5),
    *(grads, expected),
  )
  np.testing.assert_allclose(losses, losses_fn(params, batch, None)[0], rtol=1e-6)
  # The penalty is no part of the value: curves compare with other trainings.
  np.testing.assert_allclose(value, losses[:3].mean(), rtol=1e-6)


def test_a_layer_without_sensitivity_is_penalised_evenly():
  params = make_params()
  _, grads = estimate(past(0.3, start=0.0), params, rows())
  expected = 0.3 * np.sign(params["idle"]["scale"])
  np.testing.assert_allclose(grads["idle"]["scale"], expected, rtol=1e-6)


def test_without_a_gap_it_is_l1():
  params, batch = make_params(), rows()
  alone = batch._replace(weight=batch.auxiliary)  # the same rows on both sides
  _, grads = estimate(past(0.3, start=0.0), params, alone)
  _, plain = mean_value_and_grad(losses_fn)(params, alone, (), in_epoch(5))
  expected, _ = l1(0.3, biases=True).grads(
    plain, (), in_epoch(5)._replace(variables={"params": params})
  )
  assert_same(grads, expected, 1e-5)


def test_sensitivity_is_relative_to_the_innermost_module():
  gradient = {"block": {"a": {"w": jnp.array([1.0, -3.0])}, "b": {"w": jnp.ones(2)}}}
  gamma = sensitivity(gradient)["block"]
  np.testing.assert_allclose(gamma["a"]["w"], [0.5, 1.5])
  np.testing.assert_allclose(gamma["b"]["w"], [1.0, 1.0])


@pytest.mark.parametrize(("epoch", "acts"), [(99, False), (100, True), (149, True)])
def test_the_default_schedule_is_100_plain_epochs_of_150(epoch, acts):
  params, batch, ctx = make_params(), rows(), in_epoch(epoch, epochs=150)
  _, grads = estimate(past(0.3), params, batch, ctx)
  plain = jax.jit(mean_value_and_grad(losses_fn))
  same = jax.tree.map(jnp.array_equal, grads, plain(params, batch, (), ctx)[1])
  assert all(jax.tree.leaves(same)) != acts


@pytest.mark.slow
def test_training_before_the_start_is_plain_to_the_last_bit():
  # The harness trains epochs 3 and 4 of 8, so two thirds are not over.
  assert_same(Loop(past(0.3)).train().params, Loop().train().params)
  late = Loop(past(0.3, start=0.5)).train().params  # epoch 4 is penalised
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), late, Loop().train().params)
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_pitfall_60_padded_rows_add_nothing():
  params, batch = make_params(), rows()
  other = batch._replace(x=batch.x.at[5].set(50.0), y=batch.y.at[5].set([0, 1, 0]))
  part = past(0.3, start=0.0)
  assert_same(estimate(part, params, other)[1], estimate(part, params, batch)[1])


@pytest.mark.slow
def test_pitfall_79_out_records_are_not_read_and_reference_rows_only_weigh():
  part = past(0.3, start=0.0)
  loop = Loop(part)
  trained = loop.train()
  out = DATA._replace(x=DATA.x.at[8:10].set(100.0))
  assert_same(loop.train(data=out), trained)
  # The control: auxiliary rows do steer, but through the penalty alone.
  reference = DATA._replace(x=DATA.x.at[10:].multiply(3.0))
  moved = jax.tree.map(jnp.array_equal, loop.train(data=reference), trained).params
  assert not all(jax.tree.leaves(moved))
  no_penalty = Loop(past(0.0, start=0.0))
  assert_same(no_penalty.train(data=reference), no_penalty.train())


@pytest.mark.slow
def test_the_coefficient_may_differ_between_vmapped_models():
  coefficients = jnp.array([0.0, 0.1, 0.5])
  state = init(Loop(past()).learner)

  def steps(coefficient):
    loop = Loop(past(coefficient, start=0.0))
    return loop.run(state, steps=2, step=loop.step).params

  together = jax.jit(jax.vmap(steps))(coefficients)
  for i, coefficient in enumerate(coefficients.tolist()):
    alone = Loop(past(coefficient, start=0.0)).run(state, steps=2).params
    assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-5)


def noisy_labels(seed=0):
  """Forty records that a linear model can only remember."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(60, 24)).astype(np.float32)
  data = Dataset.from_arrays(x, rng.integers(3, size=60), num_classes=3)
  return data.with_auxiliary(20, seed=0)


@pytest.mark.slow
def test_it_narrows_the_gap_between_members_and_others():
  data = noisy_labels()
  members = ~data.auxiliary & (np.arange(60) % 2 == 0)

  def gap(part):
    learner = classifier(models.mlp(num_classes=3), optax.adam(1e-2), part)
    run = fit_many(learner, data, members[None], epochs=30, batch_size=20)
    losses = -np.take_along_axis(run.log_probs(data.x)[0], data.y[:, None], -1)[:, 0]
    return losses[~members & ~data.auxiliary].mean() - losses[members].mean()

  undefended = gap(chain())
  assert undefended > 1, "nothing leaks, so nothing can be shown"
  assert gap(past(0.01, start=0.5)) < 0.5 * undefended


@pytest.mark.slow
def test_training_reports_plain_losses_and_turns_at_the_start():
  data = noisy_labels()
  learner = classifier(models.mlp(8, num_classes=3), optax.sgd(0.1), past(0.1))
  never = classifier(models.mlp(8, num_classes=3), optax.sgd(0.1), past(0.1, start=1.0))
  curves = [
    [row["loss"] for row in fit(one, data, epochs=6, batch_size=8).history]
    for one in (learner, never)
  ]
  assert curves[0][:4] == curves[1][:4]
  assert curves[0][4] != curves[1][4]


@pytest.mark.slow
def test_it_is_refused_without_reference_rows_and_with_per_example_clipping():
  learner = classifier(models.mlp(8, num_classes=3), optax.sgd(0.1), past())
  x = np.zeros((6, 4), np.float32)
  data = Dataset.from_arrays(x, np.arange(6) % 3, num_classes=3)
  with pytest.raises(ValueError, match="with_auxiliary"):
    fit(learner, data, epochs=1, batch_size=3)
  with pytest.raises(ValueError, match="gradient estimators, not dp_sgd and past"):
    chain(dp_sgd(), past())

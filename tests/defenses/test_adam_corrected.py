"""adam_corrected: moments without the variance of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli import texts
from mixdef.core.chaining import chain
from mixdef.core.hooks import Ctx, Data, Rows, Spec
from mixdef.defenses import adam_corrected
from mixdef.models import mlp


def run(optimizer, gradients, **known):
  """The updates of all gradients [T,D], and the last state."""

  def step(state, gradient):
    updates, state = optimizer.update(gradient, state, **known)
    return state, updates

  state = optimizer.init(gradients[0])
  state, updates = jax.jit(lambda: jax.lax.scan(step, state, gradients))()
  return np.asarray(updates), state[0]


def noised(steps, signal, std, seed=0):
  noise = jax.random.normal(jax.random.key(seed), (steps, len(signal)))
  return jnp.asarray(signal) + std * noise


def test_noise_alone_leaves_no_second_moment():
  std, size = 0.03, 400
  gradients = noised(5000, np.zeros(size), std)
  _, state = run(adam_corrected(1.0, noise_std=std), gradients)
  phi = np.float64(std) ** 2
  left = np.asarray(state.nu, np.float64) / (1 - 0.999**5000) - phi
  error = left.std() / np.sqrt(size)
  assert abs(left.mean()) < 3 * error
  assert 0.025 * phi < left.std() < 0.04 * phi, "0.03 phi, as documented"
  assert np.abs(phi - error) > 3 * error, "without the correction this would fail"


def test_without_noise_it_is_adam():
  gradients = noised(50, np.linspace(-1, 1, 9), 0.5)
  ours, _ = run(adam_corrected(0.1, noise_std=0.0, b1=0.8), gradients)
  theirs = optax.adam(0.1, b1=0.8)
  state, expected = theirs.init(gradients[0]), []
  for gradient in gradients:
    update, state = theirs.update(gradient, state)
    expected.append(update)
  np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-8)


def test_steps_are_those_of_a_loop():
  """In numpy, with a noise that changes between the steps."""
  stds = np.array([0.5, 0.1, 0.3, 0.2, 0.4] * 8)
  gradients = np.array(noised(40, [0.0, 0.2, -1.0], 1.0)) * stds[:, None]
  optimizer = adam_corrected(0.1, b1=0.8, b2=0.9, floor=0.2)
  state = optimizer.init(gradients[0])
  m = v = phi = 0.0
  for t, (g, std) in enumerate(zip(gradients, stds, strict=True), 1):
    update, state = optimizer.update(jnp.asarray(g), state, noise_std=jnp.float32(std))
    m = 0.8 * m + 0.2 * g
    v = 0.9 * v + 0.1 * g**2
    phi = 0.9 * phi + 0.1 * std**2
    fair = (v - phi) / (1 - 0.9**t), 0.2 * phi / (1 - 0.9**t)
    expected = -0.1 * m / (1 - 0.8**t) / (np.sqrt(np.maximum(*fair)) + 1e-8)
    np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_a_weak_signal_gets_the_step_of_a_strong_one():
  """Adam's step under noise is that of SGD: proportional to the signal."""
  gradients = noised(4000, [0.3] * 50 + [3.0] * 50, 1.0)

  def ratio(optimizer):
    steps = run(optimizer, gradients)[0][-2000:].mean(0)
    return steps[:50].mean() / steps[50:].mean()

  assert ratio(optax.chain(optax.scale_by_adam())) < 0.35
  assert ratio(adam_corrected(1.0, noise_std=1.0)) > 0.85


@pytest.mark.parametrize("text", ["dp_sgd(2.0, 0.5)", "l1(0.1)|dp_sgd(2.0, 0.5)"])
def test_a_chain_states_its_noise(text):
  spec = Spec(jnp.zeros((1, 2)), None, None, 100, 100, 3, 50, 5, 2)
  defense = chain(text)
  state = defense.init(jax.random.key(0), spec)
  assert float(defense.noise_std(state)) == pytest.approx(2 * 0.5 / 50)
  assert chain("l1(0.1)").noise_std is None


def test_without_noise_to_correct_for_it_is_refused():
  data = mixdef.Dataset.from_arrays(np.zeros((8, 2)), np.arange(8) % 2)
  learner = mixdef.classifier(mlp(2, num_classes=2), adam_corrected(0.1))
  with pytest.raises(ValueError, match=r"no noise to correct for: use dp_sgd"):
    mixdef.fit(learner, data, epochs=1)
  with pytest.raises(ValueError, match="adam_corrected: floor is -1"):
    adam_corrected(0.1, floor=-1)
  texts.optimizer("adam_corrected(floor=0.1)", 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["flat", "adaptive"])
def test_a_training_hands_it_the_noise_of_every_step(rule):
  spec = Spec(jnp.zeros((1, 2)), None, None, 20, 20, 2, 10, 5, 2)
  rng = np.random.default_rng(0)
  x, y = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32), jnp.arange(20) % 2
  data = Data(x, y, jnp.zeros(20, bool))
  rows = Rows(jnp.arange(10), jnp.ones(10), jnp.zeros(10))
  text = f"dp_sgd(0.8, 0.5, clipping='{rule}')"

  def train(optimizer, steps):
    learner = mixdef.classifier(mlp(2, num_classes=2), optimizer, text)
    state = learner.init(jax.random.key(0), spec)
    step = jax.jit(learner.step)
    for t in range(steps):
      ctx = Ctx(jax.random.key(t), jnp.int32(t), 0, 2, 5, 10)
      state = step(state, data, rows, ctx)[0]
    return state

  start = train(adam_corrected(0.1), 0)
  std = float(chain(text).noise_std(start.defense))
  own, given = (train(adam_corrected(0.1, std), 3) for std in (None, std))
  gap = max(
    float(jnp.abs(a - b).max())
    for a, b in zip(*map(jax.tree.leaves, (own.params, given.params)), strict=True)
  )
  # The noise of adaptive clipping moves with its norm.
  assert gap < 1e-6 if rule == "flat" else gap > 1e-6

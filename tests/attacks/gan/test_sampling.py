import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generator_cases import CLASSES, LATENT, memorised, recall

from mixdef.attacks.gan._sampling import (
  conditions,
  generate,
  grid,
  interpolations,
  samples,
)


@pytest.fixture
def run():
  return memorised()[0]


def test_a_smaller_set_is_the_beginning_of_a_larger_one(run):
  x, labels = samples(run, 700, seed=3)
  for count in (1, 255, 257):
    some, few = samples(run, count, seed=3)
    np.testing.assert_array_equal(some, x[:count])
    np.testing.assert_array_equal(few, labels[:count])
  assert x.shape == (700, 6)
  assert x.dtype == np.float32


def test_seeds_differ_and_repeat(run):
  x, labels = samples(run, 50, seed=0)
  np.testing.assert_array_equal(samples(run, 50, seed=0)[0], x)
  other = samples(run, 50, seed=1)
  assert not np.allclose(other[0], x)
  assert (other[1] != labels).any()


def test_labels_are_uniform_and_independent_of_the_latents(run):
  """6000 fair coins: 5 sigma of the share are .032."""
  x, labels = samples(run, 6000)
  assert labels.mean() == pytest.approx(0.5, abs=0.032)
  apart = x[labels == 0].mean(0) - x[labels == 1].mean(0)
  # The generator ignores labels here, and the means of 3000 differ by .03 at most.
  np.testing.assert_allclose(apart, 0, atol=0.05)


def test_latents_are_standard_normal(run):
  """A generator that returns its latents shows them."""
  learner = run.source._replace(generate=lambda state, z, y: z)
  z, _ = samples(dataclasses.replace(run, source=learner), 5000)
  np.testing.assert_allclose(np.cov(z.T), np.eye(LATENT), atol=0.1)
  np.testing.assert_allclose(z.mean(0), 0, atol=0.08)


def test_conditions_reach_the_generator(run):
  params = {**run.state.params, "shift": jnp.float32(2.0)}
  run = dataclasses.replace(run, state=run.state._replace(params=params))
  labels = np.array([0, 1, 1, 0])
  made = generate(run, labels, seed=5)
  soft = generate(run, np.eye(CLASSES)[labels], seed=5)
  np.testing.assert_array_equal(made, soft)
  flipped = generate(run, 1 - labels, seed=5)
  assert (np.abs(made - flipped).max(1) > 1e-3).all()


def test_grid_is_in_class_order_and_shares_latents(run):
  params = {**run.state.params, "shift": jnp.float32(2.0)}
  run = dataclasses.replace(run, state=run.state._replace(params=params))
  made = grid(run, 3, seed=4)
  assert made.shape == (CLASSES, 3, 6)
  for label in range(CLASSES):
    alone = generate(run, np.full(3, label), seed=4)
    np.testing.assert_allclose(made[label], alone, atol=1e-6)


def test_interpolations_go_along_an_arc_between_two_latents(run):
  learner = run.source._replace(generate=lambda state, z, y: z)
  z = interpolations(dataclasses.replace(run, source=learner), 7, seed=2)
  assert z.shape == (CLASSES, 7, LATENT)
  np.testing.assert_array_equal(z[0], z[1])
  ends = generate(dataclasses.replace(run, source=learner), [0, 0], seed=2)
  np.testing.assert_allclose(z[0, [0, -1]], ends, atol=1e-5)
  lengths = np.linalg.norm(z[0], axis=1)
  np.testing.assert_allclose(np.diff(lengths, 2), 0, atol=1e-5)
  unit = z[0] / lengths[:, None]
  turns = np.arccos((unit[1:] * unit[:-1]).sum(1))
  np.testing.assert_allclose(turns, turns[0], atol=1e-3)


def test_what_cannot_be_sampled_is_named(run):
  silent = dataclasses.replace(run, source=run.source._replace(generate=None))
  with pytest.raises(
    ValueError, match="memory does not generate records; pass a trained GAN"
  ):
    samples(silent, 3)
  with pytest.raises(ValueError, match="count=0 draws no samples"):
    samples(run, 0)
  with pytest.raises(ValueError, match="pass at least 2"):
    interpolations(run, 1)
  for y in ([0, CLASSES], [0.5, 0.5], [], [[0.2, 0.3, 0.5]]):
    with pytest.raises(ValueError, match=r"pass labels int \[M\] of 0 to 1"):
      conditions(run, y)
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, run.state.params)
  broken = dataclasses.replace(run, state=run.state._replace(params=broken))
  with pytest.raises(ValueError, match="not finite because it diverged"):
    samples(broken, 3)


def test_the_sample_of_a_latent_is_the_generators_own(run):
  made = generate(run, np.zeros(300, int), seed=1)
  learner = run.source._replace(generate=lambda state, z, y: z)
  z = generate(dataclasses.replace(run, source=learner), np.zeros(300, int), seed=1)
  y = jnp.tile(jnp.array([1.0, 0.0]), (300, 1))
  np.testing.assert_allclose(made, recall(run.state, z, y), atol=1e-5)

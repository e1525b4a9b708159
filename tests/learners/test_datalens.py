"""DataLens: the votes, their count, and what the generator makes of them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  NETWORKS,
  SGD,
  changed,
  critic_by_hand,
  ctx_at,
  descended,
  device,
  generator_by_hand,
  rows_of,
  same,
  start,
  take_row,
  train,
)

from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.defenses import accounting
from mixdef.learners import datalens
from mixdef.learners._gan import gather, latents, public_fakes
from mixdef.learners.datalens import agreed_direction, top_signs

TEACHERS, FAKES, TOP = 3, 4, 2
gan = functools.partial(
  *(datalens, NETWORKS, SGD),
  teachers=TEACHERS,
  fakes=FAKES,
  top=TOP,
  noise=0.0,
  threshold=0.5,
  critic_steps=1,
  warm_epochs=1,
)
ROWS = jax.tree.map(
  lambda *leaves: jnp.concatenate(leaves), *(rows_of(5, first=f) for f in (0, 8, 16))
)
STEPS = 2


@pytest.mark.slow
def test_only_the_largest_entries_vote():
  gradient = jnp.array([0.1, -3.0, 0.0, 2.0, -0.5])
  votes = top_signs(gradient, jax.random.key(0), top=2, largest=1e-5)
  np.testing.assert_array_equal(votes, [0, -1, 0, 1, 0])


def signs(gradient, largest, draws=2000):
  keys = jax.random.split(jax.random.key(1), draws)
  compress = functools.partial(top_signs, top=len(gradient), largest=largest)
  return jax.vmap(compress, (None, 0))(jnp.asarray(gradient), keys)


@pytest.mark.slow
def test_pitfall_107_signs_have_the_probability_of_the_formula_and_saturate():
  gradient = [0.6, -0.2, 0.0, -2.0]
  for largest in (1.0, 1e9):
    bound = min(2.0, largest)
    expected = [min(1, max(0, 0.5 + g / (2 * bound))) for g in gradient]
    found = (signs(gradient, largest) > 0).mean(0)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / 2000))
    assert found[3] == 0  # beyond the bound, or at it, the sign is certain


@pytest.mark.slow
def test_pitfall_107_each_teacher_has_a_scale_of_its_own():
  gradient = np.array([0.3, -1.0])
  one, small = (signs(scale * gradient, 1e9) for scale in (1.0, 1e-3))
  np.testing.assert_array_equal(one, small)


def test_a_teacher_without_a_gradient_or_a_finite_one_is_no_failure():
  assert set(np.unique(signs([0.0, 0.0], 1.0))) == {-1, 1}
  np.testing.assert_array_equal(signs([np.nan, 1.0], 1.0), 0)


@pytest.mark.slow
def test_directions_are_those_that_more_than_the_threshold_agree_on():
  votes = jnp.array([[1, 1, -1, 0.0], [1, -1, -1, 0], [1, 0, -1, 1], [1, 1, 0, 1]])
  key = jax.random.key(0)
  found = agreed_direction(votes, key, noise=0.0, threshold=0.5)
  np.testing.assert_array_equal(found, [1, 0, -1, 0])  # a sum of 2 is not above 2
  noisy = agreed_direction(jnp.zeros((4, 4000)), key, noise=8.0, threshold=0.5)
  # P(|N(0, 8^2)| > 2) = 0.8026
  assert abs(noisy).mean() == pytest.approx(0.8026, abs=5 * 0.4 / np.sqrt(4000))


@pytest.fixture(scope="module")
def states():
  """Two steps of the warm epoch, then one with the generator's."""
  made = [start(gan(), epochs=4)]
  step = jax.jit(gan().step)
  for i in range(3):
    ctx = ctx_at(i, steps_per_epoch=STEPS)
    made.append(step(made[-1], device(DATA), ROWS, ctx)[0])
  return made


@pytest.mark.slow
def test_the_generator_waits_for_the_warm_epochs(states):
  moves = [
    not same(a.params["g"], b.params["g"]) for a, b in itertools.pairwise(states)
  ]
  assert moves == [False, False, True]


@pytest.mark.slow
def test_teachers_descend_their_cross_entropy(states):
  before, after, ctx = states[0], states[1], ctx_at(0, steps_per_epoch=STEPS)
  for t in range(TEACHERS):
    own = jax.tree.map(lambda leaf, t=t: leaf.reshape(TEACHERS, -1)[t], ROWS)
    batch = gather(device(DATA), own, CLASSES)
    z = latents(row_keys(ctx.key, jnp.arange(TEACHERS))[t], batch.index, 3)

    def loss(d, batch=batch, z=z):
      total = 0.0
      for i in range(5):
        x, y = batch.x[i], batch.y[i]
        fake = generator_by_hand(before.params["g"], z[i], y)
        total -= jnp.log(jax.nn.sigmoid(critic_by_hand(d, x, y)))
        total -= jnp.log(1 - jax.nn.sigmoid(critic_by_hand(d, fake, y)))
      return total / 5

    d = take_row(before.params["d"], t)
    expected = descended(d, jax.grad(loss)(d))
    assert same(take_row(after.params["d"], t), expected, atol=1e-5)


@pytest.mark.slow
def test_the_generator_steps_towards_what_the_teachers_agree_on(states):
  """Gradients far above `largest`: their signs are certain, so nothing is random."""
  before, after = states[2:]
  key = fold_in_name(ctx_at(2, steps_per_epoch=STEPS).key, "generator")
  z, y = public_fakes(NETWORKS, key, FAKES)
  g = before.params["g"]
  targets, agreed = [], 0
  for i in range(FAKES):
    fake = generator_by_hand(g, z[i], y[i])
    total = np.zeros(len(fake))
    for t in range(TEACHERS):
      d = take_row(after.params["d"], t)
      slope = jax.grad(
        lambda x, d=d, i=i: jnp.log(jax.nn.sigmoid(critic_by_hand(d, x, y[i])))
      )(fake)
      largest = np.argsort(-np.abs(slope))[:TOP]
      total[largest] += np.sign(np.asarray(slope)[largest])
    direction = np.sign(total) * (np.abs(total) > 0.5 * TEACHERS)
    agreed += np.abs(direction).sum()
    targets.append(fake + 1e-3 * direction)

  def loss(g):
    fakes = [generator_by_hand(g, z[i], y[i]) for i in range(FAKES)]
    return sum(((a - b) ** 2).sum() for a, b in zip(targets, fakes, strict=True))

  assert agreed  # else the step would be none
  expected = descended(g, jax.grad(loss)(g))
  assert same(after.params["g"], expected, atol=1e-7)
  assert not same(g, expected, atol=1e-6)


@pytest.mark.slow
def test_pitfall_104_a_teacher_never_sees_another_chunk(states):
  ctx = ctx_at(0, steps_per_epoch=STEPS)
  other, _ = jax.jit(gan().step)(states[0], device(changed(DATA, [9])), ROWS, ctx)
  kept = [
    same(take_row(states[1].params["d"], t), take_row(other.params["d"], t))
    for t in range(TEACHERS)
  ]
  assert kept == [True, False, True]
  assert same(states[1].params["g"], other.params["g"])


@pytest.mark.slow
def test_epsilon_counts_every_fake_with_all_signs_of_a_teacher_turned():
  learner = gan(noise=30.0)
  sizes = {"epochs": 3, "batch_size": 4}
  runs = train(learner, **sizes)
  # Two epochs of two steps of 4 fakes; two teachers differ by 2 in each of 2 entries.
  expected = accounting.epsilon(
    30 / np.sqrt(2 * 2**2), sampling_probability=1.0, steps=16, delta=1e-5
  )
  stated = {"epsilon": expected, "delta": 1e-5}
  said = runs[0].guarantee
  assert {name: said[name] for name in stated} == pytest.approx(stated, rel=1e-5)
  side_by_side = train(learner, **sizes, strategy="vmap")
  assert same(runs.states.params, side_by_side.states.params, atol=1e-5)
  assert np.isinf(start(gan(), epochs=4).defense["datalens"]["epsilon"])


def test_official_charge_is_that_of_two_root_k():
  """PATE charges order / s^2 for s = noise / sqrt(2k), which is 4k / (2 noise^2)."""
  k, noise, order = 200, 5000.0, 7
  official = order / (noise / np.sqrt(2 * k)) ** 2
  assert order * (2 * np.sqrt(k)) ** 2 / (2 * noise**2) == pytest.approx(official)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"teachers": 0}, "teachers is 0"),
    ({"top": 7}, "top is 7, but a record has 6 numbers"),
    ({"noise": -1.0}, "noise is -1.0"),
    ({"noise": jnp.ones(())}, "noise cannot be swept"),
    ({"threshold": 1.5}, "threshold is 1.5"),
    ({"largest": 0.0}, "largest is 0.0"),
    ({"step_size": 0.0}, "step_size is 0.0"),
    ({"delta": 0.0}, "delta is 0.0"),
    ({"warm_epochs": 1.5}, "warm_epochs is 1.5"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    gan(**options)


@pytest.mark.slow
def test_trainings_without_a_step_of_the_generator_are_refused():
  with pytest.raises(ValueError, match="the generator takes no step"):
    start(gan(), epochs=1)

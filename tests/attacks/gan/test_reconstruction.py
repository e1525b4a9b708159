import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from generator_cases import leak, made_by, span, spanned, table

from mixdef.attacks.gan import _latent_search
from mixdef.attacks.gan.reconstruction import (
  Perceptual,
  gan_leaks_partial_black_box,
  gan_leaks_white_box,
  reconstruction_losses,
)

ATTACKS = (
  functools.partial(gan_leaks_white_box, steps=80),
  functools.partial(gan_leaks_partial_black_box, steps=40),
)
BOWL = np.float32([1.0, 10.0, 100.0])


def bowl(z, centre):
  """A narrow valley, of which the reconstruction is three times the objective."""
  value = (BOWL * (z - centre) ** 2).sum(1)
  return value, 3 * value


def test_adam_is_optax_on_each_row_alone():
  centre = np.float32([[1, 2, 3], [-1, 0, 1]])
  met = _latent_search.adam(
    lambda z: bowl(z, centre), jnp.zeros((2, 3)), steps=8, rate=0.5
  )
  for row in range(2):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.5, 8))
    z = jnp.zeros((1, 3))
    state, values = optimizer.init(z), []
    for _ in range(8):
      values.append(bowl(z, centre[row])[0][0])
      slope = jax.grad(lambda z, row=row: bowl(z, centre[row])[0].sum())(z)
      updates, state = optimizer.update(slope, state, z)
      z = optax.apply_updates(z, updates)
    values.append(bowl(z, centre[row])[0][0])
    np.testing.assert_allclose(met.objective[row], min(values), rtol=1e-5)
    np.testing.assert_allclose(met.reconstruction[row], 3 * min(values), rtol=1e-5)


def test_lbfgs_descends_each_row_by_a_solver_of_its_own():
  centre = np.float32([[1, 2, 3], [-1, 0, 1], [50, 50, 50]])
  search = jax.jit(lambda c: _latent_search.lbfgs(bowl, 0 * c, c, steps=12))
  met = search(centre)
  np.testing.assert_allclose(met.objective, 0, atol=1e-5)
  alone = search(np.repeat(centre[:1], 3, 0))
  np.testing.assert_allclose(met.objective[0], alone.objective[0], atol=1e-9)


def test_evolution_finds_the_bottom_from_values_alone():
  centre = np.float32([[1, 2, 3], [-1, 0, 1]])
  many = np.repeat(centre, _latent_search.POPULATION, 0)
  keys = jax.random.split(jax.random.key(0), 2)

  def search(steps):
    values_only = lambda z: jax.lax.stop_gradient(bowl(z, many))  # noqa: E731
    return _latent_search.evolve(values_only, jnp.zeros((2, 3)), keys, steps=steps)

  few, met = search(5).objective, search(120)
  assert (met.objective <= few).all()
  np.testing.assert_allclose(met.objective, 0, atol=1e-6)
  np.testing.assert_allclose(met.reconstruction, 3 * met.objective, rtol=1e-5)


def test_the_try_of_the_lowest_objective_counts_not_of_the_lowest_reconstruction():
  met = _latent_search.Met(jnp.array([[2.0, 1.0]]), jnp.array([[0.1, 0.9]]))
  assert _latent_search.lowest(met).reconstruction.tolist() == pytest.approx([0.9])


@functools.cache
def made_again():
  """Records that the first model's generator makes of latents it was not shown."""
  ensemble = spanned()
  z = np.random.default_rng(5).normal(size=(70, 12)).astype(np.float32)
  made = np.asarray(span(ensemble[0].state, z, None))
  data = dataclasses.replace(table(70, 24), x=made)
  return dataclasses.replace(ensemble, data=data, members=np.ones((4, 70), bool))


@pytest.mark.slow
@pytest.mark.parametrize(
  "how",
  [
    {"steps": 200},
    {"optimizer": "lbfgs", "steps": 15},
    {"optimizer": "evolution", "steps": 150},
  ],
  ids=["adam", "lbfgs", "evolution"],
)
def test_what_the_generator_made_is_found_again(how):
  """Other models are .1 off and more; 70 are not a multiple of any block."""
  ensemble = made_again()
  losses = reconstruction_losses(ensemble.select(slice(1)), **how)
  assert losses.shape == (1, 70)
  assert losses.max() < 1e-3


def test_the_score_is_the_negated_loss_of_the_target():
  ensemble = spanned()
  losses = reconstruction_losses(ensemble, np.array([5, 0, 9]), steps=20)
  for target in (0, 2):
    scores = gan_leaks_white_box(ensemble, target=target, steps=20)
    np.testing.assert_allclose(-losses[target], scores[[5, 0, 9]], rtol=1e-5)


def test_pitfall_112_no_record_is_dropped_and_each_is_searched_alone():
  ensemble = made_again()
  for attack in ATTACKS:
    scores = attack(ensemble, target=0)
    assert np.isfinite(scores).all()
    records = np.array([69, 3, 40])
    some = attack(ensemble, target=0, records=records)
    np.testing.assert_array_equal(some[records], scores[records])
    assert np.isnan(np.delete(some, records)).all()


def test_pitfall_112_records_differ_in_their_starts():
  """A generator without a gradient keeps every search where it began."""
  data = table(10)
  near = np.linspace(0, 1e-3, 60, dtype=np.float32).reshape(10, 6)
  near[9] = near[8]
  data = dataclasses.replace(data, x=near)
  ensemble = made_by(lambda z, y: jax.lax.stop_gradient(jnp.tile(z, 2)), data)

  def starts(**options):
    return gan_leaks_white_box(ensemble, target=0, steps=1, **options)

  scores = starts()
  assert len(set(scores.round(2))) == 9
  assert scores[8] == scores[9]
  assert (np.abs(starts(seed=1) - scores) > 1e-3).all()
  # More starts, the nearest of which counts, cannot be worse on average.
  assert starts(restarts=8).mean() > scores.mean() + 0.3


@pytest.mark.slow
def test_pitfall_113_the_latents_norm_steers_and_does_not_count():
  data = table(4)
  constant = made_by(lambda z, y: jnp.full((len(z), 6), 0.25), data)
  expected = -((data.x - 0.25) ** 2).mean(1)
  for attack in ATTACKS:
    scores = attack(constant, target=0, norm_penalty=5.0)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
  # The record asks for z = 0, the penalty for a length of sqrt 3.
  zero = dataclasses.replace(data, x=np.zeros_like(data.x))
  ensemble = made_by(lambda z, y: jnp.tile(z, 2), zero)
  free = gan_leaks_white_box(ensemble, target=0, steps=200)
  np.testing.assert_allclose(free, 0, atol=1e-3)
  held = gan_leaks_white_box(ensemble, target=0, steps=200, norm_penalty=100.0)
  np.testing.assert_allclose(held, -1, atol=0.02)


def test_pitfall_113_a_perceptual_distance_sees_the_range_it_declares():
  data = table(4)
  ensemble = made_by(lambda z, y: jnp.full((len(z), 6), 0.25), data)
  squares = ((data.x - 0.25) ** 2).mean(1)
  for low, high in ((-1.0, 1.0), (0.0, 255.0)):

    def brightness(x, g):
      return x.mean(1) - 2 * g.mean(1)

    added = Perceptual(brightness, 0.5, low, high)
    mapped = low + (high - low) * np.stack([data.x.mean(1), np.full(4, 0.25)])
    scores = gan_leaks_white_box(ensemble, target=0, steps=2, perceptual=added)
    expected = squares + 0.5 * (mapped[0] - 2 * mapped[1])
    np.testing.assert_allclose(-scores, expected, rtol=1e-4)


def test_records_are_asked_with_their_own_labels():
  data = table(6)
  ensemble = made_by(lambda z, y: jnp.tile(y, 3), data)
  own = np.tile(np.eye(2)[data.y], 3)
  expected = -((data.x - own) ** 2).mean(1)
  for attack in ATTACKS:
    np.testing.assert_allclose(attack(ensemble, target=1), expected, rtol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS, ids=["white_box", "partial_black_box"])
def test_members_of_a_memorising_generator_are_found_and_others_not(attack):
  leaky, tight = spanned(), spanned(200, members=False)
  assert leak(attack(leaky, target=1), leaky.members[1]) > 0.8
  # 100 against 100: 3 sigma of the AUC are .12.
  assert leak(attack(tight, target=1), tight.members[1]) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("attack", ATTACKS, ids=["white_box", "partial_black_box"])
def test_scores_follow_their_records(attack):
  ensemble = spanned()
  order = np.random.default_rng(3).permutation(len(ensemble.data))
  moved = dataclasses.replace(
    ensemble, data=ensemble.data.select(order), members=ensemble.members[:, order]
  )
  scores = attack(ensemble, target=2)
  np.testing.assert_allclose(attack(moved, target=2), scores[order], rtol=1e-5)


def test_a_generator_that_diverged_is_refused():
  ensemble = made_by(lambda z, y: jnp.full((len(z), 6), jnp.nan), table(4))
  with pytest.raises(ValueError, match="diverged"):
    gan_leaks_white_box(ensemble, target=0, steps=1)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"optimizer": "sgd"}, "optimizer is 'sgd'; choose from 'adam', 'lbfgs'"),
    ({"steps": 0}, "steps is 0"),
    ({"restarts": 0}, "restarts is 0"),
    ({"norm_penalty": -1.0}, "norm_penalty is -1.0; pass a number of at least 0"),
    ({"target": 9}, "target=9 is not a model"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    gan_leaks_white_box(spanned(), **{"target": 0, **options})

"""GS-WGAN: what the generator hears of the members, and what that is counted as."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  LATENT,
  NETWORKS,
  SGD,
  changed,
  critic_by_hand,
  critic_loss_by_hand,
  ctx_at,
  descended,
  device,
  generator_by_hand,
  records,
  rows_of,
  same,
  start,
  take_row,
  train,
)

from mixdef.core.randomness import fold_in_name
from mixdef.defenses import accounting
from mixdef.learners import gs_wgan
from mixdef.learners._gan import gather, public_fakes
from mixdef.learners._sanitised import (
  drawn_shard_epsilon,
  known_shard_epsilon,
  sanitise,
)
from mixdef.models import image_networks

CRITICS, FAKES, CLIP = 3, 4, 0.02
STEPS = 2  # an epoch of 32 records in chunks of 3 * 6
gan = functools.partial(gs_wgan, NETWORKS, SGD, critics=CRITICS, fakes=FAKES)
# Rows of three chunks: records 0-4, 8-12 and 16-20, and a row of padding each.
ROWS = jax.tree.map(
  lambda *leaves: jnp.concatenate(leaves), *(rows_of(5, first=f) for f in (0, 8, 16))
)


def at(step):
  return ctx_at(step, steps_per_epoch=STEPS)


@functools.cache
def stepped(learner):
  return jax.jit(learner.step)


def moved(before, after):
  """Return which critics a step changed."""
  return [
    not same(take_row(before.params["d"], k), take_row(after.params["d"], k))
    for k in range(CRITICS)
  ]


def pulled(weights, clip, noise=0.0, count=5):
  """What comes back through `sanitise` of the mean of weights * fakes."""
  key = jax.random.key(3)
  fakes = jnp.ones((count, *weights.shape[1:]))

  def loss(fakes):
    return (
      (sanitise(fakes, key, clip, noise) * weights).reshape(count, -1).sum(1).mean()
    )

  return jax.grad(loss)(fakes)


@pytest.mark.slow
def test_pitfall_105_gradients_below_the_bound_pass_and_others_are_cut_to_it():
  weights = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
  weights[0] *= 1e-3
  weights[1] = 0
  expected = np.zeros_like(weights)
  for i, row in enumerate(weights / 5):
    norm = np.sqrt((row**2).sum())
    expected[i] = row * min(1, 1.5 / 5 / norm) if norm else 0
  found = pulled(jnp.asarray(weights), 1.5)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(found[0], weights[0] / 5, rtol=1e-6)
  largest = np.linalg.norm(found.reshape(5, -1), axis=1).max()
  assert largest == pytest.approx(1.5 / 5, rel=1e-5)


@pytest.mark.slow
def test_noise_is_that_of_the_sensitivity_of_a_changed_critic():
  weights = jnp.zeros((5, 4000))
  noise = pulled(weights, 1.5, noise=0.7)
  deviation = 0.7 * 2 * 1.5 / 5
  assert noise.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * noise.size))
  assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(4000)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_adds_nothing():
  weights = jnp.ones((5, 3)).at[0, 1].set(jnp.nan).at[1, 0].set(jnp.inf)
  found = pulled(weights, 1.0)
  np.testing.assert_array_equal(found[:2], 0.0)
  assert (found[2:] > 0).all()


@pytest.mark.slow
def test_pitfall_106_parameters_of_the_critic_are_not_concerned():
  key, fake = jax.random.key(0), jnp.ones((4, 6))
  y = jnp.ones((4, CLASSES)) / CLASSES
  d = NETWORKS.critic.init(key, fake, y)

  def loss(d, x):
    return NETWORKS.critic.apply(d, x, y).mean()

  def heard(d, x):
    return loss(d, sanitise(x, key, 1e-3, 1.0))

  (through, by_fake), (plain, by_fake_plain) = (
    jax.grad(f, argnums=(0, 1))(d, fake) for f in (heard, loss)
  )
  assert same(through, plain)
  assert not same(by_fake, by_fake_plain, atol=1e-6)


@pytest.fixture(scope="module")
def rounds():
  """Eight steps: two of warming, then rounds of two, noise-free and unclipped."""
  learner = gan(critic_steps=2, warm_epochs=1, noise_multiplier=0.0, clip=1e6)
  states = [start(learner, epochs=8)]
  for i in range(14):
    states.append(stepped(learner)(states[-1], device(DATA), ROWS, at(i))[0])
  return learner, states


@pytest.mark.slow
def test_critics_take_turns_and_the_generator_follows_each(rounds):
  _, states = rounds
  critics = [moved(a, b) for a, b in itertools.pairwise(states)]
  assert critics[:2] == [[True] * CRITICS] * 2  # the warm epoch
  turns = [np.flatnonzero(one).tolist() for one in critics[2:]]
  assert all(len(one) == 1 for one in turns)
  assert turns[0::2] == turns[1::2]
  order = [one[0] for one in turns[::2]]
  assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]
  g = [not same(a.params["g"], b.params["g"]) for a, b in itertools.pairwise(states)]
  assert g == [False] * 2 + [False, True] * 6


@pytest.mark.slow
def test_one_program_serves_all_steps(rounds):
  learner, _ = rounds
  assert stepped(learner)._cache_size() == 1


@pytest.mark.slow
def test_a_turn_descends_the_critics_loss_with_its_drift(rounds):
  _, states = rounds
  before, after = states[2:4]
  (turn,) = np.flatnonzero(moved(before, after))
  ctx = at(2)
  own = jax.tree.map(lambda leaf: leaf.reshape(CRITICS, -1)[turn], ROWS)
  batch = gather(device(DATA), own, CLASSES)
  d, g = take_row(before.params["d"], turn), before.params["g"]

  def loss(d):
    scores = [critic_by_hand(d, batch.x[i], batch.y[i]) for i in range(5)]
    drift = 0.001 * sum(score**2 for score in scores) / 5
    return critic_loss_by_hand(d, g, batch, ctx) + drift

  expected = descended(d, jax.grad(loss)(d))
  assert same(take_row(after.params["d"], turn), expected, atol=1e-5)


def generator_by_formula(before, after, ctx, critic_of, clip):
  """G after a step: each fake's gradient clipped alone, then sent back through G."""
  key = fold_in_name(ctx.key, "generator")
  z, y = public_fakes(NETWORKS, key, FAKES)
  g, total = before.params["g"], 0
  for i in range(FAKES):
    d = take_row(after.params["d"], critic_of(i))
    fake, pull = jax.vjp(lambda g, i=i: generator_by_hand(g, z[i], y[i]), g)
    slope = -jax.grad(critic_by_hand, argnums=1)(d, fake, y[i]) / FAKES
    slope *= min(1.0, clip / FAKES / float(jnp.linalg.norm(slope)))
    (grads,) = pull(slope)
    total = grads if i == 0 else jax.tree.map(jnp.add, total, grads)
  return descended(g, total)


@pytest.mark.slow
def test_each_fake_asks_a_critic_drawn_for_it_alone(rounds):
  _, states = rounds
  seen = set()
  for i in (3, 5, 7):
    key = fold_in_name(at(i).key, "generator")
    drawn = jax.random.randint(fold_in_name(key, "asked"), (FAKES,), 0, CRITICS)
    seen.add(len(set(drawn.tolist())))
    expected = generator_by_formula(
      states[i], states[i + 1], at(i), lambda j, drawn=drawn: int(drawn[j]), 1e6
    )
    assert same(states[i + 1].params["g"], expected, atol=1e-5)
  assert max(seen) > 1  # not one critic for all


@pytest.mark.slow
def test_all_fakes_ask_the_trained_critic_where_that_is_chosen():
  learner = gan(critic_steps=1, noise_multiplier=0.0, clip=CLIP, queried="trained")
  before = start(learner)
  after, _ = stepped(learner)(before, device(DATA), ROWS, at(0))
  (turn,) = np.flatnonzero(moved(before, after))
  expected = generator_by_formula(before, after, at(0), lambda _: turn, CLIP)
  assert same(after.params["g"], expected, atol=1e-6)
  free = generator_by_formula(before, after, at(0), lambda _: turn, 1e6)
  assert not same(free, expected, atol=1e-5)


@pytest.mark.slow
def test_the_moving_average_is_what_is_released(rounds):
  learner, states = rounds
  before, after = states[3:5]
  assert same(before.params["average"], states[0].params["g"])
  expected = jax.tree.map(
    lambda old, new: 0.999 * old + 0.001 * new, before.params["g"], after.params["g"]
  )
  assert same(after.params["average"], expected, atol=1e-7)
  z, y = jnp.ones((2, LATENT)), jnp.eye(CLASSES)
  made = learner.generate(states[-1], z, y)
  by_hand = [
    generator_by_hand(states[-1].params["average"], *row)
    for row in zip(z, y, strict=True)
  ]
  np.testing.assert_allclose(made, jnp.stack(by_hand), rtol=1e-5)


@pytest.mark.slow
def test_pitfall_104_a_critic_never_sees_another_chunk(rounds):
  learner, states = rounds
  other, _ = stepped(learner)(states[0], device(changed(DATA, [9])), ROWS, at(0))
  assert moved(states[1], other) == [False, True, False]
  assert same(states[1].params["g"], other.params["g"])


@pytest.mark.slow
def test_members_reach_the_generator_through_the_gradients_alone():
  """Silent critics stay silent, so nothing else may differ: labels, statistics."""
  networks = image_networks((8, 8), CLASSES, width=2, latent=3)
  data = records(shape=(8, 8))
  learner = gs_wgan(networks, SGD, critics=CRITICS, fakes=FAKES, critic_steps=1)
  state = start(learner, data)
  silent = jax.tree.map(jnp.zeros_like, state.params["d"])
  state = state._replace(params={**state.params, "d": silent})
  one, other = (
    stepped(learner)(state, device(d), ROWS, at(0))[0]
    for d in (data, changed(data, slice(None)))
  )
  for name in ("g", "average"):
    assert same(one.params[name], other.params[name])
  assert same(one.stats, other.stats)
  assert not same(one.stats, state.stats)
  assert not same(one.params["g"], state.params["g"])  # the noise


def test_epsilon_at_the_official_setting():
  """q = 1/1000, 20,000 rounds of 32 fakes, sigma 1.07."""
  count, delta = 20_000 * 32, 1e-5
  drawn = drawn_shard_epsilon(1.07, shards=1000, count=count, delta=delta)
  assert drawn == pytest.approx(9.24, abs=0.005)
  poisson = accounting.spent(
    1.07, sampling_probability=1 / 1000, steps=count, delta=delta
  )
  assert poisson.rdp == pytest.approx(4.45, abs=0.005)
  known = accounting.spent(1.07, sampling_probability=1.0, steps=20 * 32, delta=delta)
  assert known.rdp == pytest.approx(390, abs=1)
  assert known_shard_epsilon(1.07, count=20 * 32, delta=delta) == known.pld < 390


@pytest.mark.slow
def test_a_draw_never_costs_more_than_none():
  for sigma, shards in ((0.3, 2), (1.0, 1), (5.0, 50)):
    config = {"count": 40, "delta": 1e-5}
    drawn = drawn_shard_epsilon(sigma, shards=shards, **config)
    assert drawn <= known_shard_epsilon(sigma, **config)
  assert drawn_shard_epsilon(0.0, shards=9, count=1, delta=1e-5) == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("queried", ["drawn", "trained"])
def test_trained_runs_state_what_their_rounds_spent(queried):
  learner = gan(critic_steps=2, warm_epochs=1, queried=queried)
  sizes = {"epochs": 5, "batch_size": 4}
  runs = train(learner, **sizes)
  # Four epochs of two steps in rounds of two: 4 rounds, 2 cycles of 3 critics begun.
  count = {"drawn": {"shards": 3, "count": 16}, "trained": {"count": 8}}[queried]
  account = {"drawn": drawn_shard_epsilon, "trained": known_shard_epsilon}[queried]
  expected = {"epsilon": account(1.07, **count, delta=1e-5), "delta": 1e-5}
  said = runs[0].guarantee
  assert {name: said[name] for name in expected} == pytest.approx(expected, rel=1e-5)
  assert runs.history[-1]["generator_steps"] == 0.5
  if queried == "drawn":
    side_by_side = train(learner, **sizes, strategy="vmap")
    assert same(runs.states.params, side_by_side.states.params, atol=1e-5)
    assert not same(*(take_row(runs.states.params, s) for s in (0, 1)))


def test_no_noise_is_no_guarantee():
  state = start(gan(noise_multiplier=0.0, critic_steps=1))
  assert np.isinf(state.defense["gs_wgan"]["epsilon"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"critics": 0}, "critics is 0"),
    ({"fakes": 0}, "fakes is 0"),
    ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
    ({"noise_multiplier": jnp.ones(())}, "noise_multiplier cannot be swept"),
    ({"clip": 0.0}, "clip is 0.0"),
    ({"delta": 1.0}, "delta is 1.0"),
    ({"queried": "all"}, "'drawn', 'trained'"),
    ({"noise_multiplier": np.inf}, "noise_multiplier is inf"),
    ({"clip": np.inf}, "clip is inf"),
    ({"average": 1.5}, "average is 1.5"),
    ({"average": 1.0}, "keeps the untrained G"),
    ({"warm_epochs": -1}, "warm_epochs is -1"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    gs_wgan(NETWORKS, **options)


@pytest.mark.slow
def test_trainings_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match="the generator takes no step"):
    start(gan(warm_epochs=2))
  with pytest.raises(ValueError, match="not a guarantee for 32 members"):
    start(gan(delta=0.1, critic_steps=1))

"""privGAN: pairs that hide which of them made a fake, and what is released."""

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

from mixdef.learners import priv_gan
from mixdef.learners._gan import gather, latents

PAIRS, ROWS = 2, 4
gan = functools.partial(priv_gan, NETWORKS, SGD, pretrain_epochs=1, dp_delay=1)
DEAL = jax.tree.map(
  lambda *leaves: jnp.concatenate(leaves), rows_of(ROWS), rows_of(ROWS, first=10)
)


def at(step):
  return ctx_at(step, steps_per_epoch=1)


@functools.cache
def stepped(**options):
  return jax.jit(gan(**options).step)


def run(data=DATA, **options):
  """Return the states of three steps, one a phase."""
  states = [start(gan(**options), epochs=3)]
  for i in range(3):
    states.append(stepped(**options)(states[-1], device(data), DEAL, at(i))[0])
  return states


@pytest.fixture(scope="module")
def phases():
  return run()


def parts(state, *names):
  return {name: state.params[name] for name in names}


def batches():
  return [
    gather(
      device(DATA),
      jax.tree.map(lambda leaf, i=i: leaf.reshape(PAIRS, -1)[i], DEAL),
      CLASSES,
    )
    for i in range(PAIRS)
  ]


def place_by_hand(p, x, y):
  return jax.nn.log_softmax(
    jnp.stack([critic_by_hand(take_row(p, j), x, y) for j in range(PAIRS)])
  )


def fakes_by_hand(state, step):
  """The fakes [N][B]: one z for all pairs, each with the conditions of its rows."""
  z = latents(at(step).key, jnp.arange(ROWS + 1), LATENT)
  return [
    [
      generator_by_hand(take_row(state.params["g"], i), z[b], batch.y[b])
      for b in range(ROWS)
    ]
    for i, batch in enumerate(batches())
  ]


def privacy_by_hand(p, records):
  dealt, total = batches(), 0.0
  for i in range(PAIRS):
    for b in range(ROWS):
      total -= place_by_hand(p, records[i][b], dealt[i].y[b])[i]
  return total / PAIRS / ROWS


@pytest.mark.slow
def test_each_phase_moves_its_networks(phases):
  moves = [
    {name for name in "gdp" if not same(a.params[name], b.params[name])}
    for a, b in itertools.pairwise(phases)
  ]
  assert moves == [{"p"}, {"g", "d"}, {"g", "d", "p"}]


@pytest.mark.slow
def test_one_program_serves_all_phases(phases):
  del phases
  assert stepped()._cache_size() == 1


@pytest.mark.slow
def test_p_learns_first_whose_chunk_a_member_is_of(phases):
  p = phases[0].params["p"]
  grads = jax.grad(privacy_by_hand)(p, [batch.x for batch in batches()])
  assert same(phases[1].params["p"], descended(p, grads), atol=1e-5)


@pytest.mark.slow
def test_p_then_learns_whose_a_fake_is(phases):
  before, after = phases[2:]
  p = before.params["p"]
  grads = jax.grad(privacy_by_hand)(p, fakes_by_hand(before, 2))
  assert same(after.params["p"], descended(p, grads), atol=1e-5)


def discriminator_by_hand(d, batch, fakes):
  total = 0.0
  for b in range(ROWS):
    real = jax.nn.sigmoid(critic_by_hand(d, batch.x[b], batch.y[b]))
    fake = jax.nn.sigmoid(critic_by_hand(d, fakes[b], batch.y[b]))
    total -= 0.95 * jnp.log(real) + 0.05 * jnp.log(1 - real) + jnp.log(1 - fake)
  return total / ROWS


def pair_by_hand(before, step, i, p=None, ratio=1.0):
  """One pair's networks after a step; with two pairs, the wrong one is the other."""
  batch, fakes = batches()[i], fakes_by_hand(before, step)[i]
  d, g = (take_row(before.params[name], i) for name in "dg")
  d = descended(d, jax.grad(discriminator_by_hand)(d, batch, fakes))
  z = latents(at(step).key, jnp.arange(ROWS + 1), LATENT)

  def loss(g):
    total = 0.0
    for b in range(ROWS):
      fake = generator_by_hand(g, z[b], batch.y[b])
      total -= jnp.log(jax.nn.sigmoid(critic_by_hand(d, fake, batch.y[b])))
      if p is not None:
        total -= ratio * place_by_hand(p, fake, batch.y[b])[1 - i]
    return total / ROWS

  return d, descended(g, jax.grad(loss)(g))


@pytest.mark.slow
def test_pairs_descend_the_formulas(phases):
  before, after = phases[2:]
  for i in range(PAIRS):
    d, g = pair_by_hand(before, 2, i, after.params["p"])
    assert same(take_row(after.params["d"], i), d, atol=1e-5)
    assert same(take_row(after.params["g"], i), g, atol=1e-5)


@pytest.mark.slow
def test_without_a_ratio_pairs_are_gans_that_do_not_know_each_other():
  before, after = run(ratio=0.0)[2:]
  for i in range(PAIRS):
    d, g = pair_by_hand(before, 2, i)
    assert same(take_row(after.params["d"], i), d, atol=1e-5)
    assert same(take_row(after.params["g"], i), g, atol=1e-5)
  other = run(changed(DATA, slice(10, 20)), ratio=0.0)[-1]
  own = parts(after, "g", "d"), parts(other, "g", "d")
  first, second = (same(*(take_row(p, i) for p in own)) for i in range(PAIRS))
  assert first
  assert not second


@pytest.mark.slow
def test_pitfall_104_a_discriminator_never_sees_another_chunk(phases):
  other = stepped()(phases[1], device(changed(DATA, [11])), DEAL, at(1))[0]
  kept = [
    same(take_row(phases[2].params["d"], i), take_row(other.params["d"], i))
    for i in range(PAIRS)
  ]
  assert kept == [True, False]


@pytest.mark.slow
def test_every_pair_answers_in_a_column():
  learner = priv_gan(NETWORKS, SGD, pairs=3)
  state = start(learner, epochs=5, batch_size=12)
  assert learner.num_shards == 3
  assert learner.predict(state, jnp.asarray(DATA.x)).shape == (len(DATA), 3)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["all", "one"])
def test_the_release_is_of_the_generators_declared(release):
  learner = gan(release=release)
  z, y = (
    jax.random.normal(jax.random.key(0), (5, LATENT)),
    jnp.eye(CLASSES)[jnp.zeros(5, int)],
  )
  used = set()
  for seed in range(6 if release == "one" else 1):
    state = start(learner, epochs=3, seed=seed)
    made = learner.generate(state, z, y)
    of = jnp.stack(
      [
        jnp.stack(
          [
            generator_by_hand(take_row(state.params["g"], i), *r)
            for r in zip(z, y, strict=True)
          ]
        )
        for i in range(PAIRS)
      ]
    )
    by = [
      [i for i in range(PAIRS) if np.allclose(made[b], of[i, b], atol=1e-5)]
      for b in range(5)
    ]
    assert all(len(one) == 1 for one in by)
    used.add(tuple(one[0] for one in by))
  expected = {(0, 1, 0, 1, 0)} if release == "all" else {(0,) * 5, (1,) * 5}
  assert used == expected


@pytest.mark.slow
def test_scores_are_the_logits_of_each_pair(phases):
  x, y = jnp.asarray(DATA.x[:3]), jax.nn.one_hot(DATA.y[:3], CLASSES)
  found = gan().predict(phases[-1], x, y=y)
  for i in range(PAIRS):
    d = take_row(phases[-1].params["d"], i)
    by_hand = [critic_by_hand(d, *row) for row in zip(x, y, strict=True)]
    np.testing.assert_allclose(found[:, i], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_models_trained_side_by_side_are_those_trained_in_turn():
  learner, sizes = priv_gan(NETWORKS), {"epochs": 5, "batch_size": 8}
  runs = train(learner, **sizes)
  side_by_side = train(learner, **sizes, strategy="vmap")
  assert same(runs.states.params, side_by_side.states.params, atol=1e-5)
  assert runs[0].guarantee["epsilon"] is None
  moved = [row["generator_loss"] > 0 for row in runs.history[:5]]
  assert moved == [False] + [True] * 4  # a fifth of the epochs is P's alone


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pairs": 1}, "pairs is 1; P must distinguish at least 2"),
    ({"ratio": -1.0}, "ratio is -1.0"),
    ({"pretrain_epochs": -1}, "pretrain_epochs is -1"),
    ({"dp_delay": 0.5}, "dp_delay is 0.5"),
    ({"release": "any"}, "'all', 'one'"),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    gan(**options)


@pytest.mark.slow
def test_epochs_that_p_uses_up_are_refused():
  with pytest.raises(ValueError, match="there are 2: increase epochs"):
    start(gan(), epochs=2)

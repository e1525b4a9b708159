"""GANs train through `fit` and `fit_many` as classifiers do."""

import functools

import jax
import numpy as np
import optax
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  FEATURES,
  KEEP,
  LATENT,
  MEMBERS,
  NETWORKS,
  RECORDS,
  SGD,
  SIZES,
  changed,
  records,
  same,
  take_row,
  train,
)

import mixdef
from mixdef.data import Dataset
from mixdef.defenses.critic import relaxloss_gan
from mixdef.defenses.mixing import mixup
from mixdef.learners import mixup_gan, par_gan, wgan_gp
from mixdef.models import image_networks, table_networks
from mixdef.training import loop as loop_module
from mixdef.training.progress import Progress
from mixdef.training.sampling import chunk_of

MIXED = mixup_gan(NETWORKS, critic_steps=2)
STAGED = wgan_gp(NETWORKS, defense=relaxloss_gan(references=2), critic_steps=2)
PICTURES = records(shape=(8, 8))
PICTURE_GAN = mixup_gan(image_networks((8, 8), CLASSES, width=2, latent=3))


@pytest.fixture(scope="module")
def traces():
  return []


@pytest.fixture(scope="module")
def learner(traces):
  """Return a learner that notes each time its step is traced."""

  def step(*args):
    traces.append(1)
    return MIXED.step(*args)

  return MIXED._replace(step=step)


@pytest.fixture(scope="module")
def looped(learner, traces):
  ensemble = train(learner)
  # The metrics' shapes and the loop body: once each, for all models and epochs.
  assert len(traces) == 2, f"pitfall 153: traced {len(traces)} times"
  return ensemble


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "scan", "processes"])
def test_pitfall_154_strategies_give_equal_gans(learner, looped, strategy):
  other = train(learner, strategy=strategy)
  assert same(other.states.params, looped.states.params, atol=1e-5)
  np.testing.assert_allclose(
    other.log_probs(DATA.x), looped.log_probs(DATA.x), atol=1e-4
  )


@pytest.mark.slow
def test_an_ensemble_answers_with_scores_and_records(looped):
  x, y = DATA.x, np.eye(CLASSES, dtype=np.float32)[DATA.y]
  assert looped.log_probs(x).shape == (2, RECORDS, 1)
  scores = looped.query(_score, x, y)
  assert scores.shape == (2, RECORDS, 1)
  np.testing.assert_array_equal(looped[1].query(_score, x, y), scores[1])
  z = np.random.default_rng(0).normal(size=(7, LATENT)).astype(np.float32)
  made = looped.query(_generate, z, y[:7])
  assert made.shape == (2, 7, FEATURES)
  assert 0 <= made.min() < made.max() <= 1
  assert not np.allclose(made[0], made[1])


def _score(learner, state, x, y):
  return learner.predict(state, x, y=y)


def _generate(learner, state, z, y):
  return learner.generate(state, z, y)


@pytest.mark.slow
def test_answers_do_not_depend_on_what_else_is_asked():
  run = train(PICTURE_GAN, PICTURES, KEEP[:1], epochs=1)[0]
  assert run.state.stats.keys() == {"batch_stats"}
  z = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  y = np.eye(CLASSES, dtype=np.float32)[np.arange(5) % CLASSES]
  together = run.query(_generate, z, y)
  np.testing.assert_array_equal(run.query(_generate, z[3:4], y[3:4])[0], together[3])
  scores = run.log_probs(PICTURES.x)
  np.testing.assert_array_equal(run.log_probs(PICTURES.x[9:10])[0], scores[9])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("when", "steps"), [("after", [1, 1, 2]), ("first", [2, 2, 2])]
)
def test_pitfall_102_generator_steps_are_counted_over_the_epochs(when, steps):
  """Epochs of 7 steps, 5 of the critic for one of the generator: 4 in all, or 6."""
  learner = wgan_gp(NETWORKS, generator_steps=when)
  history = train(learner, members=KEEP[:1], epochs=3, batch_size=3).history
  assert [round(7 * row["generator_steps"], 4) for row in history] == steps
  metrics = {"critic_loss", "distance", "generator_steps"}
  assert metrics <= history[0].keys()


@pytest.mark.slow
def test_pitfall_60_records_that_are_out_change_nothing(looped, learner):
  outside = np.flatnonzero(~KEEP.any(0))
  assert same(train(learner, changed(DATA, outside)).states, looped.states)
  member = changed(DATA, np.flatnonzero(KEEP.all(0))[:1])
  moved = train(learner, member).states.params
  assert not same(moved["d"], looped.states.params["d"])
  assert not same(moved["g"], looped.states.params["g"])


@pytest.mark.slow
@pytest.mark.parametrize("defense", [None, mixup()], ids=["none", "mixup"])
def test_pitfall_104_a_critic_never_sees_the_chunk_of_another(defense):
  # Critics meet through the generator alone: here it takes no step.
  learner = par_gan(NETWORKS, defense=defense, critics=3, critic_steps=100)
  members, sizes = KEEP[:1], {"batch_size": 4, "num_members": MEMBERS}
  run = train(learner, members=members, **sizes)[0]
  chunk = np.asarray(chunk_of(run.state.key, members[0], 3))
  for record in (*np.flatnonzero(members[0])[:6], np.flatnonzero(~members[0])[0]):
    moved = train(learner, changed(DATA, [record]), members, **sizes)[0].state.params
    touched = [
      not same(take_row(moved["d"], k), take_row(run.state.params["d"], k))
      for k in range(3)
    ]
    own = [members[0, record] and chunk[record] == k for k in range(3)]
    assert touched == own
    assert same(moved["g"], run.state.params["g"])


@pytest.mark.slow
def test_par_gan_trains_and_answers_by_every_critic():
  ensemble = train(par_gan(NETWORKS, critics=2, critic_steps=2), batch_size=5)
  assert ensemble.plan.num_shards == 2
  assert ensemble.plan.steps_per_epoch == 2
  assert ensemble.log_probs(DATA.x).shape == (2, RECORDS, 2)
  assert not ensemble.diverged.any()


def test_too_few_members_for_the_critics_are_refused():
  with pytest.raises(ValueError, match="use fewer critics"):
    train(par_gan(NETWORKS, critics=15), batch_size=1)


@pytest.fixture
def interrupt(monkeypatch):
  """Return a function that trains and stops in the n-th epoch, checkpoints on."""
  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)

  def stop(n, learner, **options):
    epochs = []

    def advance(self, units, **metrics):
      epochs.append(units)
      if len(epochs) == n:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(Progress, "advance", advance)
      with pytest.raises(KeyboardInterrupt):
        train(learner, **options)

  return stop


@pytest.mark.slow
@pytest.mark.parametrize(
  ("learner", "stopped_in"), [(MIXED, 2), (STAGED, 1), (STAGED, 4)]
)
def test_an_interrupted_gan_ends_like_an_unbroken_one(
  tmp_path, interrupt, learner, stopped_in
):
  options = {"members": KEEP[:1], "epochs": 3}
  interrupt(stopped_in, learner, out=tmp_path, **options)
  resumed = train(learner, out=tmp_path, **options)
  assert same(resumed.states, train(learner, **options).states)
  again = train(learner, out=tmp_path, **options)
  assert same(again.states, resumed.states)


@pytest.mark.slow
def test_another_gan_in_the_folder_is_refused(tmp_path):
  options = {"members": KEEP[:1], "epochs": 1, "out": tmp_path}
  train(wgan_gp(NETWORKS), **options)
  for other in (wgan_gp(NETWORKS, penalty=5.0), mixup_gan(NETWORKS)):
    with pytest.raises(ValueError, match="Choose another out folder"):
      train(other, **options)


@pytest.mark.slow
def test_models_of_a_grid_over_alpha_are_those_of_their_alpha():
  make = functools.partial(mixup_gan, NETWORKS, SGD)
  members, alphas = KEEP[[0, 0]], [0.0, np.inf]
  grid = train(
    lambda alpha: make(alpha=alpha),
    members=members,
    sweep={"alpha": alphas},
    model_ids=[0, 0],
  )
  for s, alpha in enumerate(alphas):
    alone = train(make(alpha=alpha), members=members[:1])
    assert same(grid[s].state.params, alone[0].state.params, atol=1e-4)
  assert not same(grid[0].state.params, grid[1].state.params, atol=1e-3)


@pytest.mark.slow
def test_fit_trains_one_gan():
  run = mixdef.fit(MIXED, DATA, KEEP[0], **SIZES)
  assert run.log_probs(DATA.x).shape == (RECORDS, 1)
  assert run.learner.latent == LATENT
  assert run.learner.num_classes == CLASSES


@pytest.mark.slow
def test_an_undefended_critic_gives_its_members_away():
  """The negative control: few records of many columns, trained for long."""
  data, members = records(40, shape=(64,), seed=3), np.arange(40) < 20
  learner = wgan_gp(table_networks(64, CLASSES, hidden=32), optax.adam(1e-3, b1=0.5))
  run = mixdef.fit(learner, data, members, epochs=150, batch_size=20)
  score = run.log_probs(data.x)[:, 0]
  assert (score[members][:, None] > score[~members]).mean() > 0.8


@pytest.mark.parametrize("x", [DATA.x - 0.5, 2 * DATA.x], ids=["below", "above"])
def test_pitfall_118_records_outside_of_the_unit_range_are_refused(x):
  data = Dataset.from_arrays(x, DATA.y, name="mine")
  with pytest.raises(ValueError, match=r"mine has values from .*rescale") as raised:
    train(MIXED, data)
  assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_bytes_are_scaled_as_for_classifiers():
  levels = (255 * DATA.x).astype(np.uint8)
  data = Dataset.from_arrays(levels, DATA.y)
  floats = Dataset.from_arrays(levels / 255, DATA.y)
  one, other = (train(MIXED, d, KEEP[:1]).states.params for d in (data, floats))
  assert same(one, other, atol=1e-5)
  assert not same(one, train(MIXED, members=KEEP[:1]).states.params, atol=1e-5)


@pytest.mark.slow
def test_different_seeds_and_models_draw_their_own_randomness(looped):
  pair = train(MIXED, members=KEEP[[0, 0]])
  one, other = (jax.tree.map(lambda leaf, s=s: leaf[s], pair.states) for s in (0, 1))
  assert not same(one.params["g"], other.params["g"])
  assert not same(
    train(MIXED, members=KEEP[:1], seed=1).states.params, take_first(looped)
  )


def take_first(ensemble):
  return jax.tree.map(lambda leaf: leaf[:1], ensemble.states.params)

"""Defenses of a critic: RelaxLoss by thresholds of references, and DP-SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  KEEP,
  NETWORKS,
  RECORDS,
  SGD,
  critic_grad_by_hand,
  critic_loss_by_hand,
  ctx_at,
  descended,
  device,
  own_ctx,
  records,
  rows_of,
  same,
  start,
  take_row,
  train,
)

import mixdef
from mixdef.core.randomness import fold_in_name
from mixdef.core.traits import Traits
from mixdef.defenses.critic import critic_losses, relaxloss_gan
from mixdef.defenses.mixing import mixup
from mixdef.defenses.privacy import dp_sgd
from mixdef.learners import wgan_gp
from mixdef.learners._gan import gather
from mixdef.models import image_networks

ROWS, CTX = rows_of(3), ctx_at()
BATCH = gather(device(DATA), ROWS, CLASSES)


def step(learner, state, rows=ROWS, data=DATA, ctx=CTX):
  return jax.jit(learner.step)(state, device(data), rows, ctx)


def networks_of(state):
  return take_row(state.params["d"], 0), state.params["g"]


def member_losses(state, ctx=CTX):
  """d_i of the rows, by hand: the loss of one row alone, without a penalty."""
  d, g = networks_of(state)
  one = jnp.eye(len(BATCH.weight))
  return jnp.array(
    [
      critic_loss_by_hand(d, g, BATCH._replace(weight=w), own_ctx(ctx), penalty=0.0)
      for w in one
    ]
  )


@pytest.fixture(scope="module")
def relaxed():
  """A step with a threshold between the losses of the members, and what it saw."""
  state = start(wgan_gp(NETWORKS, SGD, critic_steps=9))
  losses = member_losses(state)
  middle = float(np.sort(losses[:3])[1]) + 1e-4  # two of three are below
  learner = wgan_gp(NETWORKS, SGD, relaxloss_gan(middle), critic_steps=9)
  before = start(learner)
  return before, step(learner, before), losses, middle


@pytest.mark.slow
def test_pitfall_108_records_below_the_threshold_ascend_and_the_penalty_does_not(
  relaxed,
):
  before, (after, metrics), losses, middle = relaxed
  sign = jnp.where(losses < middle, 1.0, -1.0)
  assert sorted(sign[:3]) == [-1, 1, 1]
  d, g = networks_of(before)
  value, grads = critic_grad_by_hand(d, g, BATCH, own_ctx(CTX), sign=sign)
  np.testing.assert_allclose(metrics["critic_loss"], value, rtol=1e-4)
  assert same(take_row(after.params["d"], 0), descended(d, grads), atol=1e-5)


@pytest.mark.slow
def test_relaxloss_turns_records_by_their_own_thresholds():
  part = relaxloss_gan(np.array([0.0, 5.0, -5.0, 0.0]))
  learner = wgan_gp(NETWORKS, defense=part)
  losses = jnp.array([-1.0, 1.0, 1.0, 0.0])
  batch = gather(device(DATA), rows_of(4, 0), CLASSES)
  with pytest.raises(
    ValueError, match=rf"shape \(4,\); pass one per record, {RECORDS}"
  ):
    start(learner)
  state = part.init(None, _spec(4))
  ctx = CTX._replace(batch=batch)
  turned = part.loss(losses, state, ctx)
  np.testing.assert_array_equal(turned, [1.0, -1.0, 1.0, 0.0])
  slope = jax.grad(lambda l: part.loss(l, state, ctx).sum())(losses)
  np.testing.assert_array_equal(slope, [-1, -1, 1, 1])  # the sign has no gradient


def _spec(count):
  everyone = np.ones((1, count), bool)
  data = records(count)
  plan = mixdef.training.sampling.make_plan(
    Traits(), data, everyone, epochs=1, batch_size=2
  )
  return plan.spec(device(data), None)


def test_mixed_records_have_mixed_thresholds():
  part = relaxloss_gan(np.array([0.0, 4.0]))
  batch = gather(device(DATA), rows_of(2, 0), CLASSES)
  batch = batch._replace(partner=jnp.array([1, 0]), lam=jnp.array([0.75, 0.75]))
  state = part.init(None, _spec(2))
  turned = part.loss(jnp.array([0.9, 3.1]), state, CTX._replace(batch=batch))
  np.testing.assert_allclose(turned, [-0.9, 3.1])  # thresholds 1 and 3


@pytest.mark.slow
def test_critic_losses_are_scores_of_fakes_above_those_of_records():
  learner = wgan_gp(NETWORKS, critics=2)
  state = start(learner)
  x, y = jnp.asarray(DATA.x[:5]), jnp.asarray(DATA.y[:5])
  losses = critic_losses(learner, state, x, y)
  assert losses.shape == (5, 2)
  soft = jax.nn.one_hot(y, CLASSES)
  np.testing.assert_array_equal(critic_losses(learner, state, x, soft), losses)
  real = learner.predict(state, x, y=soft)
  shared = (losses + real)[y == y[0]]  # same condition and latents: one score of fakes
  np.testing.assert_allclose(shared, shared[:1].repeat(len(shared), 0), rtol=1e-4)
  alone = critic_losses(learner, state, x[3:4], y[3:4])
  np.testing.assert_allclose(alone[0], losses[3], rtol=1e-4)


@pytest.mark.slow
def test_more_fakes_are_a_mean():
  learner = wgan_gp(NETWORKS)
  state, x, y = start(learner), jnp.asarray(DATA.x[:2]), jnp.asarray(DATA.y[:2])
  means = [
    np.mean(critic_losses(learner, state, x, y, num_fakes=n)) for n in (1, 400, 800)
  ]
  assert abs(means[1] - means[2]) < abs(means[0] - means[2])


def test_thresholds_are_means_over_the_references_that_a_record_is_out_of():
  learner = wgan_gp(NETWORKS, defense=relaxloss_gan(references=4))
  ((stage, reference),) = learner.stages
  members = jnp.asarray(KEEP[0])
  rows = np.asarray(stage.rows(jax.random.key(3), members, jnp.zeros(RECORDS, bool)))
  assert rows.shape == (4, RECORDS)
  np.testing.assert_array_equal(rows.sum(0), np.where(KEEP[0], 2, 0))
  assert len({tuple(column) for column in rows.T[KEEP[0]]}) > 2
  assert reference.stages == ()
  assert reference.text == wgan_gp(NETWORKS).text  # references are undefended
  losses = np.random.default_rng(0).normal(size=(4, RECORDS, 1)).astype(np.float32)
  table = stage.table(None, jnp.asarray(losses), jnp.asarray(rows), members)[:, 0]
  expected = np.full(RECORDS, np.nan)
  for record in np.flatnonzero(KEEP[0]):
    expected[record] = losses[~rows[:, record], record, 0].mean()
  expected[~KEEP[0]] = np.nanmean(expected)  # no reference has anything to say
  np.testing.assert_allclose(table, expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"references": 3}, "references is 3; pass an even number"),
    ({"references": 0}, "references is 0; pass an integer of at least 1"),
    ({"threshold": float("nan")}, "threshold is nan"),
  ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    relaxloss_gan(**arguments)


@pytest.mark.slow
def test_thresholds_need_a_training_before():
  learner = wgan_gp(NETWORKS, defense=relaxloss_gan())
  with pytest.raises(ValueError, match="has no thresholds: train with fit or fit_many"):
    start(learner)


def test_a_classifier_has_no_critic():
  with pytest.raises(ValueError, match="relaxloss_gan acts on the critic of a GAN"):
    mixdef.classifier(mixdef.models.mlp(4), SGD, relaxloss_gan(0.0))


def private(noise=1.0, clip=1.0, **options):
  defense = dp_sgd(noise, clip, estimator="microbatch", delta=1e-3)
  return wgan_gp(NETWORKS, SGD, defense, critic_steps=1, **options)


@pytest.mark.slow
def test_dp_gan_clips_whole_records_the_penalty_included():
  learner, rows = private(noise=0.0, clip=0.05), rows_of(3)
  state = start(learner)
  d, g = networks_of(state)
  total = jax.tree.map(jnp.zeros_like, d)
  for i in range(3):
    alone = BATCH._replace(weight=jnp.eye(4)[i])
    _, grads = critic_grad_by_hand(d, g, alone, own_ctx(CTX))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    assert norm > 0.05
    total = jax.tree.map(lambda t, g, norm=norm: t + 0.05 * g / norm, total, grads)
  mean = jax.tree.map(lambda t: t / 6, total)  # by the public batch size
  after, _ = step(learner, state, rows)
  assert same(take_row(after.params["d"], 0), descended(d, mean), atol=1e-6)


@pytest.mark.slow
def test_dp_gan_noises_the_critic_alone():
  learner = private(noise=2.0)
  state = start(learner)
  noised, _ = step(learner, state)
  silent, _ = step(private(noise=0.0), state)
  moved = jax.tree.map(lambda a, b: a - b, noised.params["d"], silent.params["d"])
  moved = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
  expected = 0.03 * 2.0 * 1.0 / 6  # rate, noise multiplier, clip, batch size
  assert abs(moved.std() / expected - 1) < 5 / np.sqrt(2 * moved.size)


@pytest.mark.slow
def test_the_generator_of_a_dp_gan_sees_members_through_the_critic_alone():
  """Its conditions and latents do not tell who was drawn, how many, or their labels."""
  learner = private(noise=0.0, clip=1e-20)  # a critic that nothing reaches
  state = start(learner)
  drawn = [rows_of(3), rows_of(3, first=9), rows_of(1, 3), rows_of(4, 0, first=2)]
  first, *others = (step(learner, state, rows)[0].params["g"] for rows in drawn)
  assert not same(first, state.params["g"], atol=1e-5)
  for other in others:
    assert same(other, first, atol=1e-7)


@pytest.mark.slow
def test_the_room_of_a_batch_does_not_tell_the_generator_how_many_members_there_are():
  """The places of a step follow from the exact number of members; its fakes do not."""
  learner = private(noise=0.0, clip=1e-20)
  state = start(learner)
  drawn = [rows_of(3, padding) for padding in (3, 4, 9)]  # 6 is the public size
  first, *others = (step(learner, state, rows)[0].params["g"] for rows in drawn)
  assert not same(first, state.params["g"], atol=1e-5)
  for other in others:
    assert same(other, first, atol=1e-7)


@pytest.mark.slow
def test_dp_gan_refuses_what_would_void_its_bound():
  batch_norm = image_networks((8, 8), CLASSES, width=2, latent=3)
  data = records(shape=(8, 8))
  defense = dp_sgd(estimator="microbatch", delta=1e-3)
  with pytest.raises(ValueError, match=r"needs GroupNorm or .*norm='group'"):
    start(wgan_gp(batch_norm, defense=defense), data)
  group_norm = image_networks((8, 8), CLASSES, width=2, latent=3, norm="group")
  assert start(wgan_gp(group_norm, defense=defense), data).stats == {}
  with pytest.raises(ValueError, match=r"clips records for one critic.*critics=1"):
    private(critics=2)
  with pytest.raises(ValueError, match="mixup lets a record influence"):
    wgan_gp(NETWORKS, defense=mixdef.chain(mixup(), defense))


@pytest.mark.slow
def test_a_dp_gan_reports_its_epsilon():
  options = {"members": KEEP[:1], "epochs": 1}
  run = train(private(), **options)[0]
  classifier = mixdef.classifier(
    mixdef.models.mlp(2, num_classes=CLASSES), SGD, dp_sgd(delta=1e-3)
  )
  assert run.guarantee == train(classifier, **options)[0].guarantee
  assert 0 < run.guarantee["epsilon"] < 100
  plain = train(wgan_gp(NETWORKS), **options)[0]
  assert plain.guarantee == {"epsilon": None, "delta": None}


def test_dp_gan_is_a_name_for_clipping_that_a_critic_can_carry():
  assert str(mixdef.parse("dp_gan")) == "dp_sgd(estimator='microbatch')"
  assert mixdef.parse("relaxloss_gan(-2.0)").traits == Traits(critic=True)


@pytest.mark.slow
def test_the_thresholds_of_a_training_come_from_its_own_references():
  """Each model's table is finite, and differs between models for shared members."""
  ensemble = train(wgan_gp(NETWORKS, defense=relaxloss_gan(references=2)))
  thresholds = np.asarray(ensemble.states.defense["relaxloss_gan"][:, 0])
  assert thresholds.shape == (2, RECORDS)
  assert np.isfinite(thresholds).all()
  both = KEEP.all(0)
  assert (thresholds[0, both] != thresholds[1, both]).all()
  for own, members in zip(thresholds, KEEP, strict=True):
    np.testing.assert_allclose(own[~members], own[members].mean(), rtol=1e-4)
  teachers = {row["models"] for row in ensemble.history}
  assert teachers == {"teachers-00000", "models-00000"}


@pytest.mark.slow
def test_streams_of_fakes_have_a_name():
  """The fakes of the loss are fixed draws, whatever model is asked."""
  key = jax.random.fold_in(fold_in_name(jax.random.key(0), "fakes"), 0)
  learner = wgan_gp(NETWORKS)
  state = start(learner)
  x, y = jnp.asarray(DATA.x[:1]), jax.nn.one_hot(DATA.y[:1], CLASSES)
  z = jax.random.normal(key, (1, learner.latent))
  fake = learner.generate(state, z, y)
  expected = learner.predict(state, fake, y=y) - learner.predict(state, x, y=y)
  found = critic_losses(learner, state, x, y)
  np.testing.assert_allclose(found, expected, rtol=1e-4)

"""medGAN: the formulas of its two phases, the batch mean, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_cases import (
  CLASSES,
  DATA,
  FEATURES,
  KEEP,
  SGD,
  changed,
  ctx_at,
  dense,
  descended,
  device,
  records,
  rows_of,
  same,
  start,
  train,
)

from mixdef.core.hooks import Defense
from mixdef.core.randomness import fold_in_name
from mixdef.defenses import distillation, dp_sgd, mixup, past, relaxloss_gan
from mixdef.learners import medgan
from mixdef.learners._gan import gather, latents

LATENT, L2 = 3, 0.02
gan = functools.partial(
  *(medgan, FEATURES, CLASSES),
  optimizer=SGD,
  latent=LATENT,
  hidden=(5, 4),
  critic_steps=2,
  l2=L2,
  pretrain_epochs=1,
)
GAN, MIXED = gan(), gan(defense=mixup())
both = pytest.mark.parametrize("learner", [GAN, MIXED], ids=["none", "mixup"])
ROWS = rows_of(5)
PRETRAINING, ADVERSARIAL = ctx_at(0), ctx_at(5)  # epoch 0, and 1 with all networks


@functools.cache
def compiled(learner):
  return jax.jit(learner.step)


def step(learner, state, ctx, rows=ROWS):
  return compiled(learner)(state, device(DATA), rows, ctx)


@functools.cache
def in_training(learner):
  """A state that has been through both phases, so that no statistic is at its start."""
  state = start(learner)
  for i in range(8):
    state, _ = step(learner, state, ctx_at(i))
  return state


@functools.cache
def trained(learner):
  """Two models by `fit_many`, one epoch in each phase."""
  return train(learner)


def members(learner, ctx):
  """The members of a step's batch as the networks see them, without padding."""
  batch = gather(device(DATA), ROWS, CLASSES)
  if learner.batch:
    batch = learner.batch(batch, {"mixup": ()}, ctx)
  return batch.x[:5], batch.index[:5]


def decay(*nets):
  return L2 / 2 * sum((leaf**2).sum() for net in nets for leaf in jax.tree.leaves(net))


def sigmoid(a):
  return 1 / (1 + jnp.exp(-a))


def codes(params, z, stats=None):
  """G(z): normalised by the batch, or where given by running statistics."""
  for layer in range(3):
    x = z @ params[f"Dense_{layer}"]["kernel"]
    name = f"BatchNorm_{layer}"
    kept = stats["batch_stats"][name] if stats else {"mean": x.mean(0), "var": x.var(0)}
    x = (x - kept["mean"]) / jnp.sqrt(kept["var"] + 1e-5)
    x = x * params[name]["scale"] + params[name]["bias"]
    z = z + (jnp.tanh(x) if layer == 2 else jnp.maximum(x, 0))
  return z


def logit(params, x, mean):
  """D(x, mean) of rows [B,D]."""
  x = jnp.hstack([x, jnp.tile(mean, (len(x), 1))])
  for layer in range(2):
    x = jnp.maximum(dense(params, layer, x), 0)
  return dense(params, 2, x)[:, 0]


@pytest.mark.slow
@both
def test_the_first_epochs_descend_the_reconstruction_alone(learner):
  state = start(learner)
  x, _ = members(learner, PRETRAINING)

  def by_hand(nets):
    p = sigmoid(dense(nets["decoder"], 0, jnp.tanh(dense(nets["encoder"], 0, x))))
    bits = -x * jnp.log(p) - (1 - x) * jnp.log(1 - p)
    return bits.sum(1).mean() + decay(nets["encoder"], nets["decoder"])

  nets = {name: state.params[name] for name in ("encoder", "decoder")}
  value, grads = jax.value_and_grad(by_hand)(nets)
  after, metrics = step(learner, state, PRETRAINING)
  np.testing.assert_allclose(metrics["autoencoder_loss"], value, rtol=1e-5)
  moved = {**state.params, **descended(nets, grads)}
  assert same(after.params, moved, atol=1e-5)
  assert not same(moved["decoder"], state.params["decoder"], atol=1e-3)


@pytest.mark.slow
@both
def test_then_critic_generator_and_decoder_descend_their_losses(learner):
  state = in_training(learner)
  x, ids = members(learner, ADVERSARIAL)
  d, g, decoder = (state.params[name] for name in ("d", "g", "decoder"))
  z = latents(ADVERSARIAL.key, ids, LATENT)
  fake = sigmoid(dense(decoder, 0, codes(g, z, state.stats["g"])))

  def critic_loss(d):
    real, made = logit(d, x, x.mean(0)), logit(d, fake, fake.mean(0))
    losses = -jnp.log(sigmoid(real)) - jnp.log(1 - sigmoid(made))
    return losses.mean() + decay(d), (real - made).mean()

  (value, apart), grads = jax.value_and_grad(critic_loss, has_aux=True)(d)
  new_d = descended(d, grads)
  other_z = latents(fold_in_name(ADVERSARIAL.key, "generator"), ids, LATENT)

  def generator_loss(nets):
    fake = sigmoid(dense(nets["decoder"], 0, codes(nets["g"], other_z)))
    losses = -jnp.log(sigmoid(logit(new_d, fake, fake.mean(0))))
    return losses.mean() + decay(nets["g"], nets["decoder"])

  nets = {"g": g, "decoder": decoder}
  moved = descended(nets, jax.grad(generator_loss)(nets))
  after, metrics = step(learner, state, ADVERSARIAL)
  np.testing.assert_allclose(metrics["critic_loss"], value, rtol=1e-4)
  np.testing.assert_allclose(metrics["distance"], apart, rtol=1e-3, atol=1e-5)
  expected = {**moved, "d": new_d, "encoder": state.params["encoder"]}
  assert same(after.params, expected, atol=2e-5)
  assert not same(moved, nets, atol=1e-4)


@pytest.mark.slow
def test_mixing_changes_what_both_phases_see():
  for ctx in (PRETRAINING, ADVERSARIAL):
    clean, _ = members(GAN, ctx)
    mixed, _ = members(MIXED, ctx)
    assert not np.allclose(clean, mixed, atol=1e-2)


@pytest.mark.slow
def test_the_phases_follow_each_other_in_a_fit():
  first, second = (
    row for row in trained(GAN).history if row["models"] == "models-00000"
  )
  assert first["autoencoder_loss"] > 0
  assert first["critic_loss"] == first["generator_steps"] == 0
  assert second["autoencoder_loss"] == 0
  assert second["critic_loss"] > 0
  assert second["generator_steps"] == 0.5


@pytest.mark.slow
def test_no_pretraining_is_allowed():
  state, metrics = step(gan(pretrain_epochs=0), start(GAN), PRETRAINING)
  assert metrics["critic_loss"] > 0
  assert metrics["autoencoder_loss"] == 0
  assert not same(state.params["d"], start(GAN).params["d"])


@pytest.mark.slow
@pytest.mark.parametrize("ctx", [PRETRAINING, ADVERSARIAL], ids=["first", "then"])
def test_padding_enters_nothing(ctx):
  state = in_training(MIXED)
  tight, _ = step(MIXED, state, ctx, rows_of(5, padding=0))
  padded, _ = step(MIXED, state, ctx, rows_of(5, padding=4))
  assert same(tight, padded, atol=1e-6)


@pytest.mark.slow
@both
def test_the_stored_mean_is_that_of_the_members(learner):
  # 4 steps of 5 of the 20 members an epoch: each counts as often.
  means = trained(learner).states.stats["mean"]
  for mean, members in zip(means, KEEP, strict=True):
    np.testing.assert_allclose(mean, DATA.x[members].mean(0), rtol=1e-4)


@pytest.mark.slow
def test_a_score_depends_on_no_other_row_and_on_no_condition():
  state = in_training(GAN)
  x, state_mean = jnp.asarray(DATA.x), state.stats["mean"]
  scores = GAN.predict(state, x)
  assert scores.shape == (len(x), 1)
  alone = [GAN.predict(state, row[None], y=jnp.eye(CLASSES)[:1])[0] for row in x]
  np.testing.assert_allclose(scores, alone, rtol=1e-4, atol=1e-6)
  by_hand = logit(state.params["d"], x, state_mean)
  np.testing.assert_allclose(scores[:, 0], by_hand, rtol=1e-4, atol=1e-6)
  # The control: beside the mean of what is asked, they would differ.
  assert not np.allclose(logit(state.params["d"], x[:3], x[:3].mean(0)), scores[:3, 0])


@pytest.mark.slow
def test_generated_rows_come_from_running_statistics():
  state = in_training(GAN)
  z = jax.random.normal(jax.random.key(3), (7, LATENT))
  rows = GAN.generate(state, z, jnp.eye(CLASSES)[jnp.zeros(7, int)])
  by_hand = sigmoid(
    dense(state.params["decoder"], 0, codes(state.params["g"], z, state.stats["g"]))
  )
  np.testing.assert_allclose(rows, by_hand, rtol=1e-4)
  one = GAN.generate(state, z[:1], jnp.eye(CLASSES)[1:])
  np.testing.assert_allclose(rows[:1], one, rtol=1e-5)


@pytest.mark.slow
def test_models_do_not_depend_on_the_strategy():
  looped, mapped = trained(MIXED).states, train(MIXED, strategy="vmap").states
  assert same(looped.params, mapped.params, atol=1e-5)
  assert same(looped.stats, mapped.stats, atol=1e-5)


@pytest.mark.slow
def test_only_members_influence_a_model():
  one = trained(MIXED).states
  for rows, equal in ((~KEEP.any(0), True), (KEEP.all(0), False)):
    assert rows.any()
    other = train(MIXED, changed(DATA, rows)).states
    assert same(one.params, other.params) == equal
    assert same(one.stats, other.stats) == equal


@pytest.mark.slow
def test_parts_hear_of_the_critic():
  def clip(grads, state, ctx):
    del ctx
    return jax.tree.map(jnp.zeros_like, grads), state

  def count(state, ctx):
    return state + (ctx.losses > 0).sum()

  frozen = Defense(
    "frozen", init=lambda key, spec: jnp.int32(0), grads=clip, update=count
  )
  learner = gan(defense=frozen)
  state = start(learner)
  after, _ = step(learner, state, ADVERSARIAL)
  assert same(after.params["d"], state.params["d"])
  assert not same(after.params["g"], state.params["g"])
  assert after.defense["frozen"] == len(ROWS.index)


@pytest.mark.parametrize(
  ("defense", "reason"),
  [
    (dp_sgd(1.0, 1.0), "needs independent records"),
    (past(), "gradients are those of a classifier's loss"),
    (relaxloss_gan(-1.0), "the loss of a Wasserstein critic"),
    (distillation(), "classifiers trained before"),
  ],
)
def test_parts_that_it_cannot_carry(defense, reason):
  with pytest.raises(ValueError, match=reason):
    gan(defense=defense)


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"pretrain_epochs": -1}, "pretrain_epochs is -1"),
    ({"pretrain_epochs": 0.5}, r"pretrain_epochs is 0\.5"),
    ({"critic_steps": 0}, "critic_steps is 0"),
    ({"l2": -1e-3}, r"l2 is -0\.001"),
    ({"latent": 0}, "latent is 0"),
    ({"hidden": (4, 0)}, "hidden is 0"),
  ],
)
def test_numbers_out_of_range(options, line):
  with pytest.raises(ValueError, match=line):
    gan(**options)


def test_pretraining_that_leaves_no_epoch():
  with pytest.raises(ValueError, match="pretrain_epochs=2 leaves none of the 2 epochs"):
    train(gan(pretrain_epochs=2))


@pytest.mark.slow
def test_other_records_than_the_networks_are_of():
  with pytest.raises(ValueError, match=r"records of shape \(6,\), but the data have"):
    start(GAN, records(shape=(FEATURES + 1,)))

"""Adversarial regularisation: its network, the gain, and who learns from whom."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  DATA,
  KEEP,
  REFERENCE,
  SPEC,
  K,
  assert_same,
  ctx_at,
  in_epoch,
  init,
  learner_of,
  make_batch,
  make_log_probs,
  rows_at,
)

from mixdef import models
from mixdef.core.chaining import chain
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import dp_sgd
from mixdef.defenses.adversarial import (
  adversarial_regularization,
  attack_loss,
  make_net,
  membership,
)
from mixdef.learners.classifier import classifier
from mixdef.training import fit

NAME = "adversarial_regularization"
LOUD = 10.0  # times the first weights, so that h moves away from 1/2


def loud_net(seed=0, classes=K):
  """A network whose weights are large enough for its answers to differ."""
  return jax.tree.map(lambda leaf: LOUD * leaf, make_net(jax.random.key(seed), classes))


def naive_membership(net, log_probs, y):
  """The network in float64, layer by layer."""

  def layers(part, values):
    for weights, bias in part:
      values = np.maximum(values @ np.float64(weights) + np.float64(bias), 0)
    return values

  answer = layers(net["answer"], np.float64(log_probs))
  label = layers(net["label"], np.float64(y))
  hidden = layers(net["common"][:-1], np.concatenate([answer, label], -1))
  weights, bias = net["common"][-1]
  odds = hidden @ np.float64(weights) + np.float64(bias)
  return 1 / (1 + np.exp(-odds[:, 0]))


def batch_of():
  """Four members, a padded row and a auxiliary row, all labels."""
  batch = make_batch(6, weight=[1, 1, 1, 1, 0, 0])
  return batch._replace(auxiliary=jnp.array([0.0, 0, 0, 0, 0, 1]))


def losses_of(part, net, epoch):
  batch, log_probs = batch_of(), make_log_probs(scale=3.0)
  losses = -(batch.y * log_probs).sum(-1)
  ctx = in_epoch(epoch)._replace(log_probs=log_probs, batch=batch)
  return losses, part.loss(losses, {"net": net}, ctx)


@pytest.mark.slow
def test_the_classifier_pays_for_the_gain():
  net = loud_net()
  losses, got = losses_of(adversarial_regularization(2.0), net, 1)
  belief = naive_membership(net, make_log_probs(scale=3.0), batch_of().y)
  assert np.ptp(belief) > 1e-2
  np.testing.assert_allclose(got, losses + 2 * (belief - 0.5), rtol=1e-4)


@pytest.mark.slow
def test_the_gain_is_off_before_start():
  for start, epoch, on in ((1, 0, False), (1, 1, True), (0, 0, True), (3, 2, False)):
    part = adversarial_regularization(start=start)
    losses, got = losses_of(part, loud_net(), epoch)
    assert (np.abs(got - losses).max() > 0.01) == on


@pytest.mark.slow
def test_the_attack_loss_is_that_of_a_naive_loop():
  net, batch, log_probs = loud_net(), batch_of(), make_log_probs(scale=3.0)
  belief = naive_membership(net, log_probs, batch.y)
  expected = sum((belief[i] - 1) ** 2 / 4 for i in range(4)) + belief[5] ** 2
  np.testing.assert_allclose(attack_loss(net, log_probs, batch), expected, rtol=1e-4)


def test_the_network_has_the_papers_layers_and_first_weights():
  net = make_net(jax.random.key(0), K)
  shapes = {part: [w.shape for w, _ in layers] for part, layers in net.items()}
  assert shapes == {
    "answer": [(K, 1024), (1024, 512), (512, 64)],
    "label": [(K, 128), (128, 64)],
    "common": [(128, 256), (256, 64), (64, 1)],
  }
  layers = [layer for part in net.values() for layer in part]
  values = np.concatenate([np.ravel(weights) for weights, _ in layers])
  sigma = 0.01 / np.sqrt(2 * values.size)  # of an empirical standard deviation
  assert abs(values.std() - 0.01) < 5 * sigma
  assert not any(np.any(bias) for _, bias in layers)


@pytest.mark.slow
def test_pitfall_75_all_layers_of_the_attack_network_receive_gradient():
  net, batch = make_net(jax.random.key(0), K), batch_of()
  grads = jax.grad(attack_loss)(net, make_log_probs(scale=3.0), batch)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
  learner = learner_of(adversarial_regularization())
  start = init(learner)
  end, _ = jax.jit(learner.step)(start, DATA, rows_at(6), ctx_at(6))
  one, two = (state.defense[NAME]["net"] for state in (start, end))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-6, one, two)
  assert all(jax.tree.leaves(moved))


def test_pitfall_75_permuted_labels_change_its_output():
  net, log_probs, y = loud_net(), make_log_probs(), batch_of().y
  permuted = jnp.roll(y, 1, axis=0)
  change = np.abs(membership(net, log_probs, y) - membership(net, log_probs, permuted))
  assert (change > 1e-4).all()


def steps_of(learner, data=DATA, steps=(6, 7)):
  state, step = init(learner), jax.jit(learner.step)
  for i in steps:
    state, _ = step(state, data, rows_at(i), ctx_at(i))
  return state


@pytest.mark.slow
def test_the_attack_networks_step_leaves_the_classifier_alone():
  waiting = steps_of(learner_of(adversarial_regularization(start=1000)))
  assert_same(waiting.params, steps_of(learner_of()).params)
  start = init(learner_of(adversarial_regularization()))
  change = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), start.defense[NAME], waiting.defense[NAME]
  )
  assert max(jax.tree.leaves(change["net"])) > 1e-5


@pytest.mark.slow
def test_reference_rows_reach_the_classifier_through_the_attack_network_only():
  learner = learner_of(adversarial_regularization(100.0, attack_rate=0.1))
  other = DATA._replace(x=jnp.where(REFERENCE[:, None], 3.0 + DATA.x, DATA.x))

  def differ(one, two):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return any(np.abs(a - b).max() > 1e-6 for a, b in leaves)

  one, two = (steps_of(learner, data, (6,)) for data in (DATA, other))
  assert_same(one.params, two.params)
  assert differ(one.defense[NAME]["net"], two.defense[NAME]["net"])
  one, two = (steps_of(learner, data) for data in (DATA, other))
  assert differ(one.params, two.params)


def updated(part, state, log_probs, batch, times=1):
  for _ in range(times):
    state = part.update(state, ctx_at()._replace(log_probs=log_probs, batch=batch))
  return state


def test_padding_never_teaches_the_attack_network():
  part, batch, log_probs = adversarial_regularization(), batch_of(), make_log_probs()
  state = part.init(jax.random.key(0), SPEC)
  other = log_probs.at[4].set(make_log_probs(scale=50.0, seed=7)[4])
  one, two = (updated(part, state, rows, batch) for rows in (log_probs, other))
  assert_same(one, two)


@pytest.mark.slow
def test_attack_steps_are_so_many_adam_steps():
  batch, log_probs = batch_of(), make_log_probs(scale=3.0)
  state = adversarial_regularization().init(jax.random.key(0), SPEC)
  many = updated(adversarial_regularization(attack_steps=3), state, log_probs, batch)
  single = updated(adversarial_regularization(), state, log_probs, batch, times=3)
  assert_same(many, single, 1e-6)
  assert int(many["opt"][0].count) == 3


@pytest.mark.slow
def test_a_trained_attack_network_pushes_members_towards_the_others():
  """Sure members and unsure others: h learns that, and charges for being sure."""
  batch = batch_of()
  sure = jax.nn.log_softmax(6.0 * batch.y)
  unsure = jax.nn.log_softmax(0.5 * batch.y)
  log_probs = jnp.where(batch.weight[:, None] > 0, sure, unsure)
  part = adversarial_regularization(attack_steps=150, attack_rate=1e-3)
  state = part.init(jax.random.key(0), SPEC)
  state = jax.jit(lambda state: updated(part, state, log_probs, batch))(state)
  belief = membership(state["net"], log_probs, batch.y)
  assert (belief[:4] > 0.9).all()
  assert belief[5] < 0.1

  def gain(scale):
    log_probs = jax.nn.log_softmax(scale * batch.y)
    return membership(state["net"], log_probs, batch.y)[:4].mean()

  assert jax.grad(gain)(2.0) > 0.01


def memorise(defense=None):
  data = synthetic_memorize(128, num_test=1).with_auxiliary(64)
  learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2), defense)
  run = fit(learner, data, epochs=40, batch_size=64, seed=0)
  hits = np.asarray(run.log_probs(data.x)).argmax(-1) == data.y
  return hits[~data.auxiliary].mean()


@pytest.mark.slow
def test_members_are_memorised_less():
  """All accuracy on these records is memory."""
  assert memorise() > 0.95
  defense = adversarial_regularization(10.0, attack_steps=5, attack_rate=1e-3)
  assert memorise(defense) < 0.75


def test_pitfall_79_reference_records_are_no_members_and_are_needed():
  data = synthetic_memorize(40, num_test=1)
  defense = adversarial_regularization()
  learner = classifier(models.mlp(8, num_classes=4), optax.sgd(0.1), defense)
  with pytest.raises(ValueError, match="with_auxiliary"):
    fit(learner, data, epochs=1, batch_size=8)
  data = data.with_auxiliary(10)
  assert not (data.auxiliary & data.audited).any()
  with pytest.raises(ValueError, match="cannot be members"):
    fit(learner, data, members=np.ones(40, bool), epochs=1, batch_size=8)
  assert not bool((KEEP & REFERENCE).any())


@pytest.mark.slow
def test_clipping_row_by_row_must_give_up_its_epsilon():
  with pytest.raises(ValueError, match="guarantee=False"):
    chain(adversarial_regularization(), dp_sgd(1.0))
  learner = learner_of(adversarial_regularization(), dp_sgd(1.0, guarantee=False))
  state = steps_of(learner, steps=(6,))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))

"""Who influences a trained model, and how: its members, by the declared steps."""

import jax
import numpy as np
import optax
import pytest
from training_cases import (
  CLASSES,
  LEARNER,
  MEMBERS,
  RECORDS,
  SIZES,
  Linear,
  Normed,
  halves,
  perturbed,
  records,
  same,
  train,
)

from mixdef.core.chaining import chain
from mixdef.core.hooks import Defense
from mixdef.core.randomness import fold_in_name
from mixdef.core.traits import Traits
from mixdef.defenses.mixing import mixup
from mixdef.learners.classifier import classifier
from mixdef.training import fit
from mixdef.training.programs import programs
from mixdef.training.sampling import epoch_rows

MIXED = classifier(Normed(), optax.sgd(0.1), mixup())


@pytest.mark.parametrize("learner", [LEARNER, MIXED], ids=["plain", "mixup+batchnorm"])
def test_pitfall_60_out_records_change_nothing(learner):
  members = halves(1)
  data = records()
  clean = train(learner, data, members)
  moved = data
  for row in np.flatnonzero(~members[0]):
    moved = perturbed(moved, row, 1e6)
  assert same(train(learner, moved, members).states, clean.states)
  member = perturbed(data, np.flatnonzero(members[0])[0], 0.1)
  assert not same(train(learner, member, members).states.params, clean.states.params)


def test_pitfall_146_keep_is_the_set_of_records_with_influence():
  data, members = records(), halves(2, seed=3)
  clean = train(data=data, members=members).states.params
  influence = np.empty_like(members)
  for row in range(RECORDS):
    moved = train(data=perturbed(data, row, 0.5), members=members).states.params
    for s in range(2):
      one, other = (jax.tree.map(lambda leaf, s=s: leaf[s], p) for p in (clean, moved))
      influence[s, row] = not same(one, other)
  np.testing.assert_array_equal(influence, members)


@pytest.mark.slow
def test_pitfall_147_subsets_of_different_sizes_are_used_whole():
  members = halves(2)
  members[1] = np.arange(RECORDS) < 33
  data = records()
  clean = train(data=data, members=members)
  assert clean.plan.steps_per_epoch * clean.plan.capacity >= 33
  for row in range(RECORDS):
    moved = train(data=perturbed(data, row, 0.5), members=members)
    assert same(moved[1].state.params, clean[1].state.params) == (row >= 33)


def test_pitfall_69_training_equals_a_loop_with_momentum_over_the_epochs():
  data, members = records(), halves(2)
  ensemble = train(data=data, members=members)
  for s in range(2):
    weights, bias = _loop(data, members[s], ensemble.plan, ensemble[s].state.key)
    trained = ensemble[s].state.params["Dense_0"]
    np.testing.assert_allclose(trained["kernel"], weights, atol=1e-5)
    np.testing.assert_allclose(trained["bias"], bias, atol=1e-5)


def _loop(data, members, plan, key):
  """Train softmax regression by hand, over the rows that the epochs deal."""
  x = np.concatenate([data.x, np.ones((RECORDS, 1))], 1)
  y = np.eye(CLASSES)[data.y]
  weights = np.zeros((x.shape[1], CLASSES))
  velocity = np.zeros_like(weights)
  for epoch in range(SIZES["epochs"]):
    order = jax.random.fold_in(fold_in_name(key, "order"), epoch)
    rows = epoch_rows(order, jax.numpy.asarray(members), data.auxiliary, plan)
    for step in range(plan.steps_per_epoch):
      dealt, _ = rows(step)
      chosen = np.asarray(dealt.index)[np.asarray(dealt.weight) > 0]
      scores = np.exp(x[chosen] @ weights)
      error = scores / scores.sum(1, keepdims=True) - y[chosen]
      velocity = 0.9 * velocity + x[chosen].T @ error / len(chosen)
      weights = weights - 0.5 * velocity
  return weights[:-1], weights[-1]


def test_pitfall_01_answers_do_not_use_batch_statistics():
  data, members = records(), halves(1)
  run = train(MIXED, data, members)[0]
  together = run.log_probs(data.x)
  assert {"batch_stats"} == set(run.state.stats)
  for row in (0, 7, RECORDS - 1):
    np.testing.assert_array_equal(
      run.log_probs(data.x[row : row + 1])[0], together[row]
    )
  others = run.log_probs(data.x[~members[0]])
  np.testing.assert_array_equal(others, together[~members[0]])


def test_pitfall_85_every_model_draws_its_own_randomness():
  def init(key, spec):
    return jax.random.uniform(key, (3,))

  def batch(batch, state, ctx):
    noise = jax.random.normal(ctx.key, batch.x.shape)
    return batch._replace(x=batch.x + noise)

  noisy = classifier(Linear(), optax.sgd(0.1), Defense("n", init=init, batch=batch))
  ensemble = train(noisy, members=np.repeat(halves(1), 2, 0))
  (one, other) = ensemble.states.defense["n"]
  assert not np.array_equal(one, other)
  assert not same(ensemble[0].state.params, ensemble[1].state.params)
  asked = ensemble.log_probs(ensemble.data.x)
  np.testing.assert_array_equal(ensemble.log_probs(ensemble.data.x), asked)


def test_auxiliary_rows_carry_no_gradient():
  data = records().with_auxiliary(4)
  members = halves(1) & data.audited
  part = Defense("ride", traits=Traits(needs_auxiliary=True, auxiliary_rows=True))
  learner = classifier(Linear(), optax.sgd(0.1), part)
  clean = train(learner, data, members)
  assert clean.plan.auxiliary_rows == 1
  for row in np.flatnonzero(data.auxiliary):
    data = perturbed(data, row, 1e6)
  assert same(train(learner, data, members).states, clean.states)


def test_fit_trains_on_all_but_the_auxiliary_records():
  data = records().with_auxiliary(RECORDS - MEMBERS)
  run = fit(LEARNER, data, epochs=2, batch_size=6)
  np.testing.assert_array_equal(run.members, data.audited)
  assert run.accuracy(data.x, data.y) == np.mean(
    run.log_probs(data.x).argmax(1) == data.y
  )
  assert run.guarantee == {"epsilon": None, "delta": None}


def test_the_metrics_are_the_means_over_an_epoch():
  ensemble = train(members=halves(1))
  first, second = ensemble.history
  assert first["epoch"] == 0
  assert second["epoch"] == 1
  assert first["loss"] > second["loss"]
  # The first step starts from zero weights, where every class is equally likely.
  assert 0.3 * np.log(CLASSES) < first["loss"] < 3 * np.log(CLASSES)
  assert 0 <= first["accuracy"] <= 1


def test_optimizer_state_is_dropped_after_training():
  ensemble = train()
  assert ensemble.states.opt == ()
  assert programs(LEARNER, ensemble.plan, "loop") is programs(
    LEARNER, ensemble.plan, "loop"
  )


def test_chain_and_its_only_part_train_the_same_model():
  part = Defense("halve", loss=lambda losses, *_: 0.5 * losses)
  one, other = (
    train(classifier(Linear(), optax.sgd(0.5), d)) for d in (part, chain(part, chain()))
  )
  assert same(one.states, other.states)

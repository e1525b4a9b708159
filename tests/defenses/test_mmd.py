"""MMD: the distance, who is compared with whom, when, and beside a mixer."""

import flax.linen as nn
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
  N,
  after,
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
from mixdef.core.hooks import Defense
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import dp_sgd, dropout, mixup, relaxloss
from mixdef.defenses.mmd import class_matched, mmd, squared_distance
from mixdef.learners.classifier import classifier
from mixdef.training import fit

MEMBER = [1, 1, 1, 1, 0, 0, 0, 0, 0]
OTHERS = [0, 0, 0, 0, 0, 0, 1, 1, 1]  # rows 4 and 5 are padding
LABEL = [0, 0, 0, 1, 0, 2, 0, 0, 2]  # class 1 has no auxiliary row, class 2 no member
ON = {"gap": jnp.float32(0.5)}


def batch_of(labels=LABEL):
  """Nine rows as the loop deals them, after the hook of the defense."""
  batch = make_batch(9, weight=MEMBER)
  y = jax.nn.one_hot(jnp.array(labels), K)
  batch = batch._replace(y=y, auxiliary=jnp.array(OTHERS, jnp.float32))
  return mmd().batch(batch, ON, ctx_at())


def naive_term(probs, bandwidth=1.0):
  """MMD^2 of members (0, 1, 2) against as many draws of each class as it has.

  Three members of class 0 and two auxiliary rows of it: a third of a member's weight is
  spread over two rows.
  """
  members = [(probs[i], 1 / 3) for i in (0, 1, 2)]
  others = [(probs[i], 1 / 2) for i in (6, 7)]

  def kernel(one, two):
    return sum(
      a * b * np.exp(-((p - q) ** 2).sum() / (2 * bandwidth**2))
      for p, a in one
      for q, b in two
    )

  return kernel(members, members) - 2 * kernel(members, others) + kernel(others, others)


def added(log_probs, batch, *, part=None, state=ON, ctx=None):
  """What the loss hook adds to each row."""
  part, losses = part or mmd(1.0), jnp.zeros(len(log_probs))
  ctx = (ctx or in_epoch(1))._replace(log_probs=log_probs, batch=batch)
  return part.loss(losses, state, ctx)


def term(*args, **kwargs):
  """What the loss hook adds to the first row."""
  return added(*args, **kwargs)[0]


def test_golden_value_of_the_biased_distance():
  probs = jnp.array([[1.0, 0], [0, 1], [0.5, 0.5]])
  got = squared_distance(probs, jnp.array([0.5, 0.5, -1.0]), 1.0)
  np.testing.assert_allclose(got, 0.126338, atol=1e-6)
  assert squared_distance(probs, jnp.array([1.0, 0, 0]) - jnp.eye(3)[0], 1.0) == 0


@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_the_term_is_that_of_a_naive_loop_and_is_added_to_every_row(bandwidth):
  log_probs = make_log_probs(18)
  got = added(log_probs, batch_of(), part=mmd(2.0, bandwidth=bandwidth))
  assert got.shape == (18,)
  clean = np.exp(np.asarray(log_probs[9:], np.float64))
  np.testing.assert_allclose(got, 2 * naive_term(clean, bandwidth), atol=2e-6)


def test_pitfall_65_padding_and_lonely_classes_stay_out():
  log_probs = make_log_probs(18)
  # The rows dealt, the copy of the member of class 1, of padding, of class 2.
  idle = jnp.array([*range(9), 12, 13, 14, 17])
  other = log_probs.at[idle].set(make_log_probs(len(idle), scale=9.0, seed=8))
  assert term(log_probs, batch_of()) == term(other, batch_of())
  grads = np.abs(jax.grad(term)(log_probs, batch_of())).sum(-1)
  np.testing.assert_array_equal(np.flatnonzero(grads), [9, 10, 11])


def test_no_gradient_flows_through_the_reference_rows():
  log_probs = make_log_probs(18)
  moved = log_probs.at[jnp.array([15, 16])].set(make_log_probs(2, seed=9))
  assert np.abs(term(log_probs, batch_of()) - term(moved, batch_of())) > 1e-3
  grads = jax.grad(term)(log_probs, batch_of())
  np.testing.assert_array_equal(grads[15:17], 0)
  assert (np.abs(grads[9:12]).max(-1) > 1e-4).all()


def test_a_batch_without_a_common_class_has_no_term():
  batch = batch_of([0, 0, 0, 0, 0, 0, 1, 1, 2])
  value, grads = jax.value_and_grad(term)(make_log_probs(18), batch)
  assert value == 0
  np.testing.assert_array_equal(grads, 0)


def test_pitfall_74_every_reference_record_counts():
  """The last of a class too, and each as much as the others of its class."""
  label = jax.nn.one_hot(jnp.array([0, 1, 1, 2, 0, 0, 1, 2, 2]), K)
  member = jnp.arange(9) < 4
  weight = class_matched(member, ~member, label)
  expected = [1 / 4] * 4 + [-1 / 8, -1 / 8, -1 / 2, -1 / 8, -1 / 8]
  np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_pitfall_74_off_in_the_last_epoch_and_below_the_gate():
  part, log_probs, batch = mmd(1.0, gate=0.25), make_log_probs(18), batch_of()
  low, at = ({"gap": jnp.float32(gap)} for gap in (0.2, 0.25))
  assert term(log_probs, batch, part=part, state=low) == 0
  assert term(log_probs, batch, part=part, state=at) > 0
  for epoch, on in ((0, True), (8, True), (9, False)):
    value = term(log_probs, batch, part=part, state=at, ctx=in_epoch(epoch, 10))
    assert (value > 0) == on
  assert term(log_probs, batch, part=part, state=part.init(None, SPEC)) == 0


def test_the_gap_is_that_of_members_and_reference_rows():
  log_probs, y = make_log_probs(N), np.asarray(DATA.y)
  hits = np.asarray(log_probs).argmax(-1) == y
  expected = abs(hits[:8].mean() - hits[10:].mean())
  assert expected > 0.1
  gap = mmd().epoch(ON, after(ctx_at(), log_probs))["gap"]
  np.testing.assert_allclose(gap, expected, rtol=1e-6)
  out = ~(KEEP | REFERENCE)[:, None]
  other = jnp.where(out, make_log_probs(N, seed=12), log_probs)
  assert mmd().epoch(ON, after(ctx_at(), other))["gap"] == gap


def recorder():
  """A part whose state is the answers of the last step."""
  return Defense(
    "recorder",
    init=lambda key, spec: jnp.zeros((12, spec.num_classes)),
    update=lambda state, ctx: ctx.log_probs,
  )


def one_step(learner):
  """The state and the metrics after one step."""
  return jax.jit(learner.step)(init(learner), DATA, rows_at(6), ctx_at(6))


@pytest.mark.slow
def test_pitfall_74_the_copies_are_answered_in_train_mode():
  for parts, same in (((), True), ((dropout(0.5),), False)):
    learner = learner_of(mmd(gate=0.0), recorder(), *parts)
    state, _ = one_step(learner)
    seen = state.defense["recorder"]
    assert np.allclose(seen[:6], seen[6:], atol=1e-6) == same


def loss_of_step(*parts):
  return one_step(learner_of(*parts))[1]["loss"]


@pytest.mark.slow
def test_beside_mixup_the_members_are_compared_as_they_are():
  always = mmd(gate=0.0)
  plain, mixed = loss_of_step(), loss_of_step(mixup())
  assert abs(mixed - plain) > 1e-3
  clean = loss_of_step(always) - plain
  assert clean > 1e-2
  for parts in ((mixup(), always), (always, mixup())):
    np.testing.assert_allclose(loss_of_step(*parts) - mixed, clean, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(mixup(), dropout(0.5)), (relaxloss(0.5),)])
def test_the_copies_act_on_nothing_else(parts):
  plain, copied = learner_of(*parts), learner_of(*parts, mmd(0.0, gate=0.0))
  one, two = one_step(plain), one_step(copied)
  assert_same(one[0].params, two[0].params, 1e-6)
  assert_same(one[1], two[1], 1e-6)


class Normed(nn.Module):
  """One layer behind BatchNorm."""

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    mask = None if weight is None else (weight > 0)[:, None]
    return nn.Dense(K)(nn.BatchNorm(use_running_average=not train)(x, mask=mask))


@pytest.mark.slow
def test_batch_statistics_leave_the_copies_out():
  plain, copied = (learner_of(*parts, net=Normed()) for parts in ((), (mmd(0.0),)))
  one, two = one_step(plain)[0], one_step(copied)[0]
  assert_same(one.stats, two.stats, 1e-5)
  assert_same(one.params, two.params, 1e-5)


@pytest.mark.slow
def test_two_of_them_in_a_chain_add_up():
  one, two = mmd(1.0, gate=0.0), mmd(2.0, gate=0.0, name="other")
  terms = [loss_of_step(*parts) for parts in ((), (one,), (two,), (one, two))]
  np.testing.assert_allclose(
    terms[3] - terms[0], terms[1] + terms[2] - 2 * terms[0], atol=1e-5
  )


def test_a_sweep_over_the_coefficient_traces():
  def one(coefficient):
    return term(make_log_probs(18), batch_of(), part=mmd(coefficient))

  got = jax.vmap(one)(jnp.array([0.0, 1.0, 2.0]))
  np.testing.assert_allclose(got, got[1] * np.arange(3), rtol=1e-3, atol=1e-6)
  assert got[1] > 1e-2


def memorise(defense=None):
  data = synthetic_memorize(160, num_test=1).with_auxiliary(80)
  learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2), defense)
  run = fit(learner, data, epochs=40, batch_size=80, seed=0)
  hits = np.asarray(run.log_probs(data.x)).argmax(-1) == data.y
  return hits[~data.auxiliary].mean()


@pytest.mark.slow
def test_members_are_memorised_less():
  """All accuracy on these records is memory, so a smaller gap is less of it."""
  assert memorise() > 0.95
  assert memorise(mmd(30.0)) < 0.75


def test_pitfall_79_reference_records_are_no_members_and_are_needed():
  data = synthetic_memorize(40, num_test=1)
  learner = classifier(models.mlp(8, num_classes=4), optax.sgd(0.1), mmd())
  with pytest.raises(ValueError, match="with_auxiliary"):
    fit(learner, data, epochs=1, batch_size=8)
  data = data.with_auxiliary(10)
  assert not (data.auxiliary & data.audited).any()
  with pytest.raises(ValueError, match="cannot be members"):
    fit(learner, data, members=np.ones(40, bool), epochs=1, batch_size=8)


def test_per_example_clipping_is_refused():
  with pytest.raises(ValueError, match="whole batch"):
    chain(mmd(), dp_sgd(1.0, guarantee=False))

"""Steps that draw persons: whole ones, by a public probability, with their records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import CLASSES, Linear, arrays, perturbed, same

import mixdef
from mixdef.core.traits import Traits
from mixdef.data import Dataset
from mixdef.defenses import accounting, dp_sgd
from mixdef.training.sampling import epoch_rows, make_plan, persons_of

SIZES = np.array([1, 2, 3, 4, 5, 5, 10, 1, 3, 6, 1, 4, 2, 3, 8])
PERSONS, N = len(SIZES), int(SIZES.sum())
GROUPS = np.random.default_rng(1).permutation(np.repeat(np.arange(PERSONS), SIZES))
MEMBERS = (np.arange(PERSONS) % 3 > 0)[GROUPS]  # 10 of 15 persons


def people(groups=GROUPS):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, 4)).astype(np.float32)
  y = rng.integers(CLASSES, size=N)
  return Dataset.from_arrays(x, y, num_classes=CLASSES, groups=groups)


def plan_of(per_person, data=None, **options):
  sizes = {"epochs": 2, "batch_size": 4, **options}
  traits = Traits(poisson=True, per_person=per_person)
  return make_plan(traits, data or people(), MEMBERS[None], **sizes)


def deal(plan, data=None, epochs=1, members=MEMBERS):
  """Return index and weight [steps, persons, rows], and the overflow."""
  persons = None
  if plan.per_person:
    persons = jax.tree.map(jnp.asarray, persons_of(data or people(), members[None]))

  @jax.jit
  def epoch(key):
    nobody = jnp.zeros(N, bool)
    rows = epoch_rows(key, jnp.asarray(members), nobody, plan, persons=persons)
    return jax.lax.map(rows, jnp.arange(plan.steps_per_epoch))

  rows, overflow = jax.lax.map(epoch, jax.random.split(jax.random.key(0), epochs))
  shape = (-1, plan.capacity, max(1, plan.per_person))
  return *(np.asarray(leaf).reshape(shape) for leaf in rows[:2]), np.asarray(overflow)


def test_batches_and_probabilities_count_persons():
  plan = plan_of(6)
  assert (plan.num_members, plan.steps_per_epoch, plan.probability) == (10, 3, 0.4)
  assert plan.step_rows == 6 * plan.capacity
  index, weight, overflow = deal(plan, epochs=300)
  assert not overflow.any()
  drawn = weight[..., 0] > 0
  draws = len(index)
  # Five standard errors of a binomial mean.
  assert abs(drawn.sum(1).mean() - 4) < 5 * np.sqrt(10 * 0.4 * 0.6 / draws)
  times = np.bincount(GROUPS[index[..., 0]][drawn], minlength=PERSONS) / draws
  assert not times[::3].any()
  inside = np.delete(times, np.s_[::3])
  assert np.abs(inside - 0.4).max() < 5 * np.sqrt(0.4 * 0.6 / draws)


def test_a_drawn_person_brings_its_records_and_nobody_elses():
  index, weight, _ = deal(plan_of(6), epochs=20)
  owner = GROUPS[index]
  assert (owner == owner[..., :1]).all()
  assert MEMBERS[index].all(), "padding repeats members"
  for rows, real in zip(index.reshape(-1, 6), weight.reshape(-1, 6) > 0, strict=True):
    own = np.flatnonzero(GROUPS[rows[0]] == GROUPS)
    if real.any():
      assert real.sum() == min(6, len(own))
      assert len(set(rows[real])) == real.sum()
      if len(own) <= 6:
        assert set(rows[real]) == set(own)
  for person in np.unique(owner[weight > 0]):
    seen = set(index[(owner == person) & (weight > 0)])
    assert seen == set(np.flatnonzero(person == GROUPS)), "every record has its turn"


def test_persons_of_one_record_are_drawn_as_records_are():
  data = people(np.arange(N))
  index, weight, _ = deal(plan_of(1, data), data)
  plain, their_weight, _ = deal(plan_of(0))
  np.testing.assert_array_equal(weight, their_weight)
  np.testing.assert_array_equal(index[weight > 0], plain[weight > 0])


def test_epsilon_is_accounted_with_persons():
  part = dp_sgd(2.0, delta=1e-2, unit="person")
  plan = plan_of(8)
  spec = plan.spec(mixdef.core.Data(jnp.zeros((1, 4)), None, None), None)
  config = {"sampling_probability": 0.4, "steps": 6, "delta": 1e-2}
  expected = accounting.epsilon(2.0, **config)
  state = part.init(jax.random.key(0), spec)
  assert float(state["epsilon"]) == pytest.approx(expected)
  with pytest.raises(ValueError, match="not a guarantee for 10 members"):
    dp_sgd(2.0, delta=0.1, unit="person").init(jax.random.key(0), spec)


def test_what_cannot_draw_persons_is_refused_in_one_line():
  learner = learner_of("dp_sgd(delta=1e-2, unit='person')")
  sizes = {"epochs": 1, "batch_size": 4}
  with pytest.raises(ValueError, match=r"user has no groups: pass groups="):
    mixdef.fit(learner, Dataset(people().x, people().y, CLASSES), **sizes)
  half = np.arange(N) % 2 == 0
  with pytest.raises(ValueError, match=r"members\[0\] selects \d+ of \d+ records of"):
    mixdef.fit(learner, people(), half, **sizes)
  with pytest.raises(ValueError, match="batch_size=16 exceeds the 15 members"):
    mixdef.fit(learner, people(), epochs=1, batch_size=16)


def learner_of(text):
  return mixdef.classifier(Linear(), optax.sgd(0.5), text)


def train(text, data, members, strategy="loop"):
  options = {"epochs": 2, "batch_size": 4, "noise_seed": 0, "strategy": strategy}
  return mixdef.fit_many(learner_of(text), data, members, **options)


@pytest.mark.slow
def test_persons_of_one_record_train_as_records_do():
  data, members = people(np.arange(N)), mixdef.subsets(people(np.arange(N)), 2)
  plain, one, padded = (
    train(f"dp_sgd(1.0, delta=1e-3{more})", data, members).states
    for more in ("", ", unit='person', per_person=1", ", unit='person', per_person=3")
  )
  assert same(plain.params, one.params)
  assert same(plain.params, padded.params, atol=1e-6)
  np.testing.assert_array_equal(
    plain.defense["dp_sgd"]["epsilon"], one.defense["dp_sgd"]["epsilon"]
  )


@pytest.mark.slow
def test_shadow_models_of_persons_are_those_of_a_loop_and_read_no_other_person():
  data = people()
  members = mixdef.subsets(data, 3)
  text = "dp_sgd(1.0, delta=1e-2, unit='person', per_person=4)"
  loop = train(text, data, members)
  assert same(
    loop.states.params, train(text, data, members, "vmap").states.params, 1e-5
  )
  stated = loop[0].guarantee
  assert stated["unit"] == "person"
  persons = np.unique(GROUPS[members[0]]).size
  assert loop.plan.num_members == round(
    np.mean([np.unique(GROUPS[row]).size for row in members])
  )
  assert persons < members[0].sum()
  out = int(np.flatnonzero(~members[0])[0])
  moved = dataclasses.replace(data, x=perturbed(data, out, 9.0).x)
  changed = train(text, moved, members)
  assert same(loop[0].state.params, changed[0].state.params)
  inside = [s for s in range(3) if members[s, out]]
  for s in inside:
    assert not same(loop[s].state.params, changed[s].state.params)
  assert len(arrays(loop.states.params))

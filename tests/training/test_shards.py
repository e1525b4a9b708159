"""Members cut into groups: disjoint, of equal size, the same in every epoch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_cases import records

from mixdef.core.traits import Traits
from mixdef.training.sampling import chunk_of, epoch_rows, make_plan

N = 60
KEY = jax.random.key(4)


def plan_of(members, groups, batch_size):
  sizes = {"epochs": 1, "batch_size": batch_size, "num_shards": groups}
  return make_plan(Traits(), records(N), members[None], **sizes)


def deal(members, groups, batch_size=4, epochs=2):
  """Return the chunk of each record, and every step's rows [epochs,steps,groups,B]."""
  plan = plan_of(members, groups, batch_size)
  chunk = chunk_of(KEY, jnp.asarray(members), groups)

  @jax.jit
  def epoch(key):
    rows = epoch_rows(key, jnp.asarray(members), jnp.zeros(N, bool), plan, chunk)
    return jax.lax.map(rows, jnp.arange(plan.steps_per_epoch))

  rows, overflow = jax.lax.map(epoch, jax.random.split(KEY, epochs))
  assert not overflow.any()
  shape = (*rows.index.shape[:2], groups, -1)
  index, weight = (np.asarray(a).reshape(shape) for a in (rows.index, rows.weight))
  return np.asarray(chunk), index, weight


def members_of(count):
  return np.random.default_rng(count).permutation(N) < count


CASES = pytest.mark.parametrize(
  ("count", "groups"), [(60, 3), (47, 5), (31, 4), (20, 1), (8, 8)]
)


@pytest.mark.slow
@CASES
def test_pitfall_104_each_member_belongs_to_one_group_and_is_met_once_an_epoch(
  count, groups
):
  members = members_of(count)
  chunk, index, weight = deal(members, groups)
  sizes = np.bincount(chunk[members], minlength=groups)
  assert sizes.sum() == count
  assert sizes.max() - sizes.min() <= 1
  for one_index, one_weight in zip(index, weight, strict=True):
    for group in range(groups):
      met = one_index[:, group][one_weight[:, group] > 0]
      assert sorted(met) == sorted(np.flatnonzero(members & (chunk == group)))


@CASES
def test_pitfall_104_padding_repeats_a_record_of_the_group(count, groups):
  members = members_of(count)
  chunk, index, weight = deal(members, groups)
  for group in range(groups):
    assert set(chunk[index[:, :, group]].ravel()) == {group}
  assert members[index].all()
  per_step = weight.sum(-1)
  assert per_step.min() >= 1
  assert per_step.max() - per_step.min() <= 1


def test_epochs_shuffle_within_the_groups():
  _, index, weight = deal(members_of(60), 3, epochs=2)
  for group in range(3):
    first, second = index[:, :, group]
    assert not np.array_equal(first, second)
    assert sorted(first[weight[0, :, group] > 0]) == sorted(
      second[weight[1, :, group] > 0]
    )


def test_groups_are_drawn_at_random():
  members = jnp.ones(N, bool)
  one, other = (chunk_of(jax.random.key(seed), members, 3) for seed in (0, 1))
  assert not np.array_equal(one, other)
  np.testing.assert_array_equal(chunk_of(jax.random.key(0), members, 3), one)
  assert not np.array_equal(one, np.sort(one))


def test_one_group_is_dealt_as_without_groups():
  members = members_of(23)
  plan, key = plan_of(members, 1, 6), jax.random.key(2)
  plain = epoch_rows(key, jnp.asarray(members), jnp.zeros(N, bool), plan)
  chunked = epoch_rows(
    key, jnp.asarray(members), jnp.zeros(N, bool), plan, jnp.zeros(N, int)
  )
  for step in range(plan.steps_per_epoch):
    for one, other in zip(plain(step)[0], chunked(step)[0], strict=True):
      np.testing.assert_array_equal(one, other)


def test_a_draw_close_to_one_stays_in_its_group(monkeypatch):
  """In float32 such a draw and the number of a large group round up to the next."""
  draws = jnp.where(jnp.arange(N) < N // 2, 1 - 2.0**-24, 0.0)
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape: draws)
  members, chunk = jnp.ones(N, bool), (jnp.arange(N) < N // 2) + 6
  plan = plan_of(np.ones(N, bool), 2, 4)
  rows = epoch_rows(KEY, members, ~members, plan, 7 - chunk)
  for step in range(plan.steps_per_epoch):
    groups = np.asarray(rows(step)[0].index).reshape(2, -1)
    for own, (low, high) in zip(groups, itertools.pairwise((0, 30, 60)), strict=True):
      assert ((low <= own) & (own < high)).all()


@pytest.mark.parametrize(
  ("count", "groups", "batch_size", "steps", "capacity"),
  [(60, 3, 4, 5, 4), (47, 5, 4, 3, 4), (60, 1, 7, 9, 7), (41, 4, 5, 3, 4)],
)
def test_the_batch_size_is_that_of_each_group(
  count, groups, batch_size, steps, capacity
):
  plan = plan_of(members_of(count), groups, batch_size)
  assert (plan.steps_per_epoch, plan.capacity) == (steps, capacity)


@pytest.mark.slow
def test_too_few_members_for_the_groups_are_refused():
  members = np.stack([members_of(60), members_of(10)])
  with pytest.raises(ValueError, match=r"10 members for the 5 steps.*of 4 critics"):
    make_plan(
      *(Traits(), records(N), members),
      epochs=1,
      batch_size=3,
      num_members=60,
      num_shards=4,
    )

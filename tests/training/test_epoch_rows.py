import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import LEARNER, Linear, halves, records, train

from mixdef.core.hooks import Defense
from mixdef.core.traits import Traits
from mixdef.learners.classifier import classifier
from mixdef.training.sampling import epoch_rows, make_plan

N = 60
PLAIN = Traits()
POISSON = Traits(poisson=True)


def plan_of(members, *, batch_size, traits=PLAIN, auxiliary=None, epochs=1):
  data = records(N)
  if auxiliary is not None:
    data = type(data)(data.x, data.y, data.num_classes, auxiliary=auxiliary)
  sizes = {"epochs": epochs, "batch_size": batch_size}
  return make_plan(traits, data, members[None], **sizes)


def deal(members, plan, *, seed=0, auxiliary=None, epochs=1):
  """Return the rows of every step: index, weight and auxiliary [epochs,steps,rows]."""
  auxiliary = np.zeros(N, bool) if auxiliary is None else auxiliary

  @jax.jit
  def epoch(key):
    rows = epoch_rows(key, jnp.asarray(members), jnp.asarray(auxiliary), plan)
    return jax.lax.map(rows, jnp.arange(plan.steps_per_epoch))

  keys = jax.random.split(jax.random.key(seed), epochs)
  rows, overflow = jax.tree.map(np.asarray, jax.lax.map(epoch, keys))
  return rows, overflow


def members_of(count):
  return np.random.default_rng(count).permutation(N) < count


def dealt(rows):
  """Return the members each step of the first epoch saw."""
  return [i[w > 0].tolist() for i, w in zip(rows.index[0], rows.weight[0], strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "size"), [(20, 6), (23, 6), (7, 2), (60, 16), (1, 5)]
)
def test_pitfall_71_an_epoch_visits_every_member_once(count, size):
  members = members_of(count)
  rows, overflow = deal(members, plan_of(members, batch_size=size))
  batches = dealt(rows)
  assert sorted(itertools.chain(*batches)) == np.flatnonzero(members).tolist()
  lengths = [len(batch) for batch in batches]
  assert len(batches) == -(-count // size)
  assert max(lengths) - min(lengths) <= 1
  assert max(lengths) <= size
  assert not overflow.any()


def test_padding_repeats_members_only():
  members = members_of(23)
  rows, _ = deal(members, plan_of(members, batch_size=6))
  assert (rows.weight == 0).any()
  assert members[rows.index].all()
  assert not rows.auxiliary.any()


def test_pitfall_70_every_epoch_is_reshuffled():
  members = members_of(20)
  rows, _ = deal(members, plan_of(members, batch_size=6), epochs=3)
  first, second, third = rows.index
  assert not np.array_equal(first, second)
  assert not np.array_equal(second, third)


def test_the_capacity_changes_no_batch():
  members = members_of(20)
  plan = plan_of(members, batch_size=6)
  wide = plan._replace(capacity=plan.capacity + 4)
  assert dealt(deal(members, plan)[0]) == dealt(deal(members, wide)[0])


def test_a_new_member_leaves_the_order_of_the_others():
  members = members_of(20)
  more = members.copy()
  more[np.flatnonzero(~members)[0]] = True
  plan = plan_of(members, batch_size=60)
  (before,), (after,) = (
    dealt(deal(k, plan._replace(capacity=21))[0]) for k in (members, more)
  )
  assert [i for i in after if i in before] == before


def test_pitfall_156_poisson_batches():
  members = members_of(40)
  plan = plan_of(members, batch_size=8, traits=POISSON)
  assert plan.probability == 8 / 40
  rows, overflow = deal(members, plan, epochs=200)
  draws = 200 * plan.steps_per_epoch
  assert not overflow.any()
  index, real = (leaf.reshape(draws, -1) for leaf in (rows.index, rows.weight > 0))
  sizes = real.sum(1)
  # Five standard errors of a binomial mean.
  assert abs(sizes.mean() - 8) < 5 * np.sqrt(40 * 0.2 * 0.8 / draws)
  assert sizes.min() < 8 < sizes.max() <= plan.capacity
  times = np.zeros(N)
  for chosen, kept in zip(index, real, strict=True):
    assert len(set(chosen[kept])) == kept.sum()
    times[chosen[kept]] += 1
  assert not times[~members].any()
  assert np.abs(times[members] / draws - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / draws)


def test_pitfall_156_members_without_a_place_are_counted():
  members = members_of(40)
  plan = plan_of(members, batch_size=8, traits=POISSON)._replace(capacity=2)
  rows, overflow = deal(members, plan, epochs=5)
  assert overflow.max() > 0
  assert rows.index.shape[-1] == 2


def test_pitfall_156_overflow_is_an_error(monkeypatch):
  monkeypatch.setattr("mixdef.training.sampling._poisson_capacity", lambda *_: 1)
  learner = LEARNER._replace(traits=POISSON)
  with pytest.raises(RuntimeError, match="more members than its 1 places"):
    train(learner)


def test_poisson_needs_a_probability():
  with pytest.raises(ValueError, match="batch_size=9 exceeds the 8 members"):
    plan_of(members_of(8), batch_size=9, traits=POISSON)


def test_poisson_capacity_suffices_for_the_largest_subset():
  members = np.stack([members_of(20), members_of(60)])
  data = records(N)
  plan = make_plan(POISSON, data, members, epochs=50, batch_size=30, num_members=40)
  _, overflow = deal(members[1], plan, epochs=50)
  assert not overflow.any()
  assert 45 < plan.capacity <= 60


def test_poisson_capacity_holds_the_public_batch_size():
  sizes = {"epochs": 1, "batch_size": 9, "num_members": 10}
  plan = make_plan(POISSON, records(N), members_of(8)[None], **sizes)
  assert plan.capacity == 9


def test_auxiliary_rows_ride_only_where_they_are_needed():
  auxiliary, members = np.arange(N) < 10, np.arange(N) >= 30
  plain = plan_of(members, batch_size=8, auxiliary=auxiliary)
  assert plain.auxiliary_rows == 0
  plan = plan_of(
    members, batch_size=8, traits=Traits(auxiliary_rows=True), auxiliary=auxiliary
  )
  rows, _ = deal(members, plan, auxiliary=auxiliary)
  own = rows.auxiliary > 0
  assert (rows.weight[own] == 0).all()
  assert auxiliary[rows.index[own]].all()
  assert set(rows.index[own]) == set(range(10))
  assert members[rows.index[~own]].all()
  alone, _ = deal(members, plain, auxiliary=auxiliary)
  assert dealt(rows) == dealt(alone)


def test_a_defense_without_its_auxiliary_rows_is_refused():
  part = Defense("compare", traits=Traits(needs_auxiliary=True))
  learner = classifier(Linear(), optax.sgd(0.5), part)
  with pytest.raises(ValueError, match=r"data\.with_auxiliary\(500\)"):
    train(learner)


def test_auxiliary_records_cannot_be_members():
  data = records().with_auxiliary(5)
  members = halves(1)
  members[0, np.flatnonzero(data.auxiliary)[0]] = True
  with pytest.raises(ValueError, match="members selects auxiliary records"):
    train(data=data, members=members)

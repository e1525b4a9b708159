"""Cyclic Poisson sampling: groups that take turns, and what is trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import MEMBERS, Linear, halves, records, same, train

import mixdef
from mixdef.core import Traits
from mixdef.data import Dataset
from mixdef.training import loop, sampling
from mixdef.training.sampling import epoch_rows, make_plan, persons_of

N, BANDS, EPOCHS = 60, 4, 300
INSIDE = np.arange(N) % 3 > 0
SIZES = {"epochs": EPOCHS, "batch_size": 4}


def plan_of(bands, data=None, **traits):
  traits = Traits(poisson=True, bands=bands, **traits)
  return make_plan(traits, data or records(N), INSIDE[None], **SIZES)


def drawn(plan, key=0, epochs=EPOCHS, persons=None, members=INSIDE):
  """Return whether each member, or person, is in each step bool [T,U]."""
  key = jax.random.key(key)
  count = N if persons is None else len(persons.first)

  @jax.jit
  def one_epoch(epoch):
    turns = sampling.turns_of(key, count, plan, epoch) if plan.bands > 1 else None
    own = jax.random.fold_in(key, epoch)
    rows = epoch_rows(
      own, jnp.asarray(members), jnp.zeros(N, bool), plan, None, persons, turns
    )

    def hits(step):
      found, overflow = rows(step)
      index = found.index
      if persons is not None:
        index = owner[index[:: plan.per_person]]
      weight = found.weight[:: max(1, plan.per_person)]
      return jnp.zeros(count).at[index].add(weight), overflow

    return jax.lax.map(hits, jnp.arange(plan.steps_per_epoch))

  owner = jnp.zeros(N, int)
  if persons is not None:
    each = jnp.repeat(jnp.arange(count), persons.size, total_repeat_length=N)
    owner = owner.at[persons.order].set(each)
  times, overflow = jax.lax.map(one_epoch, jnp.arange(epochs))
  assert not np.asarray(overflow).any()
  times = np.asarray(times).reshape(-1, count)
  assert times.max() == 1
  return times > 0


def check_turns(plan, found):
  """Each member is drawn at every bands-th step only, with probability q on average."""
  assert not found[:, ~INSIDE].any()
  groups = []
  for record in np.flatnonzero(INSIDE):
    steps = np.flatnonzero(found[:, record])
    assert len(set(steps % plan.bands)) == 1, "gaps are multiples of the bands"
    groups.append(steps[0] % plan.bands)
    at_turns = found[groups[-1] :: plan.bands, record]
    q = plan.bands * plan.probability
    # Five standard errors of a binomial mean.
    assert abs(at_turns.mean() - q) < 5 * np.sqrt(q * (1 - q) / len(at_turns))
  sizes = np.bincount(groups, minlength=plan.bands)
  share = INSIDE.sum() / plan.bands
  assert np.abs(sizes - share).max() < 5 * np.sqrt(share)
  return np.array(groups)


def test_a_member_is_drawn_when_its_group_has_its_turn():
  plan = plan_of(BANDS)
  assert plan.steps_per_epoch % BANDS, "turns go on over the ends of epochs"
  groups = check_turns(plan, drawn(plan))
  assert len(set(groups)) == BANDS
  assert (check_turns(plan, drawn(plan, key=1)) != groups).any(), (
    "groups are the model's own"
  )
  assert plan.capacity == plan_of(1).capacity


@pytest.mark.slow
def test_groups_do_not_depend_on_the_members():
  plan = plan_of(BANDS)
  everyone = drawn(plan, epochs=20, members=np.ones(N, bool))
  np.testing.assert_array_equal(everyone[:, INSIDE], drawn(plan, epochs=20)[:, INSIDE])


def test_ordinary_poisson_rows_are_caught(monkeypatch):
  """Epsilon would be stated for turns that no record waits for."""
  plan = plan_of(BANDS)
  with pytest.raises(AssertionError, match="multiples"):
    check_turns(plan, drawn(plan_of(1)))

  def anew(key, count, plan, epoch):
    key = jax.random.fold_in(key, epoch)
    return jax.random.randint(key, (count,), 0, plan.bands)

  monkeypatch.setattr(sampling, "turns_of", anew)
  with pytest.raises(AssertionError, match="multiples"):
    check_turns(plan, drawn(plan))


def test_one_band_draws_the_rows_of_plain_poisson_sampling():
  plain = make_plan(Traits(poisson=True), records(N), INSIDE[None], **SIZES)
  assert plan_of(1) == plain
  assert (plain.sampling, plan_of(BANDS).sampling) == ("Poisson", "cyclic Poisson")
  turns = jnp.zeros(N, int)
  key, nobody = jax.random.key(0), jnp.zeros(N, bool)
  first, second = (
    epoch_rows(key, jnp.asarray(INSIDE), nobody, plain, turns=own)(jnp.int32(3))
    for own in (None, turns)
  )
  assert same(first, second)


@pytest.mark.slow
def test_persons_take_turns():
  data = records(N)
  names = np.repeat(np.arange(N // 3), 3)
  data = Dataset(data.x, data.y, data.num_classes, groups=names)
  members = names % 2 == 0
  traits = Traits(poisson=True, bands=2, per_person=3)
  plan = make_plan(traits, data, members[None], epochs=40, batch_size=3)
  persons = jax.tree.map(jnp.asarray, persons_of(data, members[None]))
  found = drawn(plan, epochs=40, persons=persons, members=members)
  for person in range(0, N // 3, 2):
    steps = np.flatnonzero(found[:, person])
    assert len(steps) > 10
    assert len(set(steps % 2)) == 1
  assert not found[:, 1::2].any()


def test_more_bands_than_batches_of_all_members_are_refused():
  with pytest.raises(ValueError, match=r"bands=11 .* pass at most bands=10"):
    plan_of(11)
  assert plan_of(10).bands == 10


def learner_of(text):
  return mixdef.classifier(Linear(), optax.sgd(0.5), text)


TEXT = "dp_sgd(1.0, bands=3, delta=1e-3)"


def shadows(text=TEXT, **options):
  options = {"noise_seed": 0, "epochs": 3, "members": halves(3), **options}
  return train(learner_of(text), records(), options.pop("members"), **options)


def test_a_run_states_its_cyclic_sampling_and_keeps_no_noise():
  run = shadows(members=halves(1))[0]
  known = run.guarantee["accounting"]
  assert (known["sampling"], known["bands"]) == ("cyclic Poisson", 3)
  assert known["sampling_probability"] == pytest.approx(6 / MEMBERS)
  assert "noises" not in run.state.defense["dp_sgd"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "scan"])
def test_shadow_models_with_bands_are_those_of_a_loop(strategy):
  looped, other = shadows(), shadows(strategy=strategy)
  assert same(looped.states.params, other.states.params, 1e-5)
  assert not same(
    looped.states.params, shadows("dp_sgd(1.0, delta=1e-3)").states.params
  )


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_noise_of_its_last_steps(monkeypatch, tmp_path):
  whole = shadows()
  monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
  steps = loop.train_steps

  def interrupted(program, training, states, epoch, *bounds):
    if epoch == 1:
      raise KeyboardInterrupt
    return steps(program, training, states, epoch, *bounds)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "train_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
      shadows(out=tmp_path)
  assert list((tmp_path / "unfinished").glob("models-*-epoch-1*"))
  assert same(shadows(out=tmp_path).states, whole.states)


@pytest.mark.slow
def test_a_traced_noise_is_accounted_with_its_bands():
  def learner(z):
    return mixdef.classifier(
      Linear(), optax.sgd(0.5), mixdef.dp_sgd(z, bands=3, delta=1e-3)
    )

  swept = train(
    learner, members=halves(2), sweep={"z": np.float32([1.0, 2.0])}, noise_seed=0
  )
  epsilons = [swept[i].guarantee["epsilon"] for i in range(2)]
  plain = train(learner_of("dp_sgd(2.0, bands=3, delta=1e-3)"), noise_seed=0)
  assert epsilons[1] == pytest.approx(plain[0].guarantee["epsilon"], rel=1e-5)
  assert epsilons[0] > epsilons[1]

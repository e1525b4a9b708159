"""Parts, phases and masked steps, which every learner of several networks relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_cases import DATA, RECORDS, STEP_ROWS, Normed, device, learned, same, start

from mixdef.core.hooks import Ctx, Rows
from mixdef.learners._parts import check_phases, part_of, phase_of, step_on
from mixdef.learners.classifier import classifier


def test_parts_are_even_and_independent_of_who_is_asked_about():
  count, parts = 6000, 3
  key = jax.random.key(0)
  everyone = np.asarray(part_of(key, jnp.arange(count), parts))
  shares = np.bincount(everyone, minlength=parts) / count
  deviation = np.sqrt(1 / parts * (1 - 1 / parts) / count)
  assert shares.size == parts
  assert np.abs(shares - 1 / parts).max() < 5 * deviation
  some = np.array([5, 3, 4999])
  np.testing.assert_array_equal(part_of(key, jnp.array(some), parts), everyone[some])
  other = np.asarray(part_of(jax.random.key(1), jnp.arange(count), parts))
  # Two models deal independently: they agree on one record in three.
  agreeing = (other == everyone).mean()
  assert abs(agreeing - 1 / parts) < 5 * deviation


@pytest.mark.parametrize("epochs", [3, 4, 5, 10, 50, 300])
@pytest.mark.parametrize("phases", [1, 2, 3])
def test_phases_are_in_order_and_differ_by_one_epoch_at_most(epochs, phases):
  phase = jax.jit(lambda epoch: phase_of(Ctx(None, 0, epoch, epochs, 1, 1), phases))
  found = [int(phase(epoch)) for epoch in range(epochs)]
  assert found == sorted(found)
  lengths = np.bincount(found, minlength=phases)
  assert len(lengths) == phases
  assert lengths.max() - lengths.min() <= 1


def test_too_few_epochs_are_refused_in_one_line():
  check_phases("it", 3, 3)
  with pytest.raises(
    ValueError, match="it trains in 3 phases: increase epochs=2"
  ) as error:
    check_phases("it", 2, 3)
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def stepped():
  learner = classifier(Normed(), optax.sgd(0.1, momentum=0.9))
  state, _ = start(learner, 3)
  ctx = Ctx(jax.random.key(3), *map(jnp.int32, (0, 0, 3)), 1, 1)

  @jax.jit
  def step(state, data, chosen, weight):
    rows = Rows(jnp.arange(STEP_ROWS), weight, jnp.zeros(STEP_ROWS))
    return step_on(learner, state, data, rows, chosen, ctx)

  return state, step


def test_a_step_without_rows_changes_nothing(stepped):
  state, step = stepped
  ones, everyone = jnp.ones(STEP_ROWS), jnp.ones(STEP_ROWS, bool)
  state, _ = step(state, device(DATA), everyone, ones)  # now momentum is not zero
  for chosen, weight in ((~everyone, ones), (everyone, 0 * ones)):
    after, metrics = step(state, device(DATA), chosen, weight)
    assert same(learned(after), learned(state))
    assert metrics == {"loss": 0, "accuracy": 0}
  after, metrics = step(state, device(DATA), everyone, ones)
  assert not same(after.params, state.params)
  assert metrics["loss"] > 0


def test_a_step_reads_the_chosen_rows_alone(stepped):
  state, step = stepped
  chosen = jnp.arange(STEP_ROWS) % 3 == 0
  clean, _ = step(state, device(DATA), chosen, jnp.ones(STEP_ROWS))
  for row in range(STEP_ROWS):
    x = DATA.x.copy()
    x[row] += 0.5
    data = device(DATA)._replace(x=jnp.asarray(x))
    after, _ = step(state, data, chosen, jnp.ones(STEP_ROWS))
    assert same(learned(after), learned(clean)) == (not chosen[row])
  assert RECORDS > STEP_ROWS

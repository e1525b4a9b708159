"""A private teacher and a private student of the same records: one epsilon for both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import SPEC

import mixdef
from mixdef.core.chaining import from_optax
from mixdef.core.hooks import Defense
from mixdef.core.learner import stage_learners
from mixdef.core.randomness import random_key
from mixdef.defenses import accounting
from mixdef.defenses.teachers import ONE_TEACHER
from mixdef.training.prepare import prepare

DATA = mixdef.load("digits").hold_out(0.2)
SIZES = {"epochs": 2, "batch_size": 128, "num_members": len(DATA)}
STEPS = 2 * -(-len(DATA) // 128)


def fitted(defense, **options):
  learner = mixdef.classifier(mixdef.models.mlp(8), optax.sgd(0.5), defense)
  return mixdef.fit(learner, DATA, **SIZES, **options)


@pytest.mark.parametrize("form", ["soft", "hinton"])
def test_epsilon_is_that_of_both_trainings(form):
  run = fitted(f"distillation(form='{form}')|dp_sgd(noise_multiplier=1.0)")
  found = run.guarantee
  training = {"sampling_probability": 128 / len(DATA), "steps": 2 * STEPS}
  expected = accounting.spent(1.0, delta=found["delta"], **training).epsilon
  assert found["epsilon"] == pytest.approx(expected, rel=1e-5)
  assert found["accounting"]["steps"] == 2 * STEPS
  alone = fitted("dp_sgd(noise_multiplier=1.0)").guarantee
  assert alone["epsilon"] < found["epsilon"] < 2 * alone["epsilon"]


def test_both_trainings_have_the_noise_that_epsilon_needs(monkeypatch):
  """The state of every private training, the teacher's first, holds its noise."""
  drawn = []
  mean = accounting.noise_multiplier

  def recorded(*args, **kwargs):
    drawn.append((kwargs["steps"], mean(*args, **kwargs)))
    return drawn[-1][1]

  monkeypatch.setattr(accounting, "noise_multiplier", recorded)
  run = fitted("distillation|dp_sgd(epsilon=4.0)")
  assert {steps for steps, _ in drawn} == {2 * STEPS}
  assert len({noise for _, noise in drawn}) == 1
  assert run.guarantee["epsilon"] == pytest.approx(4.0, rel=0.01)
  alone = fitted("dp_sgd(epsilon=4.0)").guarantee["accounting"]["noise_multiplier"]
  assert run.guarantee["accounting"]["noise_multiplier"] > alone


def test_the_noise_seed_reaches_the_teacher():
  """A teacher whose noise did not follow it would be known to all who know `seed`."""
  text = "distillation(temperature=1.0)|dp_sgd(noise_multiplier=1.0)"
  first, again, other = (
    fitted(text, seed=1, noise_seed=seed).state.defense["distillation"]
    for seed in (2, 2, 3)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01


def test_teacher_and_student_draw_different_keys():
  """Equal noise in both would be one mechanism with half the noise it is billed for."""
  learner = mixdef.classifier(
    mixdef.models.mlp(8), optax.sgd(0.5), "distillation|dp_sgd()"
  )
  keys = jax.random.split(random_key(0), 2)
  members = np.ones((2, len(DATA)), bool)
  training = prepare(learner, {}, DATA, members, keys, **SIZES).with_noise(5)
  words = [
    np.asarray(jax.random.key_data(one.keys)) for one in (training, training.teachers)
  ]
  assert len({tuple(word) for word in np.concatenate(words).tolist()}) == 4


def test_a_row_of_the_table_is_of_its_own_record():
  """Another record's inputs change nothing but its own row of the table."""
  log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(3), (1, 6)))
  rows = members = np.ones((1, 6), bool)
  table = np.array(ONE_TEACHER.table(None, log_probs, rows, members[0]))
  log_probs[0, 2] = np.log([0.8, 0.1, 0.1])
  members[0, 4] = False
  changed = ONE_TEACHER.table(None, log_probs, rows, members[0])
  assert np.flatnonzero((table != changed).any(1)).tolist() == [2]
  everyone = ONE_TEACHER.rows(None, members[0], ~members[0])
  np.testing.assert_array_equal(everyone, members)


def test_only_the_part_with_the_teacher_sees_its_outputs():
  """Another part could spread what they tell of a record over all records."""
  seen = []

  def init(key, spec):
    del key
    seen.append(spec.table)
    return jnp.zeros(())

  watcher = Defense(
    "watcher", init=init, loss=lambda losses, state, ctx: losses + state
  )
  chained = mixdef.chain("distillation", "dp_sgd(noise_multiplier=1.0)", watcher)
  learner = mixdef.classifier(mixdef.models.mlp(8), optax.sgd(0.5), chained)
  keys, members = jax.random.split(random_key(0), 1), np.ones((1, len(DATA)), bool)
  training = prepare(learner, {}, DATA, members, keys, **SIZES)
  seen.clear()
  spec = training.plan.spec(training.data, jnp.zeros((len(DATA), 10)))
  jax.eval_shape(lambda key: learner.init(key, spec), keys[0])
  assert seen
  assert seen[-1] is None


def test_a_clip_that_counts_one_training_takes_no_teacher():
  own = mixdef.chain("dp_sgd").parts[0]
  mine = own._replace(name="mine", traits=own.traits._replace(composes=False))
  for private in (mine, from_optax("clip", optax.clip(1.0), per_example=True)):
    with pytest.raises(ValueError, match="would cover a single training"):
      mixdef.chain("distillation", private)


def test_a_teacher_with_further_parts_keeps_the_count():
  chained = mixdef.chain("distillation|dp_sgd(noise_multiplier=1.0)")
  built = []
  stage_learners(chained, lambda defense: built.append(defense) or defense)
  spec = SPEC._replace(num_members=1000, batch_size=10)
  for teacher in (built[0], mixdef.chain(built[0], "weight_decay")):
    found = teacher.init(jax.random.key(0), spec)["dp_sgd"]["steps"]
    assert int(found) == 2 * spec.epochs * spec.steps_per_epoch


def test_canaries_of_one_training_do_not_test_two():
  with pytest.raises(ValueError, match=r"the epsilon of 2 trainings.*drop canaries"):
    fitted("distillation|dp_sgd(epsilon=4.0, canaries=20)")

"""Born-again students: who learns from whom and when, and what they answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_cases import (
  CLASSES,
  DATA,
  KEY,
  STEP_ROWS,
  Normed,
  device,
  learned,
  members_of,
  moved,
  same,
  start,
  train_epochs,
)

from mixdef.core.hooks import Ctx, Rows
from mixdef.learners import CATALOGUE, ban_mpr
from mixdef.models import mlp

STUDENTS, EPOCHS = 3, 6  # student g learns in epochs 2g and 2g + 1
SGD = optax.sgd(0.1, momentum=0.9)
LEARNER = ban_mpr(Normed(), SGD, students=STUDENTS, experimental=True)


def of(state, g):
  return jax.tree.map(lambda leaf: leaf[g], learned(state))


def changed(before, after):
  return [not same(of(before, g), of(after, g)) for g in range(STUDENTS)]


@pytest.fixture(scope="module")
def clean():
  """States before each student's epochs and at the end; the step."""
  state, step = start(LEARNER, EPOCHS)
  states = [state]
  for g in range(STUDENTS):
    epochs = (2 * g, 2 * g + 1)
    states.append(train_epochs(states[-1], step, epochs, of=EPOCHS))
  return states, step


@pytest.mark.slow
@pytest.mark.parametrize("g", range(STUDENTS))
def test_each_student_learns_in_its_own_epochs(clean, g):
  states, _ = clean
  expected = [student == g for student in range(STUDENTS)]
  assert changed(states[g], states[g + 1]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("g", range(STUDENTS))
@pytest.mark.parametrize("part", range(STUDENTS))
def test_a_record_is_read_by_the_student_of_its_part_alone(clean, g, part):
  states, step = clean
  data = moved(*members_of(part, STUDENTS)[:2])
  epochs = (2 * g, 2 * g + 1)
  after = train_epochs(states[g], step, epochs, data=data, of=EPOCHS)
  assert same(learned(after), learned(states[g + 1])) == (part != g)


@pytest.mark.slow
def test_students_start_from_different_weights(clean):
  states, _ = clean
  kernel = states[0].params["Dense_0"]["kernel"]
  assert len(np.unique(np.asarray(kernel)[:, 0, 0])) == STUDENTS


@pytest.mark.slow
def test_padding_trains_nothing(clean):
  states, step = clean
  after = train_epochs(states[0], step, range(EPOCHS), of=EPOCHS, padded=True)
  assert same(learned(after), learned(states[0]))


def test_the_answer_is_the_plain_average_of_probabilities(clean):
  states, _ = clean
  end, x = states[-1], jnp.asarray(DATA.x)
  total = np.zeros((len(DATA), CLASSES))
  for g in range(STUDENTS):
    params, stats, _ = of(end, g)
    logits = Normed().apply({"params": params, **stats}, x)
    total += np.asarray(jax.nn.softmax(logits), np.float64)
  np.testing.assert_allclose(
    LEARNER.predict(end, x), np.log(total / STUDENTS), atol=1e-5
  )
  np.testing.assert_array_equal(
    LEARNER.predict(end, x, raw=True), LEARNER.predict(end, x)
  )


class Linear(mlp().__class__):
  """Softmax regression, whose gradient is known."""

  widths: tuple[int, ...] = ()
  num_classes: int = CLASSES


@pytest.mark.parametrize("g", [0, 1])
def test_a_step_descends_the_stated_loss(g):
  rate, coefficient = 0.5, 0.3
  learner = ban_mpr(
    Linear(), optax.sgd(rate), students=2, coefficient=coefficient, experimental=True
  )
  state, step = start(learner, 2)
  index = jnp.arange(STEP_ROWS)
  rows = Rows(index, jnp.ones(STEP_ROWS), jnp.zeros(STEP_ROWS))
  ctx = Ctx(jax.random.key(0), *map(jnp.int32, (g, g, 2)), 1, 1)
  after, metrics = step(state, device(DATA), rows, ctx)
  layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
  kernel, bias = layer["Dense_0"]["kernel"], layer["Dense_0"]["bias"]

  chosen = np.intersect1d(members_of(g, 2), np.arange(STEP_ROWS))
  gradient, total = np.zeros_like(kernel[g]), 0.0
  for i in chosen:
    x, target = DATA.x[i], np.eye(CLASSES)[DATA.y[i]]
    own = _softmax(x @ kernel[g] + bias[g])
    if g:
      target = (target + _softmax(x @ kernel[g - 1] + bias[g - 1])) / 2
    entropy = -(own * np.log(own)).sum()
    total += -(target * np.log(own)).sum() - coefficient * entropy
    slope = own - target + coefficient * own * (np.log(own) + entropy)
    gradient += np.outer(x, slope)
  expected = kernel[g] - rate * gradient / len(chosen)
  np.testing.assert_allclose(
    after.params["Dense_0"]["kernel"][g], expected, rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(metrics["loss"], total / len(chosen), rtol=1e-5)


def _softmax(logits):
  odds = np.exp(logits - logits.max())
  return odds / odds.sum()


@pytest.mark.slow
def test_a_step_costs_one_student_however_many_there_are():
  def flops(students):
    learner = ban_mpr(mlp(64, num_classes=3), SGD, students=students, experimental=True)
    state, step = start(learner, 8)
    ones, index = jnp.ones(STEP_ROWS), jnp.arange(STEP_ROWS)
    ctx = Ctx(KEY, *map(jnp.int32, (0, 0, 8)), 1, 1)
    rows = Rows(index, ones, 0 * ones)
    compiled = step.lower(state, device(DATA), rows, ctx).compile()
    return compiled.cost_analysis()["flops"]

  assert flops(8) < 1.2 * flops(2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "ban_mpr: .* placeholder: pass experimental=True"),
    ({"experimental": 1}, "pass experimental=True"),
    ({"experimental": True, "students": 0}, "ban_mpr: students is 0"),
    ({"experimental": True, "students": 2.0}, "ban_mpr: students is 2.0"),
    ({"experimental": True, "coefficient": -0.1}, "ban_mpr: coefficient is -0.1"),
  ],
)
def test_wrong_arguments_are_refused_in_one_line(options, message):
  with pytest.raises(ValueError, match=message) as error:
    ban_mpr(Normed(), SGD, **options)
  assert "\n" not in str(error.value)


def test_two_models_are_refused():
  with pytest.raises(ValueError, match="ban_mpr accepts one model, not 2"):
    ban_mpr((Normed(), Normed(4)), SGD, experimental=True)


def test_fewer_epochs_than_students_are_refused():
  with pytest.raises(ValueError, match="ban_mpr trains in 3 phases: increase epochs=2"):
    start(LEARNER, STUDENTS - 1)


def test_the_catalogue_holds_it():
  assert CATALOGUE["ban_mpr"] is ban_mpr

"""Trainings that come before others: on which rows, and what they hand over."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import (
  CLASSES,
  RECORDS,
  SIZES,
  Linear,
  halves,
  perturbed,
  records,
  same,
  train,
)

from mixdef.core.chaining import chain
from mixdef.core.hooks import Defense, Stage
from mixdef.defenses.averaging import ema
from mixdef.defenses.release import confidence_masking
from mixdef.defenses.teachers import distillation
from mixdef.learners.classifier import classifier

EVEN = np.arange(RECORDS) % 2 == 0


def two_teachers():
  """Hand over class 0 as two teachers see it, of the even and of the odd members."""

  def rows(key, members, reference):
    return jnp.stack([members & EVEN, members & ~EVEN])

  def table(key, log_probs, rows, members):
    one, other = log_probs
    return jnp.stack([one[:, 0], other[:, 0], members], 1)

  return Defense(
    "two",
    stages=(Stage(rows=rows, table=table, models=2),),
    init=lambda key, spec: spec.table,
    loss=lambda losses, state, ctx: losses * (1 + state[0, 0] ** 2),
  )


LEARNER = classifier(Linear(), optax.sgd(0.5), two_teachers())
KEEP = halves(2)


@pytest.fixture(scope="module")
def looped():
  return train(LEARNER, members=KEEP)


@pytest.mark.slow
def test_every_model_gets_the_table_of_its_own_teachers(looped):
  tables = looped.states.defense["two"]
  assert tables.shape == (2, RECORDS, CLASSES)
  np.testing.assert_array_equal(tables[..., 2] > 0, KEEP)
  assert not np.allclose(tables[0, :, 0], tables[0, :, 1])
  assert not np.allclose(tables[0, :, 0], tables[1, :, 0])


@pytest.mark.parametrize("row", range(8))
def test_a_teacher_learns_from_its_rows_only(looped, row):
  moved = train(LEARNER, perturbed(records(), row, 0.5), KEEP)
  before, after = (np.array(e.states.defense["two"]) for e in (looped, moved))
  others = np.arange(RECORDS) != row
  for s in range(2):
    for teacher, its_rows in enumerate((EVEN, ~EVEN)):
      unmoved = np.array_equal(before[s, others, teacher], after[s, others, teacher])
      assert unmoved == (not KEEP[s, row] or not its_rows[row])


@pytest.mark.slow
def test_a_stage_is_trained_alike_by_every_strategy(looped):
  vmapped = train(LEARNER, members=KEEP, strategy="vmap")
  assert same(vmapped.states.defense, looped.states.defense, atol=1e-5)
  assert same(vmapped.states.params, looped.states.params, atol=1e-5)


def test_chunks_take_their_own_teachers(looped):
  chunked = train(LEARNER, members=KEEP, memory_gb=1e-9)
  assert same(chunked.states, looped.states)


def test_teachers_enter_the_history(looped):
  rows = [(row["models"], row["epoch"]) for row in looped.history]
  assert rows == [
    (name, epoch)
    for name in ("teachers-00000", "models-00000")
    for epoch in range(SIZES["epochs"])
  ]


@pytest.mark.slow
def test_pitfall_60_distillation_passes_no_out_record_on():
  learner = classifier(Linear(), optax.sgd(0.5), distillation(2.0))
  clean = train(learner, members=KEEP)
  row = np.flatnonzero(~KEEP.any(0))[0]
  moved = train(learner, perturbed(records(), row, 1e3), KEEP)
  assert same(moved.states.params, clean.states.params)
  answers = clean.states.defense["distillation"]
  np.testing.assert_allclose(answers.sum(-1), 1, rtol=1e-6)
  picked = np.take_along_axis(np.array(answers), records().y[None, :, None], 2)[..., 0]
  assert picked[KEEP].mean() > picked[~KEEP].mean() + 0.03


@pytest.mark.slow
def test_teachers_may_differ_in_a_swept_value():
  def make(temperature):
    return classifier(Linear(), optax.sgd(0.5), distillation(temperature))

  swept = train(make, members=KEEP, sweep={"temperature": [1.0, 100.0]})
  sharp, flat = swept.states.defense["distillation"]
  assert sharp.max() > 0.5
  np.testing.assert_allclose(flat, 1 / CLASSES, atol=0.05)


def test_a_stage_with_a_defense_of_its_own():
  own = Defense("halve", loss=lambda losses, *_: 0.0 * losses, model=None)
  part = two_teachers()
  stage = part.stages[0]._replace(defense=own)
  learner = classifier(Linear(), optax.sgd(0.5), part._replace(stages=(stage,)))
  table = train(learner, members=KEEP).states.defense["two"]
  np.testing.assert_allclose(table[..., :2], np.log(1 / CLASSES), rtol=1e-6)


@pytest.mark.slow
def test_a_teacher_answers_with_the_weights_it_would_release():
  def table(*parts):
    learner = classifier(Linear(), optax.sgd(0.5), chain(distillation(1.0), *parts))
    return train(learner, members=KEEP).states.defense["distillation"]

  assert not np.allclose(table(), table(ema(0.9)))
  np.testing.assert_array_equal(table(), table(confidence_masking(1)))

"""Distillation, DMP and SELENA from end to end: steps, influence, chunks, resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import CLASSES, RECORDS, Linear, perturbed, same
from training_cases import records as all_records

from mixdef.core.chaining import chain
from mixdef.defenses.dmp import dmp
from mixdef.defenses.selena import selena
from mixdef.defenses.smoothing import weighted_smoothing
from mixdef.defenses.teachers import distillation
from mixdef.learners.classifier import classifier
from mixdef.training import fit, fit_many
from mixdef.training import loop as loop_module
from mixdef.training.progress import Progress

REFERENCE = np.arange(RECORDS) >= 30
KEEP = np.zeros((2, RECORDS), bool)
KEEP[0, :20], KEEP[1, 8:28] = True, True
SIZES = {"epochs": 2, "batch_size": 6}
STUDENTS = [
  distillation(2.0),
  distillation(2.0, form="hinton"),
  dmp(),
  selena(5, non_models=2),
]
by_student = pytest.mark.parametrize("part", STUDENTS, ids=str)


def records():
  return dataclasses.replace(all_records(), auxiliary=REFERENCE)


def relabelled(data, row):
  y = data.y.copy()
  y[row] = (y[row] + 1) % CLASSES
  return dataclasses.replace(data, y=y)


@functools.cache
def learner_of(part):
  return classifier(Linear(), optax.sgd(0.5, momentum=0.9), chain(part))


def train(part, data=None, members=KEEP, **options):
  data = records() if data is None else data
  options = {"strategy": "loop", **SIZES, **options}
  return fit_many(learner_of(part), data, members, **options)


@functools.cache
def clean(part):
  return train(part)


def targets_of(ensemble):
  (state,) = ensemble.states.defense.values()
  return np.asarray(state["targets"] if isinstance(state, dict) else state)


def naive(x, targets, epochs):
  """Softmax regression on soft targets, by full-batch descent with momentum."""
  x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
  weights = np.zeros((x.shape[1], CLASSES))
  momentum = np.zeros_like(weights)
  for _ in range(epochs):
    logits = x @ weights
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    momentum = 0.9 * momentum + x.T @ (probs - targets) / len(x)
    weights -= 0.5 * momentum
  return weights


@pytest.mark.slow
@pytest.mark.parametrize("part", [STUDENTS[0], *STUDENTS[2:]], ids=str)
def test_pitfall_69_a_student_equals_a_naive_one_with_momentum_across_epochs(part):
  data, members = records(), KEEP[0]
  run = fit(learner_of(part), data, members, epochs=4, batch_size=RECORDS)
  chosen = REFERENCE if part.rows else members
  (state,) = run.state.defense.values()
  targets = np.asarray(state["targets"] if part.rows else state)[chosen]
  expected = naive(data.x[chosen], targets, epochs=4)
  got = run.state.params["Dense_0"]
  np.testing.assert_allclose(got["kernel"], expected[:-1], atol=1e-5)
  np.testing.assert_allclose(got["bias"], expected[-1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_members", [None, 20])
def test_a_dmp_student_takes_its_steps_from_the_reference_rows(num_members):
  ensemble = train(dmp(), num_members=num_members)
  assert ensemble.plan.num_members == REFERENCE.sum() == 10
  assert ensemble.plan.steps_per_epoch == 2  # the teacher's 20 rows take 4
  np.testing.assert_array_equal(ensemble.members, KEEP)


@pytest.mark.slow
def test_dmp_with_all_rows_left_out_stays_where_it_started():
  ensemble = train(dmp(entropy=1e-9))
  assert not np.any(ensemble.states.params["Dense_0"]["kernel"])


@pytest.mark.slow
@by_student
def test_pitfall_60_an_out_record_changes_nothing(part):
  out = np.flatnonzero(~KEEP.any(0) & ~REFERENCE)[0]
  moved = train(part, perturbed(records(), out, 1e3))
  assert same(moved.states.params, clean(part).states.params)
  others = np.arange(RECORDS) != out
  assert same(targets_of(moved)[:, others], targets_of(clean(part))[:, others])
  relabel = train(part, relabelled(records(), out))
  assert same(relabel.states, clean(part).states)


@pytest.mark.slow
@by_student
def test_targets_of_records_that_are_out_are_never_used(part):
  """The teacher's answers for them are NaN, which would spread."""
  (stage,) = part.stages

  def table(key, log_probs, rows, members):
    used = REFERENCE if part.rows else members
    return jnp.where(used[:, None], stage.table(key, log_probs, rows, members), jnp.nan)

  poisoned = train(part._replace(stages=(stage._replace(table=table),)))
  assert np.isnan(targets_of(poisoned)).any()
  assert same(poisoned.states.params, clean(part).states.params)


@pytest.mark.slow
@by_student
def test_pitfall_80_a_members_label_reaches_its_own_targets_only_without_selena(part):
  moved = train(part, relabelled(records(), 9))
  before, after = targets_of(clean(part)), targets_of(moved)
  assert same(before[:, 9], after[:, 9]) == (part.name == "selena")
  assert not same(before, after)  # teachers of other records did see it


def test_a_member_reaches_a_dmp_student_by_its_teacher_only():
  fixed = jnp.log(jnp.full((RECORDS, CLASSES), 1 / CLASSES).at[:, 0].set(0.5))
  (stage,) = dmp().stages
  deaf = dmp()._replace(stages=(stage._replace(table=lambda *_: fixed),))
  moved = perturbed(records(), 9, 1.0)
  assert same(train(deaf, moved).states.params, train(deaf).states.params)
  part = STUDENTS[2]
  assert not same(train(part, moved).states.params, clean(part).states.params)
  other = relabelled(records(), 35)  # the labels of auxiliary rows are not used
  assert same(train(part, other).states.params, clean(part).states.params)


@pytest.mark.slow
def test_parts_beside_dmp_act_on_the_rows_that_its_student_trains_on():
  learner = classifier(
    Linear(), optax.sgd(0.5), chain(weighted_smoothing(start=0), dmp())
  )
  run = fit(learner, records(), KEEP[0], **SIZES)
  z = np.asarray(run.state.defense["weighted_smoothing"]["z"])  # 1 is no noise
  assert (z[~REFERENCE] == 1).all()
  assert (z[REFERENCE] != 1).mean() > 0.5


def test_pitfall_79_reference_rows_are_disjoint_from_members():
  with pytest.raises(ValueError, match="auxiliary records: they cannot be members"):
    train(dmp(), members=KEEP | REFERENCE)
  with pytest.raises(ValueError, match="with_auxiliary"):
    train(dmp(), all_records())


@pytest.mark.slow
@pytest.mark.parametrize("part", STUDENTS[2:], ids=str)
def test_strategies_and_chunks_agree(part):
  whole = train(part, strategy="scan")
  chunked = train(part, strategy="scan", memory_gb=1e-9)
  assert (whole.models_at_once, chunked.models_at_once) == (2, 1)
  assert same(chunked.states, whole.states)
  assert same(clean(part).states, whole.states, atol=1e-5)
  assert same(train(part, strategy="vmap").states, whole.states, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("part", "stopped_in"), [(STUDENTS[2], 3), (STUDENTS[3], 2)], ids=str
)
def test_an_interrupted_stage_ends_like_an_unbroken_one(
  tmp_path, monkeypatch, part, stopped_in
):
  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)
  epochs = []

  def advance(self, units, **metrics):
    epochs.append(units)
    if len(epochs) == stopped_in:  # the teachers train for two epochs, then the student
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Progress, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
      train(part, out=tmp_path)
  assert same(train(part, out=tmp_path).states, clean(part).states)
  assert same(train(part, out=tmp_path).states, clean(part).states)  # all loaded


@pytest.mark.slow
def test_models_added_later_leave_the_earlier_ones_as_they_were():
  """The teachers' steps follow the public size, not the sizes that were drawn."""
  members = np.zeros((3, RECORDS), bool)
  members[0, :12], members[1, 5:17], members[2, :30] = True, True, True
  fewer = train(STUDENTS[3], members=members[:2], num_members=20, batch_size=4)
  more = train(STUDENTS[3], members=members, num_members=20, batch_size=4)
  params = jax.tree.map(lambda leaf: leaf[:2], more.states.params)
  assert same(params, fewer.states.params, atol=1e-6)

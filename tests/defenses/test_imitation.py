"""Imitators: what they are trained on, and when the teacher is asked."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  SPEC,
  TABLE,
  N,
  in_epoch,
  make_batch,
  make_log_probs,
)

import mixdef
from mixdef import models
from mixdef.attacks import Signals, imia, leave_one_out, lira_offline
from mixdef.attacks.imia import glira
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import imitation
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit, fit_many


def losses_of(part, epoch, batch):
  known = in_epoch(epoch)._replace(batch=batch, log_probs=make_log_probs())
  plain = -(batch.y * known.log_probs).sum(-1)
  return plain, part.loss(plain, part.init(None, SPEC), known), known.log_probs


def test_the_loss_is_half_of_each_after_the_warm_up():
  part, batch = imitation(TABLE, warm_up=0.5), make_batch()
  for epoch in (0, 3):
    plain, found, _ = losses_of(part, epoch, batch)
    np.testing.assert_array_equal(found, plain)
  for epoch in (4, 7):
    plain, found, student = losses_of(part, epoch, batch)
    apart = np.asarray(student) - np.asarray(TABLE)[np.asarray(batch.index)]
    expected = (np.asarray(plain) + (apart**2).mean(-1)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_function_is_asked_about_the_rows_and_logits_count_as_log_probs():
  part, batch = imitation(lambda x: 7 + 3 * x[:, :3], warm_up=0.0), make_batch()
  plain, found, student = losses_of(part, 0, batch)
  teacher = jax.nn.log_softmax(3 * batch.x[:, :3])
  expected = (plain + ((student - teacher) ** 2).mean(-1)) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_run_is_asked_as_it_predicts():
  learner = types.SimpleNamespace(predict=lambda state, x: state * x[:, :3])
  run, batch = types.SimpleNamespace(learner=learner, state=3.0), make_batch()
  by_run, by_function = (
    losses_of(imitation(teacher, warm_up=0.0), 0, batch)[1]
    for teacher in (run, lambda x: 3 * x[:, :3])
  )
  np.testing.assert_array_equal(by_run, by_function)


def test_probabilities_of_zero_stay_finite():
  table = jnp.where(TABLE.max(1, keepdims=True) == TABLE, 0.0, -jnp.inf)
  part = imitation(table, warm_up=0.0)
  assert np.isfinite(losses_of(part, 0, make_batch())[1]).all()


@pytest.mark.parametrize(
  ("teacher", "error", "match"),
  [
    ("release", TypeError, "pass a Run"),
    (np.zeros((N, 7)), ValueError, f"{N} records and 3 classes"),
    (lambda x: jnp.zeros((len(x), 7)), ValueError, "the same classes"),
  ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, error, match):
  with pytest.raises(error, match=match):
    losses_of(imitation(teacher, warm_up=0.0), 7, make_batch())
  with pytest.raises(ValueError, match="warm_up is 2"):
    imitation(TABLE, warm_up=2)


@pytest.fixture(scope="module")
def data():
  return synthetic_memorize(200, seed=0)


def learner_of(*parts):
  return classifier(
    models.mlp(64, num_classes=4), optax.adam(5e-3), mixdef.chain(*parts)
  )


OPTIONS = {"epochs": 10, "batch_size": 32}


@pytest.fixture(scope="module")
def release(data):
  return fit(learner_of(), data, np.arange(200) < 100, **OPTIONS)


@pytest.mark.slow
def test_a_run_and_its_answers_on_file_make_the_same_imitators(data, release):
  members = subsets(data, 3, seed=1)
  answers = release.log_probs(data.x)
  answers = np.where(members.any(0)[:, None], answers, np.nan)  # nobody else is asked
  by_run, by_file = (
    fit_many(
      learner_of(imitation(teacher, warm_up=0.2)),
      *(data, members),
      strategy="vmap",
      **OPTIONS,
    )
    for teacher in (release, answers)
  )
  for left, right in zip(
    *(jax.tree.leaves(one.states.params) for one in (by_run, by_file)), strict=True
  ):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
  plain = fit_many(learner_of(), data, members, strategy="vmap", **OPTIONS)

  def distance(ensemble):
    apart = [run.log_probs(data.x) - release.log_probs(data.x) for run in ensemble]
    own = members[..., None]
    return np.where(own, np.square(apart), 0).sum() / own.sum()

  assert distance(by_run) < 0.7 * distance(plain)


@pytest.mark.slow
def test_a_whole_warm_up_is_a_plain_training(data, release):
  members = np.arange(200) % 2 == 0
  plain = fit(learner_of(), data, members, **OPTIONS)
  same = fit(learner_of(imitation(release, warm_up=1.0)), data, members, **OPTIONS)
  for left, right in zip(
    jax.tree.leaves(plain.state.params), jax.tree.leaves(same.state.params), strict=True
  ):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_imitators_find_the_members_of_a_release(data):
  data = synthetic_memorize(400, seed=0)
  options = {"epochs": 40, "batch_size": 32}
  release = fit(learner_of(), data, np.arange(400) < 200, **options)
  ordinary = fit_many(learner_of(), data, subsets(data, 10, seed=2), **options)
  part = imitation(release)
  imitators = fit_many(learner_of(part), data, subsets(data, 10, seed=3), **options)
  phi = Signals.from_logits(
    release.log_probs(data.x)[None], data.y, release.members[None]
  ).phi[0]
  for scores in (
    imia(phi, ordinary.signals(), imitators.signals()),
    imia(phi, ordinary.signals(), imitators.signals(), form="clamp"),
    glira(phi, imitators.signals()),
  ):
    scored = ~np.isnan(scores)
    assert auc(scores[scored], release.members[scored]) > 0.7
  strong = leave_one_out(lira_offline, ordinary.signals())
  assert auc(strong, ordinary.members) > 0.7

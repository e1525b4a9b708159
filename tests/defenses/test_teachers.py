"""Teachers and students: who sees which record, and what is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import (
  DATA,
  KEEP,
  REFERENCE,
  SPEC,
  TABLE,
  K,
  Loop,
  N,
  assert_same,
  ctx_at,
  in_epoch,
  init,
  learner_of,
  make_batch,
  make_log_probs,
  rows_at,
)

from mixdef import models
from mixdef.core.chaining import chain
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import distillation, mixup, weight_decay
from mixdef.defenses.dmp import dmp
from mixdef.defenses.selena import selena
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit_many

GRID = [1, 2, 3, 5, 10, 15, 25, 50, 75, 100]
GRID += [125, 150, 250, 500, 650, 700, 750, 850, 900, 1000]


def test_soft_distillation_trains_on_the_softened_teacher():
  part, batch = distillation(4.0), make_batch(weight=[1, 1, 1, 1, 0, 0])
  state = part.init(None, SPEC)
  y = part.batch(batch, state, in_epoch(0)).y
  logits = np.asarray(TABLE[:6], np.float64) / 4
  expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(y, expected, rtol=1e-5)


def naive_hinton(teacher, student, losses, t, a):
  def soften(row):
    e = np.exp(np.asarray(row, np.float64) / t)
    return e / e.sum()

  out = []
  for q, s, l in zip(map(soften, teacher), map(soften, student), losses, strict=True):
    out.append(a * t**2 * (q * np.log(q / s)).sum() + (1 - a) * float(l))
  return np.array(out)


def given(log_probs, batch):
  return in_epoch(0)._replace(log_probs=log_probs, batch=batch)


def test_hinton_distillation_equals_a_naive_loop():
  part = distillation(3.0, form="hinton", a=0.3)
  batch, student = make_batch(), make_log_probs()
  losses = -(batch.y * student).sum(-1)
  got = part.loss(losses, part.init(None, SPEC), given(student, batch))
  expected = naive_hinton(TABLE[:6], student, losses, 3.0, 0.3)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_hinton_distillation_mixes_the_teacher_as_the_batch_was_mixed():
  part = distillation(1.0, form="hinton", a=1.0)
  batch, student = mixup(0.7).batch(make_batch(), (), in_epoch(0)), make_log_probs()
  got = part.loss(jnp.zeros(6), part.init(None, SPEC), given(student, batch))
  p, lam = np.exp(TABLE), np.asarray(batch.lam)[:, None]
  teacher = np.log(lam * p[batch.index] + (1 - lam) * p[batch.partner])
  expected = naive_hinton(teacher, student, np.zeros(6), 1.0, 1.0)
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_pitfall_68_classes_of_probability_zero_do_not_change_the_kl():
  batch, student = make_batch(), make_log_probs()
  wide = jnp.pad(student, ((0, 0), (0, K)), constant_values=-1e4)
  table = jnp.pad(TABLE, ((0, 0), (0, K)), constant_values=-1e4)

  def kl(log_probs, table, **options):
    part = distillation(2.0, form="hinton", a=1.0, **options)
    state = part.init(None, SPEC._replace(table=table))
    return part.loss(jnp.zeros(6), state, given(log_probs, batch))

  np.testing.assert_allclose(kl(wide, table), kl(student, TABLE), rtol=1e-5)
  official = kl(student, TABLE, official_scale=True)
  np.testing.assert_allclose(official * K, kl(student, TABLE), rtol=1e-6)


def test_distillation_trains_its_teacher_on_the_members_by_the_rest_of_the_chain():
  learner = learner_of(distillation(), weight_decay(0.1))
  ((stage, teacher),) = learner.stages
  rows = stage.rows(jax.random.key(0), KEEP, REFERENCE)
  np.testing.assert_array_equal(rows, KEEP[None])
  log_probs = make_log_probs(N)[None]
  table = stage.table(jax.random.key(0), log_probs, rows, KEEP)
  np.testing.assert_array_equal(table, log_probs[0])
  decayed = Loop(weight_decay(0.1))
  expected = decayed.train(steps=1).params
  step = jax.jit(teacher.step)
  got = step(init(teacher), DATA, rows_at(6), ctx_at(6))[0].params
  assert_same(got, expected, 1e-6)


@pytest.mark.parametrize("part", [distillation(), dmp(), selena()])
def test_a_student_without_a_teacher_says_so(part):
  with pytest.raises(ValueError, match=f"{part.name} has no teacher"):
    part.init(None, SPEC._replace(table=None))


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    # q = softmax(1, 0, -1), s_2 = softmax(1/2, 0, -1/2), KL(q || s_2) = 0.060269
    ({}, 0.832396),
    ({"form": "hinton", "a": 0.25}, 0.365973),
    ({"form": "hinton", "a": 0.25, "official_scale": True}, 0.325794),
  ],
)
def test_distillation_equals_values_worked_out_by_hand(options, expected):
  part = distillation(2.0, **options)
  table = jnp.tile(jax.nn.log_softmax(jnp.array([2.0, 0.0, -2.0])), (N, 1))
  state = part.init(None, SPEC._replace(table=table))
  batch = make_batch(rows=1)
  log_probs = jax.nn.log_softmax(jnp.array([[1.0, 0.0, -1.0]]))
  if part.batch:
    batch = part.batch(batch, state, in_epoch(0))
  losses = -(batch.y * log_probs).sum(-1)
  if part.loss:
    losses = part.loss(losses, state, given(log_probs, batch))
  np.testing.assert_allclose(losses, [expected], rtol=1e-5)


def test_targets_soften_along_the_published_temperatures():
  sure = [np.max(distillation(float(t)).init(None, SPEC), axis=1) for t in GRID]
  assert (np.diff(sure, axis=0) < 0).all()
  np.testing.assert_allclose(sure[-1], 1 / K, rtol=0.01)


def sets_of(part, seed=0, num_records=N):
  """bool [teachers,N]: who must not see a record of a set where all are members."""
  (stage,) = part.stages
  everyone = jnp.ones(num_records, bool)
  return ~np.asarray(stage.rows(jax.random.key(seed), everyone, ~everyone))


def test_pitfall_80_every_record_has_its_own_random_non_models():
  sets = sets_of(selena(5, non_models=2), num_records=2000)
  np.testing.assert_array_equal(sets.sum(0), 2)
  # A teacher is in a set with chance 2/5, a pair of teachers with chance 1/10.
  assert np.abs(sets.mean(1) - 0.4).max() < 5 * np.sqrt(0.24 / 2000)
  pairs = sets.astype(float) @ sets.T / 2000
  off = ~np.eye(5, dtype=bool)
  assert np.abs(pairs[off] - 0.1).max() < 5 * np.sqrt(0.09 / 2000)


def test_pitfall_80_sets_depend_on_the_model_and_the_record_only():
  part = selena(5, non_models=2)
  sets = sets_of(part, num_records=40)
  np.testing.assert_array_equal(sets_of(part, num_records=30), sets[:, :30])
  assert (sets_of(part, seed=1, num_records=40) != sets).any(0).mean() > 0.5
  members = np.arange(40) % 3 == 0
  (stage,) = part.stages
  rows = stage.rows(jax.random.key(0), jnp.array(members), jnp.zeros(40, bool))
  np.testing.assert_array_equal(rows, members & ~sets)


def test_selena_targets_equal_a_naive_mean_over_each_set():
  part = selena(5, non_models=3)
  (stage,) = part.stages
  log_probs = jax.nn.log_softmax(
    jnp.array(np.random.default_rng(0).normal(size=(5, N, K)), jnp.float32) * 3
  )
  rows = stage.rows(jax.random.key(0), KEEP, REFERENCE)
  table = stage.table(jax.random.key(0), log_probs, rows, KEEP)
  got = part.init(None, SPEC._replace(table=table))
  sets, probs = sets_of(part), np.exp(np.asarray(log_probs, np.float64))
  expected = np.zeros((N, K))
  for i in range(N):
    for teacher in range(5):
      if sets[teacher, i]:
        assert not rows[teacher, i]
        expected[i] += probs[teacher, i] / 3
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_selena_survives_teachers_that_are_certain():
  (stage,) = selena(2, non_models=1).stages
  certain = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf)
  log_probs = jnp.tile(certain, (2, N, 1))
  table = stage.table(jax.random.key(0), log_probs, None, KEEP)
  targets = selena().init(None, SPEC._replace(table=table))
  np.testing.assert_array_equal(targets, np.eye(K)[[0] * N])


@pytest.mark.parametrize("part", [distillation(1.0), dmp(), selena()])
def test_the_mixture_is_of_targets_and_reference_rows_are_taught_alike(part):
  """Hard labels beside soft ones would tell an attack network who is a member."""
  batch = make_batch(weight=[1, 1, 1, 1, 0, 0])
  batch = batch._replace(auxiliary=1 - batch.weight)
  defended = chain(mixup(0.7), part)  # tables go first whatever the order given
  state = defended.init(jax.random.key(0), SPEC)
  mixed = defended.batch(batch, state, in_epoch(0))
  targets, lam = np.exp(TABLE), np.asarray(mixed.lam)[:, None]
  expected = lam * targets[mixed.index] + (1 - lam) * targets[mixed.partner]
  np.testing.assert_allclose(mixed.y, expected, rtol=1e-5)
  np.testing.assert_allclose(mixed.y[4:], targets[4:6], rtol=1e-5)


def test_dmp_trains_on_the_reference_rows_alone():
  rows = dmp().rows(jax.random.key(0), KEEP, REFERENCE)
  np.testing.assert_array_equal(rows, REFERENCE)
  (stage,) = dmp().stages
  np.testing.assert_array_equal(stage.rows(None, KEEP, REFERENCE), KEEP[None])


@pytest.mark.parametrize("bound", [0.5, 0.8, 1.0])
def test_dmp_leaves_out_rows_of_which_the_teacher_is_unsure(bound):
  table = jax.nn.log_softmax(TABLE * jnp.linspace(0.0, 6.0, N)[:, None])
  part = dmp(3.0, entropy=bound)
  state = part.init(None, SPEC._replace(table=table))
  p = np.exp(np.asarray(table, np.float64))
  admitted = [-(row * np.log(row)).sum() <= bound * np.log(K) + 1e-6 for row in p]
  np.testing.assert_array_equal(state["weight"], admitted)
  assert 0 < sum(admitted) < N or bound == 1.0
  assert all(admitted) or bound < 1.0  # the first row's answer is uniform
  batch = part.batch(make_batch(rows=N), state, in_epoch(0))
  np.testing.assert_array_equal(batch.weight, admitted)
  softened = p ** (1 / 3) / (p ** (1 / 3)).sum(-1, keepdims=True)
  chosen = np.flatnonzero(admitted)
  np.testing.assert_allclose(batch.y[chosen], softened[chosen], rtol=1e-5)


@pytest.mark.parametrize("part", [dmp(), selena(5, non_models=2)])
def test_pitfall_68_classes_of_probability_zero_do_not_change_the_loss(part):
  batch, student = make_batch(), make_log_probs()

  def losses(log_probs, table, classes):
    state = part.init(None, SPEC._replace(table=table, num_classes=classes))
    wide = batch._replace(y=jax.nn.one_hot(batch.y.argmax(-1), classes))
    return -(part.batch(wide, state, in_epoch(0)).y * log_probs).sum(-1)

  def pad(log_probs):
    return jnp.pad(log_probs, ((0, 0), (0, K)), constant_values=-1e4)

  got = losses(pad(student), pad(TABLE), 2 * K)
  np.testing.assert_allclose(got, losses(student, TABLE, K), rtol=1e-5)


@pytest.fixture(scope="module")
def leakage():
  """Return `part -> AUC` of the loss of models that could know random labels."""
  data = synthetic_memorize(300, num_classes=4, num_test=10).with_auxiliary(100)
  members = subsets(data, 4, seed=0)

  def measure(*parts):
    learner = classifier(models.mlp(32, num_classes=4), optax.adam(1e-2), chain(*parts))
    options = {"epochs": 25, "batch_size": 32, "strategy": "vmap"}
    ensemble = fit_many(learner, data, members, **options)
    answers = ensemble.log_probs(data.x)
    own = np.take_along_axis(answers, data.y[None, :, None], -1)[..., 0]
    return auc(own[:, data.audited], members[:, data.audited])

  return measure


@pytest.mark.slow
def test_students_leak_less_than_an_undefended_model(leakage):
  assert leakage() > 0.85
  # Near 1/2, not at it: a label still moves the answers of teachers that saw it, on
  # records nearby.
  assert leakage(selena(5, non_models=2)) < 0.65
  assert leakage(dmp()) < 0.78

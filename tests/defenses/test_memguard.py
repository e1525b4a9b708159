"""MemGuard: the search, the coin, the attack network, and what an attacker sees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import KEEP, REFERENCE, SPEC, K, after, ctx_at

from mixdef import models
from mixdef.attacks import (
  entropy,
  gap,
  label_only_noise,
  leave_one_out,
  loss_threshold,
)
from mixdef.core.chaining import chain
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import dp_sgd, memguard
from mixdef.defenses.memguard import disguise, log_odds, release_share
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit, fit_many


def make_net(sizes, seed=0):
  """A random attack network, in float64."""
  rng = np.random.default_rng(seed)
  return [
    (rng.normal(size=(i, o)), 0.1 * rng.normal(size=o))
    for i, o in itertools.pairwise(sizes)
  ]


def single(tree):
  return jax.tree.map(jnp.float32, tree)


def dirichlet(rows, classes, seed=0, concentration=1.0):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.full(classes, concentration), rows)
  return np.log(probs)


def softmax(f):
  return np.exp(f) / np.exp(f).sum()


def naive_odds(net, probs):
  values = np.sort(probs)
  for weights, bias in net[:-1]:
    values = np.maximum(values @ weights + bias, 0)
  return (values @ net[-1][0] + net[-1][1]).item()


def naive_disguise(net, f, steps):
  """One row in float64, by central differences: (probabilities, successes)."""
  classes, label, before = len(f), f.argmax(), naive_odds(net, softmax(f))

  def cost(e, c3):
    q, lead = softmax(f + e), max(np.delete(f + e, label)) - (f + e)[label]
    distortion = np.abs(q - softmax(f)).sum()
    return abs(naive_odds(net, q)) + 10 * max(0, lead) + c3 * distortion

  def fooled(e):
    kept = (f + e).argmax() == label
    return kept and naive_odds(net, softmax(f + e)) * before <= 0

  best, successes = np.zeros(classes), 0
  for c3 in (0.1, 1, 10, 100, 1e3, 1e4, 1e5):
    e = np.zeros(classes)
    for _ in range(steps):
      if fooled(e):
        break
      ups = 1e-6 * np.eye(classes)
      grad = np.array([cost(e + up, c3) - cost(e - up, c3) for up in ups])
      e = e - 0.1 * grad / np.linalg.norm(grad)
    if not fooled(e):
      break
    best, successes = e, successes + 1
  closer = abs(naive_odds(net, softmax(f + best))) < abs(before)
  return softmax(f + best if closer and successes else f), successes


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_search_equals_a_naive_loop(seed):
  net, rows = make_net((4, 8, 1), seed), dirichlet(6, 4, seed, 20.0)
  expected, successes = zip(*(naive_disguise(net, f, 40) for f in rows), strict=True)
  got = jnp.exp(disguise(single(net), jnp.float32(rows), 40))
  np.testing.assert_allclose(got, expected, atol=5e-4)
  # No answer with these labels fools the network of seed 2; the others are fooled.
  assert (max(successes) == 0) == (seed == 2)


def test_the_network_reads_sorted_probabilities():
  net = single(
    [(np.eye(3)[:, :2], np.zeros(2)), (np.array([[1.0], [-2.0]]), np.array([0.25]))]
  )
  answers = jnp.log(jnp.array([[0.7, 0.1, 0.2], [0.2, 0.7, 0.1]]))
  np.testing.assert_allclose(log_odds(net, answers), [-0.05, -0.05], atol=1e-6)


def test_release_share_holds_the_expected_distortion_within_the_budget():
  np.testing.assert_allclose(release_share(jnp.float32(1.25), 0.5), 0.4, rtol=1e-6)
  distortion = jnp.linspace(0, 2, 41)
  for budget in (0.0, 0.1, 0.5, 1.0, 2.0):
    expected = release_share(distortion, budget) * distortion
    np.testing.assert_allclose(expected, np.minimum(distortion, budget), rtol=1e-5)


EASY = [(np.array([[0.0], [0.0], [1.0]]), np.array([-0.6]))]  # log-odds p_(1) - 0.6


def release(x, log_probs, *, budget=1.0, key=0, net=EASY):
  ctx = ctx_at()._replace(key=jax.random.key(key), queries=jnp.float32(x))
  part = memguard(budget, steps=60)
  return part.release_output(jnp.float32(log_probs), single(net), ctx)


@pytest.mark.slow
def test_pitfall_81_the_mean_distortion_over_records_is_the_budget():
  x = np.random.default_rng(0).normal(size=(4000, 5))
  answers = np.tile(np.log([0.1, 0.85, 0.05]), (4000, 1))
  distortion = np.abs(np.exp(release(x, answers, budget=2.0)) - np.exp(answers)).sum(-1)
  largest = distortion[0]
  assert 0.5 < largest < 0.8  # the top falls from 0.85 to 0.6, or one step below
  budget = 0.3 * largest
  mean = np.abs(np.exp(release(x, answers, budget=budget)) - np.exp(answers)).sum(-1)
  moved = (mean > 1e-6).mean()
  sigma = np.sqrt(0.3 * 0.7 / 4000)
  assert abs(moved - 0.3) < 5 * sigma
  assert mean.mean() <= budget + 5 * sigma * largest


@pytest.mark.slow
def test_pitfall_81_one_coin_a_record_in_any_company_and_another_for_each_model():
  x, answers = np.random.default_rng(1).normal(size=(200, 5)), dirichlet(200, 3)
  once = release(x, answers, budget=0.1)
  np.testing.assert_array_equal(once, release(x, answers, budget=0.1))
  others = np.roll(np.arange(200), 77)
  np.testing.assert_array_equal(
    once[others], release(x[others], answers[others], budget=0.1)
  )
  other_model = release(x, answers, budget=0.1, key=1)
  assert 0 < (once != other_model).any(-1).mean() < 1


@pytest.mark.slow
def test_pitfall_16_the_label_of_every_record_is_kept():
  ties = np.log([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3]])
  near = np.log(np.full((50, 3), 1 / 3)) + 1e-7 * dirichlet(50, 3, 5)
  sure = np.array([[0, -87.3, -87.3], [-1e4, 0, -2e4]])
  answers = np.concatenate([dirichlet(300, 3), ties, near, sure])
  x = np.random.default_rng(2).normal(size=(len(answers), 5))
  for net in (EASY, make_net((3, 16, 16, 1), 4)):
    out = release(x, answers, budget=2.0, net=net)
    np.testing.assert_array_equal(out.argmax(-1), np.float32(answers).argmax(-1))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(jnp.exp(out).sum(-1), 1, atol=1e-5)


def train_net(log_probs, epochs=30, seed=0):
  part = memguard(epochs=epochs)
  net = part.init(jax.random.key(seed), SPEC)
  return jax.jit(lambda net, answers: part.finish(net, after(ctx_at(), answers)))(
    net, log_probs
  )


@pytest.mark.slow
def test_the_network_learns_members_from_reference_rows_and_from_nobody_else():
  sure, unsure = np.log([0.98, 0.01, 0.01]), np.log([0.5, 0.3, 0.2])
  answers = jnp.float32(np.where(KEEP[:, None], sure, unsure))
  net = train_net(answers)
  # Eight members and two auxiliary rows count alike: the log-odds are symmetric enough
  # to call each kind by its name.
  odds = log_odds(net, answers)
  assert (odds[KEEP] > 1).all()
  assert (odds[REFERENCE] < -1).all()
  out = ~(KEEP | REFERENCE)
  swapped = jnp.where(out[:, None], jnp.float32(sure), answers)
  again = train_net(swapped)
  for one, other in zip(jax.tree.leaves(net), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_network_has_the_official_layers():
  net = memguard().init(jax.random.key(0), SPEC)
  assert [w.shape for w, _ in net] == [(K, 256), (256, 128), (128, 64), (64, 1)]


def learner_of(defense=None):
  return classifier(models.mlp(32, num_classes=4), optax.adam(1e-2), defense)


def memorise(defense=None):
  data = synthetic_memorize(240, num_classes=4, num_test=1).with_auxiliary(60)
  members = subsets(data, 4, seed=0) & ~data.auxiliary
  return fit_many(
    learner_of(defense), data, members, epochs=40, batch_size=32, strategy="vmap"
  )


BUDGET = 0.2


@pytest.fixture(scope="module")
def plain():
  return memorise()


@pytest.fixture(scope="module")
def guarded():
  return memorise(memguard(BUDGET, steps=40, epochs=40))


@pytest.fixture(scope="module")
def seen(plain, guarded):
  return plain.signals(), guarded.signals()


@pytest.mark.slow
def test_score_attacks_fall(seen):
  undefended, defended = seen
  for attack, drop in ((loss_threshold, 0.02), (entropy, 0.08)):
    before, after = (
      auc(leave_one_out(attack, s)[:, s.audited], s.members[:, s.audited]) for s in seen
    )
    assert before > 0.7
    assert after < before - drop
  probs = [np.exp(s.log_probs) for s in (undefended, defended)]
  distortion = np.abs(probs[0] - probs[1]).sum(-1)
  assert 0 < distortion.mean() <= BUDGET


@pytest.mark.slow
def test_pitfall_47_label_only_scores_are_those_without_the_defense(
  plain, guarded, seen
):
  before, after = (leave_one_out(gap, s) for s in seen)
  np.testing.assert_array_equal(before, after)
  np.testing.assert_array_equal(*(s.log_probs.argmax(-1) for s in seen))
  records = np.flatnonzero(plain.data.audited)[:20]
  one, other = (
    label_only_noise(e, target=0, records=records, sigma=0.5, draws=12)
    for e in (plain, guarded)
  )
  assert len(np.unique(one[records])) > 2
  np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_pitfall_15_raw_answers_skip_the_noise_and_a_repeated_query_changes_nothing(
  plain, guarded
):
  x = plain.data.x[:64]
  run, undefended = guarded[0], plain[0]
  answers = run.log_probs(x)
  np.testing.assert_array_equal(answers[10:20], run.log_probs(x[10:20]))
  np.testing.assert_array_equal(answers, run.log_probs(x))
  np.testing.assert_array_equal(run.log_probs(x, raw=True), undefended.log_probs(x))
  assert np.abs(answers - undefended.log_probs(x)).max() > 0.01


def test_its_network_voids_epsilon():
  with pytest.raises(
    ValueError, match=r"memguard lets a record influence .*guarantee=False"
  ):
    chain(dp_sgd(), memguard())
  assert chain(dp_sgd(guarantee=False), memguard()).traits.no_guarantee


def test_training_without_reference_records_is_refused():
  data = synthetic_memorize(40, num_test=1)
  with pytest.raises(ValueError, match="with_auxiliary"):
    fit(learner_of(memguard()), data, epochs=1, batch_size=8)

"""Losses of one record: ccl, focal_loss, confidence_penalty, hamp_entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import K, ctx_at, make_batch, make_log_probs

from mixdef.core.chaining import chain
from mixdef.core.estimators import mean_value_and_grad
from mixdef.defenses import (
  ccl,
  confidence_penalty,
  dp_sgd,
  focal_loss,
  hamp_entropy,
  label_smoothing,
)

PARTS = [
  ccl(),
  ccl(form="ccql"),
  focal_loss(),
  focal_loss(0.5),
  confidence_penalty(),
  hamp_entropy(0.1),
  hamp_entropy(0.1, official_scale=True),
]


def changed_losses(part, log_probs, y, weight=None):
  """The losses [B] after the part; 0 log 0 is 0 in the cross-entropy before it."""
  batch = make_batch(len(y), weight)._replace(y=y)
  losses = -(y * jnp.where(y > 0, log_probs, 0.0)).sum(-1)
  return part.loss(losses, (), ctx_at()._replace(log_probs=log_probs, batch=batch))


def two_classes(*confidences):
  """Log-probabilities of rows whose class 0 is right with the given confidence."""
  p = np.array(confidences)
  return jnp.array(np.log(np.stack([p, 1 - p], 1)), jnp.float32)


def right(rows):
  return jnp.tile(jnp.array([1.0, 0.0]), (rows, 1))


def logit_gradient(part, logits, y):
  def total(logits):
    return changed_losses(part, jax.nn.log_softmax(logits), y).sum()

  return jax.grad(total)(logits)


@pytest.mark.parametrize(
  ("form", "expected"),
  [
    ("ccel", [0.59871, -0.47779, -1.17712, -1.34059]),
    ("ccql", [1.09879, 0.03407, -0.59982, -0.73500]),
  ],
)
def test_ccl_golden_values(form, expected):
  log_probs = two_classes(0.1, 0.5, 0.9, 0.99)
  got = changed_losses(ccl(beta=1.0, form=form), log_probs, right(4))
  np.testing.assert_allclose(got, expected, atol=1e-5)
  scaled = changed_losses(ccl(form=form), log_probs, right(4))
  np.testing.assert_allclose(scaled, 0.05 * np.array(expected), atol=1e-6)


@pytest.mark.parametrize("form", ["ccel", "ccql"])
def test_pitfall_67_the_concave_term_raises_the_confidence(form):
  logits = two_classes(0.01, 0.3, 0.7, 0.99)
  gradient = logit_gradient(ccl(0.0, beta=1.0, form=form), logits, right(4))
  assert (gradient[:, 0] < -1e-3).all()


@pytest.mark.parametrize("form", ["ccel", "ccql"])
def test_ccl_pulls_hardest_on_the_best_fitted_where_cross_entropy_pulls_least(form):
  def slope(alpha, log_p):
    log_probs = jnp.stack([log_p, jnp.full_like(log_p, -9.0)], 1)
    loss = changed_losses(ccl(alpha, beta=1.0, form=form), log_probs, right(3))
    return loss.sum()

  p = jnp.array([0.2, 0.5, 0.9])
  convex, concave = (-jax.grad(slope, 1)(a, jnp.log(p)) / p for a in (1.0, 0.0))
  assert (np.diff(convex) < 0).all()
  assert (np.diff(concave) > 0).all()


def test_ccl_and_focal_loss_read_the_confidence_in_a_soft_label():
  log_probs, y = make_log_probs(5), jnp.exp(make_log_probs(5, seed=8))
  bent = changed_losses(ccl(0.3, beta=2.0), log_probs, y)
  focused = changed_losses(focal_loss(1.5), log_probs, y)
  for i, (lp, row) in enumerate(zip(np.asarray(log_probs), np.asarray(y), strict=True)):
    loss = -(row * lp).sum()
    p = (row * np.exp(lp)).sum()
    np.testing.assert_allclose(bent[i], 2 * (0.3 * loss - 0.7 * np.exp(p)), rtol=1e-5)
    np.testing.assert_allclose(focused[i], (1 - p) ** 1.5 * loss, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_equals_its_formula(gamma):
  p = np.array([0.1, 0.5, 0.9])
  got = changed_losses(focal_loss(gamma), two_classes(*p), right(3))
  np.testing.assert_allclose(got, -((1 - p) ** gamma) * np.log(p), rtol=1e-5)


def test_focal_loss_keeps_precision_close_to_certainty():
  """At p = 1 - 1e-9, where 1 - p in float32 is 0."""
  log_probs = jnp.array([[-1e-9, np.log(1e-9)]], jnp.float32)
  got = changed_losses(focal_loss(1.0), log_probs, right(1))
  np.testing.assert_allclose(got, [1e-18], rtol=1e-5)


def test_confidence_penalty_of_hand_computed_rows():
  probs = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
  y = jax.nn.one_hot(jnp.array([0, 1]), 3)
  got = changed_losses(confidence_penalty(), jnp.log(jnp.array(probs)), y)
  # H(.7, .2, .1) = .801819: .356675 - .0801819, and log 3 - .1 log 3.
  np.testing.assert_allclose(got, [0.276493, 0.9 * np.log(3)], atol=1e-6)


def test_hamp_entropy_equals_a_naive_loop():
  log_probs, y = make_log_probs(5), jnp.exp(make_log_probs(5, seed=8))
  plain = changed_losses(hamp_entropy(0.3), log_probs, y)
  official = changed_losses(hamp_entropy(0.3, official_scale=True), log_probs, y)
  for i, (lp, row) in enumerate(zip(np.asarray(log_probs), np.asarray(y), strict=True)):
    divergence = sum(q * (np.log(q) - s) for q, s in zip(row, lp, strict=True))
    entropy = -sum(np.exp(s) * s for s in lp)
    np.testing.assert_allclose(plain[i], divergence - 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(official[i], divergence / K - 0.3 * entropy, rtol=1e-5)


def test_hamp_entropy_is_the_confidence_penalty_on_hard_labels():
  log_probs, y = make_log_probs(6), make_batch().y
  ours = changed_losses(hamp_entropy(0.2), log_probs, y)
  theirs = changed_losses(confidence_penalty(0.2), log_probs, y)
  np.testing.assert_array_equal(ours, theirs)


def test_hamp_entropy_without_a_bonus_is_zero_where_the_label_is_met():
  log_probs = make_log_probs(4)
  got = changed_losses(hamp_entropy(0.0), log_probs, jnp.exp(log_probs))
  np.testing.assert_allclose(got, np.zeros(4), atol=1e-6)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_pitfall_68_classes_of_probability_zero_change_nothing(part):
  log_probs, y = make_log_probs(4), make_batch(4).y
  wide = jnp.concatenate([log_probs, jnp.full((4, K), -jnp.inf)], 1)
  padded = changed_losses(part, wide, jnp.concatenate([y, jnp.zeros((4, K))], 1))
  plain = changed_losses(part, log_probs, y)
  if "official_scale" not in str(part):
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    return
  bonus = changed_losses(part, log_probs, jnp.zeros((4, K)))  # -0.1 H(p) alone
  np.testing.assert_allclose(padded - bonus, (plain - bonus) / 2, rtol=1e-5)


def test_pitfall_68_the_official_scale_counts_the_bonus_k_times():
  logits, y = make_log_probs(5), make_batch(5).y
  official = logit_gradient(hamp_entropy(0.1, official_scale=True), logits, y)
  equation = logit_gradient(hamp_entropy(0.1 * K), logits, y)
  np.testing.assert_allclose(official, equation / K, atol=1e-6)


@pytest.mark.parametrize("part", [confidence_penalty(), hamp_entropy(0.1)], ids=str)
def test_the_entropy_bonus_lowers_the_confidence_of_a_fitted_record(part):
  logits = two_classes(0.95, 0.9999)
  bonus = logit_gradient(part, logits, right(2)) - logit_gradient(
    confidence_penalty(0.0), logits, right(2)
  )
  assert (bonus[:, 0] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 40.0, 1e4])
def test_pitfall_159_loss_and_gradient_are_finite_at_confidence_0_and_1(part, logit):
  logits = jnp.array([[logit, 0.0, 0.0], [logit, 0.0, -logit]])
  y = jax.nn.one_hot(jnp.array([0, 0]), 3)
  for labels in (
    y,
    label_smoothing().batch(make_batch(2)._replace(y=y), (), ctx_at()).y,
  ):
    losses = changed_losses(part, jax.nn.log_softmax(logits), labels)
    assert np.isfinite(losses).all()
    assert np.isfinite(logit_gradient(part, logits, labels)).all()


def test_a_certain_record_adds_nothing_to_the_gradient_of_a_small_focus():
  gradient = logit_gradient(focal_loss(0.5), jnp.array([[200.0, 0.0]]), right(1))
  np.testing.assert_array_equal(gradient, np.zeros((1, 2)))


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_padding_changes_neither_loss_nor_gradient(part):
  logits, y = make_log_probs(6), make_batch().y
  logits = logits.at[4:].mul(50.0)
  weight = jnp.array([1.0, 1, 1, 1, 0, 0])

  def estimate(rows):
    def losses_fn(logits, batch, ctx):
      del batch, ctx
      losses = changed_losses(part, jax.nn.log_softmax(logits), y[:rows])
      return losses, ()

    batch = make_batch(rows, weight[:rows])
    return mean_value_and_grad(losses_fn)(logits[:rows], batch, (), None)

  ((padded, _), padded_grad), ((plain, _), plain_grad) = estimate(6), estimate(4)
  np.testing.assert_allclose(padded, plain, rtol=1e-6)
  np.testing.assert_allclose(padded_grad[:4], plain_grad, rtol=1e-6)
  np.testing.assert_array_equal(padded_grad[4:], np.zeros((2, K)))


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_losses_stay_per_record_so_dp_sgd_keeps_its_guarantee(part):
  batch, log_probs = make_batch(), make_log_probs()
  alone = [
    changed_losses(part, log_probs[i : i + 1], batch.y[i : i + 1]) for i in range(6)
  ]
  together = changed_losses(part, log_probs, batch.y)
  np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)
  assert not chain(part, dp_sgd(1.0, 1.0)).traits.no_guarantee


def test_parts_act_in_the_order_of_the_chain():
  log_probs, batch = make_log_probs(), make_batch()
  losses = -(batch.y * log_probs).sum(-1)
  both = chain(confidence_penalty(0.2), ccl(beta=1.0))
  state = {"confidence_penalty": (), "ccl": ()}
  got = both.loss(losses, state, ctx_at()._replace(log_probs=log_probs, batch=batch))
  p = np.exp(np.asarray(log_probs))
  entropy = -(p * np.log(p)).sum(-1)
  own = (np.asarray(batch.y) * p).sum(-1)
  expected = 0.5 * (np.asarray(losses) - 0.2 * entropy) - 0.5 * np.exp(own)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.slow
def test_hyper_parameters_may_be_swept_inside_the_trace():
  log_probs, y = make_log_probs(4), make_batch(4).y
  values = jnp.array([0.25, 0.75])
  for factory in (ccl, focal_loss, confidence_penalty, hamp_entropy):
    swept = jax.vmap(lambda v, f=factory: changed_losses(f(v), log_probs, y))(values)
    one_by_one = [changed_losses(factory(float(v)), log_probs, y) for v in values]
    np.testing.assert_allclose(swept, one_by_one, rtol=1e-6)

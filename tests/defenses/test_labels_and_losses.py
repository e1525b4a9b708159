"""Label smoothing and RelaxLoss against hand-computed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_harness import K, Loop, in_epoch, make_batch, make_log_probs

from mixdef.core.hooks import weighted_mean
from mixdef.defenses import label_smoothing, relaxloss

PROBS = jnp.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])
LABELS = jax.nn.one_hot(jnp.array([0, 0]), 3)


def mean_loss(part, epoch, log_probs, y, weight=None):
  """The batch loss that a step would descend."""
  batch = make_batch(len(y), weight)._replace(y=y)
  losses = -(y * log_probs).sum(-1)
  ctx = in_epoch(epoch)._replace(log_probs=log_probs, batch=batch)
  changed = part.loss(losses, (), ctx)
  return weighted_mean(changed, batch.weight)


def test_label_smoothing_check_value():
  batch = make_batch(2)._replace(y=jax.nn.one_hot(jnp.array([0, 4]), 10))
  y = label_smoothing().batch(batch, (), in_epoch(0)).y
  expected = np.full((2, 10), 0.01)
  expected[0, 0] = expected[1, 4] = 0.91
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  np.testing.assert_allclose(y, optax.smooth_labels(batch.y, 0.1), rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "epoch", "expected"),
  [
    ({"alpha": 0.5}, 0, 0.280324),
    ({"alpha": 0.5}, 1, 0.780324),
    ({"alpha": 1.0}, 0, 0.219676),
    ({"alpha": 1.0}, 1, -0.107381),
    ({"alpha": 1.0, "form": "tabular"}, 1, 1.091181),
    # Only the first row is right: (1.345886 - 0.356675) / 2.
    ({"alpha": 1.0, "ascent": "correct_only"}, 1, 0.494606),
  ],
)
def test_pitfall_65_relaxloss_golden_values(options, epoch, expected):
  got = mean_loss(relaxloss(**options), epoch, jnp.log(PROBS), LABELS)
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_relaxloss_caps_the_confidence_it_keeps():
  got = mean_loss(relaxloss(upper=0.1, form="tabular"), 1, jnp.log(PROBS), LABELS)
  rows = [
    -(0.1 * np.log(p[0]) + 0.45 * (np.log(p[1]) + np.log(p[2])))
    for p in np.asarray(PROBS, np.float64)
  ]
  np.testing.assert_allclose(got, np.mean(rows), rtol=1e-5)


def test_pitfall_65_relaxloss_alternates_by_epoch_in_one_trace():
  loop = Loop(relaxloss(1.0))
  loop.train(steps=8)
  assert loop.traces == 1
  odd_and_even = {
    float(mean_loss(relaxloss(), epoch, jnp.log(PROBS), LABELS)) for epoch in range(4)
  }
  assert len(odd_and_even) == 2


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_pitfall_65_padding_does_not_enter_the_level(epoch, alpha):
  part = relaxloss(alpha)
  pad = jnp.array([[1e-6, 0.5, 0.5 - 1e-6]])
  padded = mean_loss(
    part,
    epoch,
    jnp.log(jnp.concatenate([PROBS, pad])),
    jnp.concatenate([LABELS, LABELS[:1]]),
    [1, 1, 0],
  )
  plain = mean_loss(part, epoch, jnp.log(PROBS), LABELS)
  np.testing.assert_allclose(padded, plain, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "sign"), [(0.5, 1), (1.0, -1)])
def test_relaxloss_descends_above_the_level_and_climbs_below(alpha, sign):
  def through(part):
    def loss(logits):
      log_probs = jax.nn.log_softmax(logits)
      if part is None:
        return -(LABELS * log_probs).sum(-1).mean()
      return mean_loss(part, 0, log_probs, LABELS)

    return jax.grad(loss)(jnp.log(PROBS))

  np.testing.assert_allclose(through(relaxloss(alpha)), sign * through(None), rtol=1e-5)


def test_relaxloss_at_the_level_descends():
  log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  level = float(-log_probs[0, 0])
  part = relaxloss(level)
  gradient = jax.grad(lambda lp: mean_loss(part, 0, lp, LABELS[:1]))(log_probs)
  np.testing.assert_allclose(gradient, [[-1, 0, 0]])


def test_pitfall_66_detach_changes_the_gradient_and_not_the_loss():
  log_probs = make_log_probs(4)
  y = jax.nn.one_hot(jnp.array([0, 1, 2, 0]), K)
  out = [
    jax.value_and_grad(
      lambda lp, d=detach: mean_loss(relaxloss(9.0, detach=d), 1, lp, y)
    )(log_probs)
    for detach in (False, True)
  ]
  np.testing.assert_allclose(out[0][0], out[1][0], rtol=1e-6)
  assert np.abs(out[0][1] - out[1][1]).max() > 0.01


def test_relaxloss_of_soft_labels_flattens_to_a_distribution():
  log_probs, y = make_log_probs(5), jnp.exp(make_log_probs(5, seed=8))
  got = mean_loss(relaxloss(99.0, form="tabular"), 1, log_probs, y)
  rows = []
  for lp, row in zip(np.asarray(log_probs), np.asarray(y), strict=True):
    c = (row * np.exp(lp)).sum()
    target = c * row + (1 - c) * (1 - row) / (K - 1)
    np.testing.assert_allclose(target.sum(), 1, rtol=1e-5)
    rows.append(-(target * lp).sum())
  np.testing.assert_allclose(got, np.mean(rows), rtol=1e-5)


@pytest.mark.slow
def test_hyper_parameters_may_be_swept_inside_the_trace():
  alphas = jnp.array([0.5, 1.0])
  got = jax.vmap(lambda a: mean_loss(relaxloss(a), 0, jnp.log(PROBS), LABELS))(alphas)
  np.testing.assert_allclose(got, [0.280324, 0.219676], atol=2e-6)
  rows = jax.vmap(lambda e: label_smoothing(e).batch(make_batch(2), (), in_epoch(0)).y)(
    jnp.array([0.0, 0.3])
  )
  np.testing.assert_allclose(rows[:, 0, 0], [1.0, 0.8], rtol=1e-6)

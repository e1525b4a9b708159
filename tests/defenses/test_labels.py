"""Random labels and labels of high entropy, against hand-computed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import K, in_epoch, make_batch, make_log_probs

from mixdef.core.chaining import chain
from mixdef.defenses import disturb_label, hamp_label, label_smoothing, mixup
from mixdef.defenses.labels import label_confidence

GOLDEN = [
  # gamma, classes, exact p, p on the grid, epsilon of label smoothing
  (0.95, 10, 0.26981, 0.26, 0.81132),
  (0.99, 10, 0.17004, 0.17, 0.92218),
  (0.99968377, 10, 0.11164, 0.11, 0.98707),
  (0.5, 100, 0.64098, 0.64, 0.36265),
  (0.8, 100, 0.33737, 0.33, 0.66932),
  (0.6, 100, 0.54851, 0.54, 0.45605),
  (0.5, 30, 0.68092, 0.68, 0.33008),
]


def labels_of(part, y, seed=0):
  batch = make_batch(len(y))._replace(y=y)
  return np.asarray(jax.jit(part.batch)(batch, (), in_epoch(0, seed=seed)).y)


def entropy(rows):
  rows = np.asarray(rows, np.float64)
  return -(rows * np.log(np.maximum(rows, 1e-300))).sum(-1)


def official_share(gamma, classes):
  """Lower p by hundredths until the entropy suffices."""
  for i in range(100):
    p = (100 - i) / 100
    rest = (1 - p) / (classes - 1)
    if entropy([p] + [rest] * (classes - 1)) >= gamma * np.log(classes):
      return p
  return None


@pytest.mark.parametrize(("gamma", "classes", "exact", "grid", "epsilon"), GOLDEN)
def test_pitfall_82_hamp_label_golden_values(gamma, classes, exact, grid, epsilon):
  y = jax.nn.one_hot(jnp.array([0, classes - 1]), classes)
  p = label_confidence(gamma, classes)
  np.testing.assert_allclose(p, exact, atol=5e-6)
  assert label_confidence(gamma, classes, grid=True) == grid
  assert official_share(gamma, classes) == grid
  np.testing.assert_allclose((1 - p) * classes / (classes - 1), epsilon, atol=6e-6)
  for official, true in ((False, p), (True, grid)):
    rows = labels_of(hamp_label(gamma, official_grid=official), y)
    expected = np.full(y.shape, (1 - true) / (classes - 1))
    expected[0, 0] = expected[1, -1] = true
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    assert (entropy(rows) >= gamma * np.log(classes) - 1e-6).all()


def test_pitfall_82_hamp_label_is_label_smoothing():
  y = jnp.exp(make_log_probs(5))
  p = label_confidence(0.7, K)
  smooth = label_smoothing((1 - p) * K / (K - 1))
  np.testing.assert_allclose(
    labels_of(hamp_label(0.7), y), labels_of(smooth, y), rtol=1e-6
  )


def test_pitfall_82_mixed_labels_have_no_less_entropy():
  batch, part = make_batch(6), chain(mixup(per="record"), hamp_label(0.7))
  states = {"mixup": (), "hamp_label": ()}
  out = part.batch(batch, states, in_epoch(0))
  assert (np.asarray(out.lam) < 1).any()
  assert (entropy(out.y) >= 0.7 * np.log(K) - 1e-6).all()
  np.testing.assert_allclose(out.y.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 30])
@pytest.mark.parametrize("grid", [False, True])
def test_hamp_label_of_all_the_entropy_is_uniform(classes, grid):
  y = jax.nn.one_hot(jnp.array([1]), classes)
  rows = labels_of(hamp_label(1.0, official_grid=grid), y)
  np.testing.assert_allclose(rows, 1 / classes, rtol=1e-5)


def test_hamp_label_refuses_what_has_no_solution():
  with pytest.raises(ValueError, match=r"gamma is 1\.1; pass a number of at least 0"):
    hamp_label(1.1)
  with pytest.raises(ValueError, match="gamma is traced; sweep label_smoothing"):
    jax.eval_shape(lambda gamma: hamp_label(gamma).text, jnp.array(0.5))


@pytest.mark.parametrize("alpha", [pytest.param(0.3, marks=pytest.mark.slow), 1.0])
def test_disturb_label_keeps_and_spreads_as_it_says(alpha):
  rows, classes = 6000, 4
  y = jax.nn.one_hot(jnp.full(rows, 2), classes)
  out = labels_of(disturb_label(alpha), y)
  np.testing.assert_array_equal(np.sort(out, -1), np.eye(classes)[[-1] * rows])
  expected = np.full(classes, alpha / classes)
  expected[2] = 1 - alpha * (classes - 1) / classes
  # A share of 6000 draws has a standard deviation of at most 0.0065, five of them.
  np.testing.assert_allclose(out.mean(0), expected, atol=0.033)


@pytest.mark.slow
def test_disturb_label_draws_anew_at_every_visit_and_by_the_record():
  y = jax.nn.one_hot(jnp.zeros(64, int), K)
  first = labels_of(disturb_label(1.0), y)
  assert (first != labels_of(disturb_label(1.0), y, seed=1)).any()
  np.testing.assert_array_equal(first, labels_of(disturb_label(1.0), y))
  batch = make_batch(64)._replace(y=y)
  moved = jax.tree.map(lambda leaf: leaf[::-1], batch)
  out = disturb_label(1.0).batch(moved, (), in_epoch(0)).y
  np.testing.assert_array_equal(out, first[::-1])


def test_disturb_label_keeps_the_mixture_of_the_rows_it_spares():
  batch = make_batch(64)
  part = chain(disturb_label(0.5), mixup())
  out = part.batch(batch, {"mixup": (), "disturb_label": ()}, in_epoch(0))
  soft = chain(mixup()).batch(batch, {"mixup": ()}, in_epoch(0))
  kept = (out.y == soft.y).all(-1)
  np.testing.assert_array_equal(out.y[~kept].max(-1), 1)
  assert 10 < kept.sum() < 60
  np.testing.assert_array_equal(out.x, soft.x)
  np.testing.assert_array_equal(out.partner, soft.partner)


@pytest.mark.slow
def test_disturb_label_may_be_swept_inside_the_trace():
  batch = make_batch(64)
  out = jax.vmap(lambda a: disturb_label(a).batch(batch, (), in_epoch(0)).y)(
    jnp.array([0.0, 1.0])
  )
  np.testing.assert_array_equal(out[0], batch.y)
  assert (out[1] != batch.y).any()

import dataclasses

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from mixdef.attacks import Signals, _per_record, leave_one_out

PROBABILITIES = np.array([0.7, 0.2, 0.1])


def phi_of(f, label):
  return _per_record.statistics(f, label)["phi"]


@pytest.mark.parametrize(
  ("label", "loss", "phi", "hinge"),
  [
    (0, 0.356675, 0.847298, 1.252763),
    (1, 1.609438, -1.386294, -1.252763),
    (2, 2.302585, -2.197225, -1.945910),
  ],
)
def test_golden_statistics(label, loss, phi, hinge):
  f = np.log(PROBABILITIES)
  got = _per_record.statistics(f, label)
  assert _per_record.loss_of_phi(got["phi"]) == pytest.approx(loss, abs=5e-7)
  assert np.exp(-loss) == pytest.approx(PROBABILITIES[label], abs=5e-7)
  assert got["phi"] == pytest.approx(phi, abs=5e-7)
  assert got["hinge"] == pytest.approx(hinge, abs=5e-7)
  assert got["correct"] == (label == 0)


def test_statistics_equal_a_loop_over_records():
  rng = np.random.default_rng(0)
  f, labels = 5 * rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 1])
  got = _per_record.statistics(f, labels)
  for i, y in enumerate(labels):
    others = np.delete(f[i], y)
    assert got["phi"][i] == pytest.approx(f[i, y] - logsumexp(others))
    assert got["hinge"][i] == pytest.approx(f[i, y] - others.max())
    loss = _per_record.loss_of_phi(got["phi"][i])
    assert loss == pytest.approx(logsumexp(f[i]) - f[i, y])
    assert got["correct"][i] == (f[i].argmax() == y)


def test_pitfall_04_phi_does_not_saturate():
  assert phi_of([40.0, 0, 0], 0) == pytest.approx(39.306853, abs=5e-7)
  p = np.array([1 - 1e-9, 1e-9])
  assert phi_of(np.log(p), 0) == pytest.approx(np.log(1e9), abs=1e-6)
  sure = _per_record.statistics(np.array([[400.0, 0], [500.0, 0]]), [0, 0])
  assert sure["phi"][0] < sure["phi"][1]
  loss = _per_record.loss_of_phi(sure["phi"])
  assert loss[0] > loss[1] > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pitfall_05_arrays_of_the_caller_are_not_written(dtype):
  f = np.log(PROBABILITIES).astype(dtype)
  f[2] = -np.inf
  before = f.copy()
  _per_record.statistics(f, 1)
  np.testing.assert_array_equal(f, before)
  phi = np.ones((2, 3))
  Signals.from_phi(phi, phi > 0)
  np.testing.assert_array_equal(phi, 1)


def test_hidden_classes_give_finite_statistics_in_order():
  f = np.array([[0, -np.inf, -np.inf], [0, -1, -np.inf], [0, -300, -np.inf]])
  for label in range(3):
    for values in _per_record.statistics(f, [label] * 3).values():
      assert np.isfinite(values).all()
  shown, hidden = phi_of(f[2], 1), phi_of(f[2], 2)
  assert hidden <= shown
  assert phi_of(f[0], 1) == pytest.approx(_per_record.HIDDEN)


def test_float32_probabilities_that_underflow_are_hidden_classes():
  p = np.array([1, np.exp(-200.0)], dtype=np.float32)
  with np.errstate(divide="ignore"):
    assert phi_of(np.log(p), 0) == pytest.approx(-_per_record.HIDDEN)


def test_argmax_ties_go_to_the_first_class():
  tied = _per_record.statistics([[1.0, 1.0, 0]] * 2, [0, 1])
  np.testing.assert_array_equal(tied["correct"], [1, 0])


@pytest.mark.parametrize(
  ("f", "label", "message"),
  [
    ([[0.0, 1], [np.nan, 1]], 0, r"1 NaN, the first at \[1, 0\]"),
    ([[np.inf, 1]], 0, r"1 \+inf, the first at \[0, 0\]"),
    ([[-np.inf, -np.inf]], 0, r"1 rows of -inf, the first at \[0\]"),
    ([[0.0, 1]], 2, r"outside 0\.\.1"),
    ([[0.0, 1]], -1, r"outside 0\.\.1"),
    ([[0.0, 1]], 0.0, "integer"),
    ([[1.0]], 0, "K >= 2"),
  ],
)
def test_unusable_outputs_are_refused(f, label, message):
  with pytest.raises(ValueError, match=message):
    _per_record.statistics(f, label)


def test_from_logits_takes_views_and_matches_the_plain_statistics():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(3, 5, 2, 4)).astype(np.float32), np.arange(5) % 4
  members = rng.random((3, 5)) < 0.5
  signals = Signals.from_logits(logits, labels, members)
  single = Signals.from_logits(logits[:, :, 0], labels, members)
  assert signals.phi.shape == (3, 5, 2)
  assert single.phi.shape == (3, 5, 1)
  for name in ("phi", "hinge", "correct"):
    expected = _per_record.statistics(logits[1, :, 0], labels)[name]
    np.testing.assert_array_equal(signals.statistic(name)[1, :, 0], expected)
    np.testing.assert_array_equal(single.statistic(name)[1, :, 0], expected)
  assert signals.audited.all()
  probabilities = np.exp(signals.log_probs)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    probabilities, softmax(logits[:, :, 0], -1), rtol=1e-5, atol=1e-7
  )


def test_the_population_is_asked_like_the_records_and_trained_nobody():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(2, 3, 1, 4)), np.array([0, 1, 3])
  others = rng.normal(size=(2, 7, 1, 4)), rng.integers(0, 4, 7)
  members = np.array([[True, False, True], [False, True, True]])
  signals = Signals.from_logits(logits, labels, members, population=others)
  assert signals.population.phi.shape == (2, 7, 1)
  assert not signals.population.members.any()
  with pytest.raises(ValueError, match="query the same models with the same views"):
    Signals.from_phi(signals.phi[:, :, 0], members, population=np.zeros((3, 7)))
  trained = Signals.from_phi(np.zeros((2, 7)), np.ones((2, 7), bool))
  with pytest.raises(ValueError, match="trained on a record of the population"):
    dataclasses.replace(signals, population=trained)


def test_from_phi_knows_the_loss_but_not_the_label():
  logits = np.random.default_rng(0).normal(size=(2, 4, 3))
  members = np.ones((2, 4), dtype=bool)
  whole = Signals.from_logits(logits, [0, 1, 2, 0], members)
  signals = Signals.from_phi(whole.phi[..., 0], members)
  np.testing.assert_array_equal(signals.loss, whole.loss)
  with pytest.raises(ValueError, match=r"no hinge; build them with Signals\.from_log"):
    signals.statistic("hinge")


def test_jax_arrays_are_taken():
  import jax.numpy as jnp

  logits = jnp.zeros((1, 2, 3), dtype=jnp.bfloat16)
  signals = Signals.from_logits(logits, jnp.array([0, 2]), jnp.array([[True, False]]))
  np.testing.assert_allclose(signals.phi, -np.log(2))


def test_statistics_blocks_make_signals():
  block = _per_record.statistics(np.zeros((2, 3, 1, 4)), np.zeros((3, 1), dtype=int))
  assert Signals(**block, members=np.ones((2, 3), dtype=bool)).phi.shape == (2, 3, 1)


@pytest.mark.parametrize(
  ("phi", "members", "options", "message"),
  [
    (np.zeros((2, 3)), np.ones((2, 4), bool), {}, r"members has shape \(2, 4\)"),
    (np.zeros((2, 3)), np.ones((2, 3)), {}, "members has type float64; pass bool"),
    (np.zeros(3), np.ones((1, 3), bool), {}, r"phi has shape \(3,\)"),
    (np.zeros((2, 0)), np.ones((2, 0), bool), {}, "without empty axes"),
    ([[0, np.nan]], np.ones((1, 2), bool), {}, r"1 values .* first at \[0, 1, 0\]"),
    ([[0, np.inf]], np.ones((1, 2), bool), {}, r"1 values .* first at \[0, 1, 0\]"),
    (np.zeros((2, 3)), np.ones((2, 3), bool), {"labels": [1]}, "labels have shape"),
    (np.zeros((2, 3)), np.ones((2, 3), bool), {"audited": [True]}, "audited has shap"),
  ],
)
def test_inconsistent_signals_are_refused(phi, members, options, message):
  with pytest.raises(ValueError, match=message):
    Signals.from_phi(phi, members, **options)


def test_nan_logits_are_refused_with_count_and_place():
  logits = np.zeros((2, 3, 4))
  logits[1, 2, 0] = logits[1, 2, 3] = np.nan
  with pytest.raises(ValueError, match=r"2 NaN, the first at \[1, 2, 0\]"):
    Signals.from_logits(logits, [0, 1, 2], np.ones((2, 3), dtype=bool))


def test_labels_of_another_length_are_refused():
  with pytest.raises(ValueError, match=r"labels have shape \(1,\); pass \[3\]"):
    Signals.from_logits(np.zeros((2, 3, 4)), [0], np.ones((2, 3), dtype=bool))


def test_scores_of_another_shape_name_the_attack():
  signals = Signals.from_phi(np.zeros((2, 5)), np.array([[True] * 5, [False] * 5]))

  def short(signals, *, target):
    return np.zeros(3)

  with pytest.raises(ValueError, match=r"short returned scores of shape \[3\].*\[5\]"):
    leave_one_out(short, signals)

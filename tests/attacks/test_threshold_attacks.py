import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals, ranking
from mixdef.auditing import balanced_accuracy, gap_attack_accuracy


def test_pitfall_46_gap_accuracy_is_the_closed_form():
  rng = np.random.default_rng(0)
  member = np.arange(200) < 100
  labels = rng.integers(0, 3, 200)
  logits = rng.normal(size=(1, 200, 3)) + np.eye(3)[labels] * member[:, None]
  signals = Signals.from_logits(logits, labels, member[None])
  hit = logits[0].argmax(1) == labels
  expected = gap_attack_accuracy(hit[member].mean(), hit[~member].mean())
  got = balanced_accuracy(attacks.gap(signals, target=0), member, threshold=1)
  assert got == pytest.approx(expected, abs=1e-15)
  assert got > 0.5


def test_gap_reads_the_identity_view_only():
  logits = np.zeros((1, 2, 2, 2))
  logits[0, :, 0, 0] = 1  # the identity says class 0, the other view says class 1
  logits[0, :, 1, 1] = 1
  signals = Signals.from_logits(logits, [0, 1], [[True, False]])
  np.testing.assert_array_equal(attacks.gap(signals, target=0), [1, 0])


def test_gap_needs_labels():
  signals = Signals.from_phi([[0.0, 1.0]], [[True, False]])
  with pytest.raises(ValueError, match="no correct"):
    attacks.gap(signals, target=0)


def test_loss_threshold_is_the_negated_cross_entropy():
  logits = np.log([[[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]])
  signals = Signals.from_logits(logits, [0, 2], [[True, False]])
  scores = attacks.loss_threshold(signals, target=0)
  np.testing.assert_allclose(scores, np.log([0.7, 0.1]))


@pytest.mark.parametrize("seed", range(30))
def test_pitfall_48_threshold_search_equals_the_quadratic_scan(seed):
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 6, 25).astype(float)  # many ties
  member = rng.random(25) < 0.4
  member[:2] = True, False
  best = {
    t: (values >= t)[member].mean() + (values < t)[~member].mean() for t in values
  }
  ties = [t for t, gain in best.items() if gain > max(best.values()) - 1e-12]
  assert ranking.best_threshold(values, member) == min(ties)


def test_confidence_subtracts_the_threshold_of_the_class():
  rng = np.random.default_rng(0)
  phi, labels = rng.normal(size=(3, 90)), np.arange(90) % 3
  phi += 2 * labels
  keep = rng.random((3, 90)) < 0.5
  signals = Signals.from_phi(phi, keep, labels=labels)
  scores = attacks.confidence(signals, target=2)
  for label in range(3):
    rows = labels == label
    threshold = ranking.best_threshold(phi[0, rows], keep[0, rows])
    np.testing.assert_array_equal(scores[rows], phi[2, rows] - threshold)
  named = attacks.confidence(signals, target=2, shadow=1, per_class=False)
  threshold = ranking.best_threshold(phi[1], keep[1])
  np.testing.assert_array_equal(named, phi[2] - threshold)


def test_pitfall_49_class_missing_in_the_shadow_gets_the_global_threshold():
  rng = np.random.default_rng(0)
  phi, keep = rng.normal(size=(2, 40)), rng.random((2, 40)) < 0.5
  labels = np.where(np.arange(40) < 20, 3, 7)  # classes need not be 0..K-1
  labels[0] = 11  # one record: never both in and out of the shadow
  labels[1:3], keep[1, 1:3] = 13, False  # no member
  signals = Signals.from_phi(phi, keep, labels=labels)
  scores = attacks.confidence(signals, target=0)
  overall = ranking.best_threshold(phi[1], keep[1])
  np.testing.assert_array_equal(scores[:3], phi[0, :3] - overall)


def test_confidence_of_sure_records_does_not_tie():
  keep = np.array([[True, False]] * 2)
  logits = np.array([[[60.0, 0], [50.0, 0]]] * 2)
  signals = Signals.from_logits(logits, [0, 0], keep)
  scores = attacks.confidence(signals, target=0)
  assert scores[0] > scores[1]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"shadow": 0}, "shadow=0 is the target"),
    ({"shadow": 5}, "shadow=5 is no model"),
    ({"shadow": 2}, "only one kind"),
    ({}, "needs labels"),
  ],
)
def test_unusable_shadows_are_refused(options, message):
  keep = np.array([[True, False]] * 2 + [[True, True]])
  labels = [0, 0] if options else None
  signals = Signals.from_phi(np.zeros((3, 2)), keep, labels=labels)
  with pytest.raises(ValueError, match=message):
    attacks.confidence(signals, target=0, **options)


def test_one_model_has_no_shadow():
  signals = Signals.from_phi([[0.0, 1.0]], [[True, False]], labels=[0, 0])
  with pytest.raises(ValueError, match="shadow=0 is the target"):
    attacks.confidence(signals, target=0)

import numpy as np
import pytest

from mixdef import attacks
from mixdef.attacks import Signals
from mixdef.attacks._entropies import entropy_score, mentr_score
from mixdef.attacks._shadows import one_shadow
from mixdef.attacks.known_records import threshold_known
from mixdef.attacks.thresholds import entropy, mentr
from mixdef.metrics import auc, balanced_accuracy, gap_attack_accuracy
from mixdef.metrics.roc import Roc


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
  logits[0, :, 0, 0] = 2  # the identity says class 0, the other view says class 1
  logits[0, :, 1, 1] = 2
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
  assert Roc.of(values, member).best_threshold == min(ties)


def test_confidence_subtracts_the_threshold_of_the_class():
  rng = np.random.default_rng(0)
  phi, labels = rng.normal(size=(3, 90)), np.arange(90) % 3
  phi += 2 * labels
  members = rng.random((3, 90)) < 0.5
  signals = Signals.from_phi(phi, members, labels=labels)
  scores = attacks.confidence(signals, target=2)
  for label in range(3):
    rows = labels == label
    threshold = Roc.of(phi[0, rows], members[0, rows]).best_threshold
    np.testing.assert_array_equal(scores[rows], phi[2, rows] - threshold)
  named = attacks.confidence(signals, target=2, shadow=1, per_class=False)
  threshold = Roc.of(phi[1], members[1]).best_threshold
  np.testing.assert_array_equal(named, phi[2] - threshold)


def test_pitfall_49_class_missing_in_the_shadow_gets_the_global_threshold():
  rng = np.random.default_rng(0)
  phi, members = rng.normal(size=(2, 40)), rng.random((2, 40)) < 0.5
  labels = np.where(np.arange(40) < 20, 3, 7)  # classes need not be 0..K-1
  labels[0] = 11  # one record: never both in and out of the shadow
  labels[1:3], members[1, 1:3] = 13, False  # no member
  signals = Signals.from_phi(phi, members, labels=labels)
  scores = attacks.confidence(signals, target=0)
  overall = Roc.of(phi[1], members[1]).best_threshold
  np.testing.assert_array_equal(scores[:3], phi[0, :3] - overall)


def test_confidence_of_sure_records_does_not_tie():
  members = np.array([[True, False]] * 2)
  logits = np.array([[[60.0, 0], [50.0, 0]], [[61.0, 0], [51.0, 0]]])
  signals = Signals.from_logits(logits, [0, 0], members)
  scores = attacks.confidence(signals, target=0)
  assert scores[0] > scores[1]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"shadow": 0}, "shadow=0 is the target"),
    ({"shadow": 5}, "shadow=5 is not a model"),
    ({"shadow": 2}, "only members or only non-members"),
    ({}, "have no labels"),
  ],
)
def test_unusable_shadows_are_refused(options, message):
  members = np.array([[True, False]] * 2 + [[True, True]])
  labels = [0, 0] if options else None
  signals = Signals.from_phi(np.zeros((3, 2)), members, labels=labels)
  with pytest.raises(ValueError, match=message):
    attacks.confidence(signals, target=0, **options)


def test_one_model_has_no_shadow():
  signals = Signals.from_phi([[0.0, 1.0]], [[True, False]], labels=[0, 0])
  with pytest.raises(attacks.Unavailable, match="train more models"):
    attacks.confidence(signals, target=0)
  with pytest.raises(ValueError, match="shadow=0 is the target"):
    attacks.confidence(signals, target=0, shadow=0)


def test_the_default_shadow_is_never_the_complement_of_the_target():
  rng = np.random.default_rng(0)
  half = rng.random((2, 60)) < 0.5
  members = np.concatenate([half[:1], ~half[:1], half[1:]])
  signals = Signals.from_phi(rng.normal(size=(3, 60)), members, design="bernoulli")
  assert one_shadow(signals, 0)[0] == 2
  assert one_shadow(signals, 1)[0] == 2
  with pytest.raises(ValueError, match="complement"):
    attacks.confidence(signals, target=0, shadow=1, per_class=False)


def test_a_shadow_teaches_only_what_may_be_a_reference():
  halves = np.repeat([[True], [True], [False], [False]], 80, 1)
  members = np.random.default_rng(0).permuted(halves, axis=0)
  audited = np.arange(80) > 5
  signals = Signals.from_phi(np.zeros((4, 80)), members, audited=audited)
  assert signals.design == "balanced"
  shadow, learn = one_shadow(signals, 0, 2)
  np.testing.assert_array_equal(learn, signals.references(0)[shadow] & audited)
  assert not learn.all()


def naive_mentr(p, y):
  """The definition, class by class."""
  loss = -(1 - p[y]) * np.log(max(p[y], 1e-30))
  for k in range(len(p)):
    if k != y:
      loss -= p[k] * np.log(max(1 - p[k], 1e-30))
  return loss


def test_entropies_equal_the_naive_sums():
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.ones(6), 40)
  labels = rng.integers(0, 6, 40)
  expected = [(row * np.log(row)).sum() for row in p]
  np.testing.assert_allclose(entropy_score(np.log(p)), expected, rtol=1e-12)
  expected = [-naive_mentr(row, y) for row, y in zip(p, labels, strict=True)]
  np.testing.assert_allclose(mentr_score(np.log(p), labels), expected, rtol=1e-10)


def test_entropy_golden_values():
  log_probs = np.log([[0.7, 0.2, 0.1]] * 3)
  np.testing.assert_allclose(entropy_score(log_probs), -0.801819, atol=5e-7)
  golden = [-0.162167, -2.140867, -2.959736]
  np.testing.assert_allclose(mentr_score(log_probs, [0, 1, 2]), golden, atol=5e-7)


def test_pitfall_08_entropies_of_one_hot_rows_are_finite_and_take_probabilities():
  with np.errstate(divide="ignore"):
    one_hot = np.log(np.eye(3))
  np.testing.assert_array_equal(entropy_score(one_hot), 0)
  floored = 2 * np.log(1e-30)  # sure of a wrong class: both logs at the floor
  np.testing.assert_allclose(mentr_score(one_hot, [0, 0, 2]), [0, floored, 0])
  logits = np.random.default_rng(0).normal(size=(5, 4))
  labels = np.arange(5) % 4
  np.testing.assert_allclose(entropy_score(logits), entropy_score(logits + 9))
  np.testing.assert_allclose(
    mentr_score(logits, labels), mentr_score(logits + 9, labels)
  )


def test_entropies_of_sure_outputs_keep_their_order():
  f = np.zeros((20, 3))
  f[:, 0] = np.linspace(20, 300, 20)  # 1 - p_y down to 1e-130
  signals = Signals.from_logits([f] * 2, [0] * 20, [np.arange(20) < 9] * 2)
  assert (np.diff(entropy_score(signals.log_probs[0])) > 0).all()
  assert (np.diff(mentr_score(signals.log_probs[0], signals.labels)) > 0).all()


@pytest.mark.parametrize("attack", [entropy, mentr])
def test_entropy_attacks_subtract_the_threshold_of_the_class(attack):
  rng = np.random.default_rng(0)
  labels, members = np.arange(90) % 3, rng.random((3, 90)) < 0.5
  logits = rng.normal(size=(3, 90, 3)) * (1 + labels[:, None])
  signals = Signals.from_logits(logits, labels, members)
  statistic = {
    entropy: entropy_score,
    mentr: lambda outputs: mentr_score(outputs, labels),
  }[attack]
  seen, asked = statistic(signals.log_probs[0]), statistic(signals.log_probs[2])
  scores = attack(signals, target=2)
  for label in range(3):
    rows = labels == label
    threshold = Roc.of(seen[rows], members[0, rows]).best_threshold
    np.testing.assert_array_equal(scores[rows], asked[rows] - threshold)


@pytest.mark.parametrize("attack", [entropy, mentr])
def test_entropy_attacks_need_outputs(attack):
  signals = Signals.from_phi(np.zeros((2, 2)), [[True, False]] * 2, labels=[0, 0])
  with pytest.raises(attacks.Unavailable, match="no log_probs"):
    attack(signals, target=0)


def known_case(records=1000):
  rng = np.random.default_rng(0)
  members = np.array([rng.random(records) < 0.5] * 2)
  return Signals.from_phi(rng.normal(size=members.shape) + 2 * members, members)


def test_pitfall_51_known_records_are_removed_from_evaluation():
  signals = known_case()
  scores = threshold_known(signals, target=0)
  judged, member = np.isnan(scores), signals.members[0]
  assert (judged & member).sum() == (judged & ~member).sum() == 100
  values = -signals.loss[0, :, 0]
  threshold = Roc.of(values[judged], member[judged]).best_threshold
  np.testing.assert_array_equal(scores[~judged], values[~judged] - threshold)
  assert auc(scores, member) > 0.8


def test_known_records_depend_on_the_seed_alone_and_not_on_their_order():
  signals = known_case()
  plain = threshold_known(signals, target=0)
  order = np.random.default_rng(1).permutation(1000)
  moved = Signals.from_phi(signals.phi[:, order], signals.members[:, order])
  np.testing.assert_array_equal(threshold_known(moved, target=0), plain[order])
  other = threshold_known(signals, target=0, seed=1)
  assert (np.isnan(plain) != np.isnan(other)).any()


def test_known_records_are_drawn_over_the_whole_range_even_among_ties():
  phi = np.zeros((1, 400))
  signals = Signals.from_phi(phi, [np.arange(400) % 2 == 0])
  judged = np.flatnonzero(np.isnan(threshold_known(signals, target=0, known=100)))
  assert abs((judged < 200).sum() - 100) < 5 * np.sqrt(200 / 4)


def test_unknown_membership_does_not_move_the_known_threshold():
  signals = known_case()
  plain = threshold_known(signals, target=0, known=20)
  members = signals.members.copy()
  members[1] = ~members[1]
  again = threshold_known(Signals.from_phi(signals.phi, members), target=0, known=20)
  np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize(
  ("options", "message"),
  [({"known": 3}, "pass a smaller known"), ({"known": 0}, "known is 0")],
)
def test_known_records_must_leave_some_to_attack(options, message):
  signals = Signals.from_phi(np.zeros((1, 6)), [np.arange(6) < 3])
  with pytest.raises(ValueError, match=message):
    threshold_known(signals, target=0, **options)

"""One table over every attack of the catalogue."""

import numpy as np
import pytest

from mixdef import attacks
from mixdef.auditing import auc

REFERENCE_BASED = [name for name in attacks.CATALOGUE if name.startswith("lira_o")]
REFERENCE_BASED += ["confidence"]


def make_logits(boost, *, models=24, records=300, queries=2, classes=4, seed=0):
  """Outputs in which members gain `boost` on the true class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, records)
  keep = rng.random((models, records)) < 0.5
  logits = rng.normal(size=(models, records, queries, classes))
  truth = np.eye(classes)[labels][:, None]
  hardness = 0.3 * rng.normal(size=(records, 1, 1))
  logits += truth * (hardness + boost * keep[:, :, None, None])
  return logits, labels, keep


@pytest.fixture(scope="module")
def leaky():
  return make_logits(3.0)


@pytest.fixture(params=sorted(attacks.CATALOGUE))
def attack(request):
  return attacks.CATALOGUE[request.param]


def test_scores_are_finite_float64_per_record(attack, leaky):
  scores = attack(attacks.Signals.from_logits(*leaky), target=1)
  assert scores.shape == (300,)
  assert scores.dtype == np.float64
  assert np.isfinite(scores).all()


def test_pitfall_06_larger_means_member(attack, leaky):
  signals = attacks.Signals.from_logits(*leaky)
  scores = attacks.leave_one_out(attack, signals)
  assert auc(scores, signals.keep) > 0.7


def test_a_random_membership_is_not_found(attack):
  logits, labels, keep = make_logits(0.0, records=4000, models=8)
  signals = attacks.Signals.from_logits(logits, labels, keep)
  member = keep[0]
  n1, n0 = member.sum(), (~member).sum()
  error = np.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
  assert abs(auc(attack(signals, target=0), member) - 0.5) < 5 * error


def test_permuting_records_permutes_scores(attack, leaky):
  logits, labels, keep = leaky
  order = np.random.default_rng(1).permutation(len(labels))
  plain = attack(attacks.Signals.from_logits(logits, labels, keep), target=0)
  moved = attack(
    attacks.Signals.from_logits(logits[:, order], labels[order], keep[:, order]),
    target=0,
  )
  np.testing.assert_allclose(moved, plain[order], rtol=1e-10, atol=1e-10)


def test_pitfall_11_equal_rows_get_equal_scores(attack, leaky):
  logits, labels, keep = (np.array(part) for part in leaky)
  for part in (logits, keep):
    part[:, -1] = part[:, 0]
  labels[-1] = labels[0]
  scores = attack(attacks.Signals.from_logits(logits, labels, keep), target=0)
  assert scores[0] == scores[-1]


def test_pitfall_24_own_membership_never_enters(attack, leaky):
  logits, labels, keep = leaky
  other = keep.copy()
  other[2] = ~other[2]
  first = attack(attacks.Signals.from_logits(logits, labels, keep), target=2)
  second = attack(attacks.Signals.from_logits(logits, labels, other), target=2)
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", REFERENCE_BASED)
def test_pitfall_24_own_outputs_never_enter_the_fit(name, leaky):
  logits, labels, keep = leaky
  changed = logits.copy()
  changed[2, 1:] *= 3
  first, second = (
    attacks.CATALOGUE[name](attacks.Signals.from_logits(part, labels, keep), target=2)
    for part in (logits, changed)
  )
  assert first[0] == second[0]
  assert not np.array_equal(first[1:], second[1:])


def test_pitfall_29_order_of_models_does_not_matter(attack, leaky):
  logits, labels, keep = leaky
  order = [0, 1, *np.random.default_rng(0).permutation(np.arange(2, 24))]
  plain = attack(attacks.Signals.from_logits(logits, labels, keep), target=0)
  moved = attack(
    attacks.Signals.from_logits(logits[order], labels, keep[order]), target=0
  )
  np.testing.assert_allclose(moved, plain, rtol=1e-10, atol=1e-10)


def test_reference_rows_are_not_scored_and_do_not_matter(attack, leaky):
  logits, labels, keep = (np.array(part) for part in leaky)
  audited = np.arange(len(labels)) >= 40
  plain = attack(
    attacks.Signals.from_logits(logits, labels, keep, audited=audited), target=0
  )
  logits[:, :40] += 7 * np.random.default_rng(3).normal(size=logits[:, :40].shape)
  keep[:, :40] = False
  changed = attack(
    attacks.Signals.from_logits(logits, labels, keep, audited=audited), target=0
  )
  assert np.isnan(plain[:40]).all()
  np.testing.assert_array_equal(plain, changed)


def test_pitfall_07_extreme_logits_stay_finite(attack, leaky):
  logits, labels, keep = leaky
  signals = attacks.Signals.from_logits(1e3 * logits, labels, keep)
  assert np.isfinite(attack(signals, target=0)).all()


def test_inputs_are_never_written_to(attack, leaky):
  signals = attacks.Signals.from_logits(*leaky)
  fields = ("phi", "hinge", "correct", "keep", "labels", "audited", "log_probs")
  before = {name: getattr(signals, name).copy() for name in fields}
  attack(signals, target=0)
  for name, values in before.items():
    np.testing.assert_array_equal(getattr(signals, name), values)


@pytest.mark.parametrize("target", [-1, 24])
def test_unknown_target_is_refused(attack, leaky, target):
  with pytest.raises(ValueError, match="target"):
    attack(attacks.Signals.from_logits(*leaky), target=target)


def test_leave_one_out_attacks_every_model(attack, leaky):
  signals = attacks.Signals.from_logits(*leaky)
  scores = attacks.leave_one_out(attack, signals)
  assert scores.shape == signals.keep.shape
  np.testing.assert_array_equal(scores[5], attack(signals, target=5))


def test_aliases_resolve_and_unknown_names_list_the_known():
  assert attacks.resolve("yeom") is attacks.loss_threshold
  for name, attack in attacks.CATALOGUE.items():
    assert attacks.resolve(name) is attack
    assert attack.__name__ == name
  with pytest.raises(ValueError, match=r"'lra'.*lira_online.*yeom"):
    attacks.resolve("lra")

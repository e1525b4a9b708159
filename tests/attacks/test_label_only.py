import dataclasses

import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from mixdef import models
from mixdef.attacks import Signals, Unavailable, leave_one_out
from mixdef.attacks._logistic import fit_logistic
from mixdef.attacks.label_only import (
  label_only_logreg,
  label_only_noise,
  label_only_rotation,
  label_only_translation,
)
from mixdef.attacks.views import rotations, translations
from mixdef.data import Dataset, load, subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.defenses import confidence_masking
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit_many

RECORDS, REFERENCE = 200, 8
NOISE = {"draws": 40}
OF_PICTURES = [label_only_translation, label_only_rotation]


def train(data, defense=None, count=4, epochs=60):
  learner = classifier(
    models.mlp(64, num_classes=data.num_classes), optax.adam(1e-2), defense
  )
  members = subsets(data, count, seed=0) & data.audited
  return fit_many(learner, data, members, epochs=epochs, batch_size=32, strategy="vmap")


def pictures_without_meaning():
  """Digits with random labels: whatever a model knows of them is memory."""
  rng = np.random.default_rng(0)
  x = load("digits").x[:RECORDS]
  data = Dataset.from_arrays(x, rng.integers(3, size=RECORDS), num_classes=3)
  return data.with_auxiliary(REFERENCE)


@pytest.fixture(scope="module")
def pictures():
  return train(pictures_without_meaning())


@pytest.fixture(scope="module")
def table():
  data = synthetic_memorize(RECORDS, num_test=10).with_auxiliary(REFERENCE)
  return train(data, count=16)


@pytest.fixture(scope="module")
def masked():
  return train(pictures_without_meaning(), confidence_masking())


def shaken(x):
  """Seven aligned views of a table: the record and six fixed offsets."""
  offsets = np.random.default_rng(0).normal(0, 0.5, (6, *x.shape[1:]))
  return np.stack([x, *(x + offset for offset in offsets.astype(np.float32))], 1)


def figure(scores, members):
  """AUC over the audited records of all models."""
  asked = ~np.isnan(scores)
  return auc(scores[asked][None], members[asked][None])


def with_random_membership(ensemble):
  members = np.random.default_rng(5).random(ensemble.members.shape) < 0.5
  return dataclasses.replace(ensemble, members=members & ensemble.data.audited)


@pytest.mark.slow
def test_the_models_remember_their_members(pictures, table):
  for ensemble in (pictures, table):
    right = ensemble.log_probs(ensemble.data.x).argmax(-1) == ensemble.data.y
    assert right[ensemble.members].mean() > 0.95
    assert right[~ensemble.members].mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("attack", OF_PICTURES)
def test_pictures_that_were_moved_give_members_away(attack, pictures):
  scores = leave_one_out(attack, pictures)
  assert scores.dtype == np.float64
  assert figure(scores, pictures.members) > 0.7
  random = with_random_membership(pictures)
  at_chance = figure(leave_one_out(attack, random), random.members)
  assert at_chance == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_noise_gives_members_away(table):
  scores = leave_one_out(label_only_noise, table, targets=range(3), sigma=0.5, **NOISE)
  assert figure(scores[:3], table.members[:3]) > 0.7
  random = with_random_membership(table).members[:3]
  assert figure(scores[:3], random) == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_bits_of_many_models_give_members_away(table):
  asked = table.signals(views=shaken)
  scores = leave_one_out(label_only_logreg, asked)
  assert figure(scores, table.members) > 0.7
  random = dataclasses.replace(asked, members=with_random_membership(table).members)
  at_chance = figure(leave_one_out(label_only_logreg, random), random.members)
  assert at_chance == pytest.approx(0.5, abs=0.1)


def test_noise_is_the_share_of_copies_with_the_records_label(table):
  scores = label_only_noise(table, target=1, sigma=0.3, **NOISE)
  data, run = table.data, table[1]
  wrong = run.log_probs(data.x).argmax(-1) != data.y
  assert (scores[wrong & data.audited] == 0).all()
  assert np.isnan(scores[~data.audited]).all()
  row = np.flatnonzero(~wrong & data.audited & (scores < 1))[0]
  rng = np.random.default_rng(1)
  copies = data.x[row] + 0.3 * rng.normal(size=(4000, data.x.shape[1]))
  share = (run.log_probs(copies.astype(np.float32)).argmax(-1) == data.y[row]).mean()
  error = np.sqrt(share * (1 - share) * (1 / 4000 + 1 / NOISE["draws"]))
  assert abs(scores[row] - share) < 5 * error


@pytest.mark.slow
def test_binary_records_are_flipped():
  rng = np.random.default_rng(0)
  x = (rng.random((RECORDS, 30)) < 0.5).astype(np.float32)
  ensemble = train(Dataset.from_arrays(x, rng.integers(2, size=RECORDS)), count=2)
  scores = label_only_noise(ensemble, target=0, flips=2, sigma=9, **NOISE)
  row = int(np.flatnonzero((scores > 0) & (scores < 1))[0])
  flipped = np.abs(x[row] - (rng.random((4000, 30)) < 2 / 30))
  labels = ensemble[0].log_probs(flipped.astype(np.float32)).argmax(-1)
  share = (labels == ensemble.data.y[row]).mean()
  error = np.sqrt(share * (1 - share) * (1 / 4000 + 1 / NOISE["draws"]))
  assert abs(scores[row] - share) < 5 * error
  assert figure(scores[None], ensemble.members[:1]) > 0.6


def test_pitfall_12_noise_follows_from_the_record_alone(table):
  plain = label_only_noise(table, target=0, sigma=0.3, **NOISE)
  rows = np.array([150, 3, 77])
  rows = rows[table.data.audited[rows]]
  some = label_only_noise(table, target=0, sigma=0.3, records=rows, **NOISE)
  np.testing.assert_array_equal(some[rows], plain[rows])
  assert np.isnan(np.delete(some, rows)).all()
  other = label_only_noise(table, target=0, sigma=0.3, seed=1, **NOISE)
  assert not np.array_equal(other, plain, equal_nan=True)


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_moved_pictures_are_scored_as_by_sklearn(attack, pictures):
  data, members = pictures.data, pictures.members
  queries = {label_only_translation: translations(1), label_only_rotation: rotations(9)}
  bits = pictures.signals(views=queries[attack]).correct
  scores = attack(pictures, target=2)
  for y in range(3):
    rows = (data.y == y) & data.audited
    fit = LogisticRegression(tol=1e-10, max_iter=1000).fit(
      bits[3, rows], members[3, rows]
    )
    expected = fit.decision_function(bits[2, rows])
    np.testing.assert_allclose(scores[rows], expected, atol=1e-4)


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_pitfall_59_nothing_is_fitted_on_the_target(attack, pictures):
  plain = attack(pictures, target=1)
  members = pictures.members.copy()
  members[1] = ~members[1] & pictures.data.audited
  other = dataclasses.replace(pictures, members=members)
  np.testing.assert_array_equal(attack(other, target=1), plain)
  assert not np.array_equal(attack(other, target=0), attack(pictures, target=0))
  np.testing.assert_array_equal(attack(pictures, target=1, shadow=2), plain)
  with pytest.raises(ValueError, match="shadow=1 is the target"):
    attack(pictures, target=1, shadow=1)


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_reference_rows_are_neither_scored_nor_fitted_on(attack, pictures):
  data = pictures.data
  plain = attack(pictures, target=0)
  assert np.isnan(plain[data.auxiliary]).all()
  x = data.x.copy()
  x[data.auxiliary] = 0.5
  moved = dataclasses.replace(pictures, data=dataclasses.replace(data, x=x))
  np.testing.assert_array_equal(attack(moved, target=0), plain)
  with pytest.raises(ValueError, match="not an audited record"):
    attack(pictures, target=0, records=np.flatnonzero(data.auxiliary))


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_a_class_that_cannot_be_fitted_takes_the_model_of_all(attack, pictures):
  members = pictures.members.copy()
  members[1, pictures.data.y == 0] = False
  scores = attack(dataclasses.replace(pictures, members=members), target=0)
  assert np.isfinite(scores[pictures.data.audited]).all()
  members[1] = False
  useless = dataclasses.replace(pictures, members=members)
  with pytest.raises(ValueError, match="shadow=1 has only members or only non-members"):
    attack(useless, target=0, shadow=1)
  np.testing.assert_array_equal(
    attack(useless, target=0), attack(useless, target=0, shadow=2)
  )


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_pitfall_137_the_complement_of_the_target_teaches_nothing(attack, pictures):
  members = pictures.members.copy()
  members[1] = ~members[0] & pictures.data.audited
  pairs = dataclasses.replace(pictures, members=members)
  np.testing.assert_array_equal(
    attack(pairs, target=0), attack(pairs, target=0, shadow=2)
  )
  with pytest.raises(ValueError, match="complement"):
    attack(pairs, target=0, shadow=1)
  members[2:] = members[1]
  with pytest.raises(Unavailable, match="train more models"):
    attack(dataclasses.replace(pictures, members=members), target=0)


@pytest.mark.parametrize("attack", OF_PICTURES)
def test_tables_cannot_be_moved(attack, table):
  with pytest.raises(Unavailable, match="not images"):
    attack(table, target=0)


@pytest.mark.parametrize("attack", [label_only_noise, *OF_PICTURES])
def test_unknown_targets_and_records_are_refused(attack, pictures):
  for target in (-1, len(pictures)):
    with pytest.raises(ValueError, match=f"target={target}"):
      attack(pictures, target=target)
  with pytest.raises(ValueError, match="records hold 200"):
    attack(pictures, target=0, records=[200])
  with pytest.raises(ValueError, match="indices"):
    attack(pictures, target=0, records=pictures.data.audited)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [label_only_noise, *OF_PICTURES])
def test_pitfall_47_masked_confidences_change_nothing(attack, pictures, masked):
  options = NOISE if attack is label_only_noise else {}
  np.testing.assert_array_equal(
    attack(masked, target=0, **options), attack(pictures, target=0, **options)
  )


def test_pitfall_143_label_only_sees_through_what_hides_the_confidence(
  pictures, masked
):
  bare, hidden = (e.signals(views=translations(1)) for e in (pictures, masked))
  assert not np.array_equal(bare.phi, hidden.phi)
  np.testing.assert_array_equal(
    label_only_logreg(bare, target=0), label_only_logreg(hidden, target=0)
  )


@pytest.mark.parametrize("queries", [1, 18])
def test_the_regressions_are_sklearns(queries):
  rng = np.random.default_rng(0)
  bits = rng.random((4, 30, queries)) < rng.random((4, 1, queries))
  positive, use = rng.random((4, 30)) < 0.4, rng.random((4, 30)) < 0.8
  bits[0, :, 0] = positive[0]  # separable
  bits[1] = True  # nothing to tell them apart by
  for c in (0.1, 1.0, 100.0):
    found = fit_logistic(bits, positive, use, c=c)
    for one, x, t, rows in zip(found, bits, positive, use, strict=True):
      fit = LogisticRegression(
        C=c, tol=1e-12, max_iter=1000, solver="newton-cholesky"
      ).fit(x[rows], t[rows])
      expected = np.append(fit.coef_[0], fit.intercept_)
      np.testing.assert_allclose(one, expected, atol=1e-6)


def test_records_without_references_on_a_side_have_no_score():
  rng = np.random.default_rng(0)
  logits, members = rng.normal(size=(6, 40, 3, 4)), rng.random((6, 40)) < 0.5
  members[:, 0], members[:, 1] = True, False
  members[:, 2] = [True, False, False, False, False, False]  # only the target
  asked = Signals.from_logits(logits, rng.integers(4, size=40), members)
  scores = label_only_logreg(asked, target=0)
  assert np.isnan(scores[:3]).all()
  both = members[1:].any(0) & ~members[1:].all(0)
  np.testing.assert_array_equal(np.isnan(scores), ~both)


@pytest.mark.parametrize("options", [{"sigma": 0}, {"flips": -1}, {"draws": 0}])
def test_noise_needs_numbers_above_0(options, table):
  with pytest.raises(ValueError, match=next(iter(options))):
    label_only_noise(table, target=0, **options)


def test_logreg_needs_a_positive_c_and_correctness():
  asked = Signals.from_phi(np.zeros((3, 2)), np.eye(3, 2, dtype=bool))
  with pytest.raises(ValueError, match="c is 0; pass a number above 0"):
    label_only_logreg(asked, target=0, c=0)
  with pytest.raises(Unavailable, match="correct"):
    label_only_logreg(asked, target=0)

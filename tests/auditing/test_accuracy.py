import numpy as np
import pytest

from mixdef.attacks import Signals, Unavailable, gap, leave_one_out
from mixdef.auditing import accuracies
from mixdef.metrics import balanced_accuracy


def draw(models=3, records=60, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, records)
  members = rng.random((models, records)) < 0.5
  logits = rng.normal(size=(models, records, classes))
  logits += np.eye(classes)[labels] * (1 + 2 * members[:, :, None])
  return logits, labels, members


def test_accuracies_are_those_of_a_loop():
  logits, labels, members = draw()
  audited = np.arange(60) >= 10
  train, test = [], []
  for s in range(3):
    hits = {True: [], False: []}
    for i in range(10, 60):
      hits[bool(members[s, i])].append(logits[s, i].argmax() == labels[i])
    train.append(np.mean(hits[True]))
    test.append(np.mean(hits[False]))
  found = accuracies(Signals.from_logits(logits, labels, members, audited=audited))
  assert found["train_accuracy"] == pytest.approx(np.mean(train))
  assert found["test_accuracy"] == pytest.approx(np.mean(test))
  assert found["test_accuracy_std"] == pytest.approx(np.std(test, ddof=1))
  assert found["gap_attack"] == pytest.approx(
    0.5 + (found["train_accuracy"] - found["test_accuracy"]) / 2
  )


def test_only_the_record_itself_counts_not_its_views():
  logits, labels, members = draw()
  flipped = np.stack([logits, -logits], 2)
  assert accuracies(Signals.from_logits(flipped, labels, members)) == accuracies(
    Signals.from_logits(logits, labels, members)
  )


def test_one_model_has_no_spread_and_the_gap_of_the_gap_attack():
  logits, labels, members = (part for part in draw(models=1))
  signals = Signals.from_logits(logits, labels, members)
  found = accuracies(signals)
  assert found["test_accuracy_std"] is None
  scores = leave_one_out(gap, signals)
  expected = balanced_accuracy(scores, members, threshold=0.5)
  assert found["gap_attack"] == pytest.approx(expected)


def test_a_model_of_all_records_counts_on_its_members_only():
  logits, labels, members = draw()
  members[0] = True
  signals = Signals.from_logits(logits, labels, members)
  others = Signals.from_logits(logits[1:], labels, members[1:])
  found = accuracies(signals)
  assert found["test_accuracy"] == accuracies(others)["test_accuracy"]
  every = [
    (logits[s].argmax(-1) == labels)[members[s]].mean() for s in range(len(members))
  ]
  assert found["train_accuracy"] == pytest.approx(np.mean(every))


def test_what_cannot_be_told_is_refused():
  logits, labels, members = draw()
  with pytest.raises(ValueError, match="3 models have audited members and 0 non-"):
    accuracies(Signals.from_logits(logits, labels, np.ones_like(members)))
  with pytest.raises(Unavailable, match="no correct"):
    accuracies(Signals.from_phi(np.zeros((3, 60)), members))

"""Downstream accuracy: what it trains on, what it tests on, and which step counts."""

import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.data import Dataset
from mixdef.learners import classifier
from mixdef.metrics import clopper_pearson
from mixdef.utility import downstream, downstream_accuracy

LEARNER = classifier(models.mlp(16, num_classes=3), optax.adam(1e-2))
OPTIONS = {"learner": LEARNER, "epochs": 20, "batch_size": 16}


def blobs(n, *, seed=0):
  """Draw three well separated classes in four dimensions."""
  rng = np.random.default_rng(seed)
  y = np.arange(n) % 3
  return (3 * np.eye(4)[y] + 0.3 * rng.normal(size=(n, 4))).astype(np.float32), y


@pytest.fixture(scope="module")
def data():
  return Dataset.from_arrays(*blobs(60), name="blobs", test=blobs(45, seed=1))


@pytest.mark.slow
def test_faithful_records_teach_and_wrong_labels_do_not(data):
  x, y = blobs(48, seed=2)
  result = downstream_accuracy((x, y), data, **OPTIONS)
  assert result["accuracy"] == result["real_accuracy"] == 1
  assert result["interval"] == result["real_interval"] == clopper_pearson(45, 45)
  sizes = [result[f"num_{part}"] for part in ("synthetic", "real", "test")]
  assert sizes == [48, 48, 45]
  wrong = downstream_accuracy((x, (y + 1) % 3), data, **OPTIONS)
  assert wrong["accuracy"] == 0
  assert wrong["real_accuracy"] == 1


@pytest.mark.slow
def test_pitfall_125_the_last_step_counts(data, monkeypatch):
  runs = []
  fit = downstream.fit

  def watched(*args, **kwargs):
    runs.append(fit(*args, **kwargs))
    return runs[-1]

  monkeypatch.setattr(downstream, "fit", watched)
  x, y = blobs(48, seed=2)
  y[:20] = 0
  result = downstream_accuracy((x, y), data, **OPTIONS)
  assert [len(run.history) for run in runs] == [20, 20]
  assert result["accuracy"] == runs[0].accuracy(data.test.x, data.test.y)
  assert result["real_accuracy"] == runs[1].accuracy(data.test.x, data.test.y)


def test_reference_records_are_no_training_records(data):
  marked = data.with_auxiliary(12, seed=0)
  result = downstream_accuracy(blobs(90, seed=2), marked, **{**OPTIONS, "epochs": 1})
  assert (result["num_synthetic"], result["num_real"]) == (90, 48)


def test_records_that_do_not_fit_are_refused(data):
  x, y = blobs(12)
  with pytest.raises(ValueError, match=r"synthetic y\[1\] is 7"):
    downstream_accuracy((x, np.where(y == 1, 7, y)), data)
  with pytest.raises(ValueError, match=r"synthetic records have shape \(3,\)"):
    downstream_accuracy((x[:, 1:], y), data)
  with pytest.raises(ValueError, match="no test records"):
    downstream_accuracy((x, y), Dataset.from_arrays(x, y))
  images = Dataset.from_arrays(
    np.zeros((4, 6, 6, 1), np.uint8),
    [0, 1, 2, 0],
    test=(np.zeros((2, 6, 6, 1), np.uint8), [0, 1]),
  )
  with pytest.raises(ValueError, match="metrics read float32"):
    downstream_accuracy((images.x, images.y), images)


def test_the_default_classifier_follows_the_records(data):
  assert downstream.default_learner(data).text.startswith("MLP")
  x = np.zeros((4, 6, 6, 1), np.uint8)
  images = Dataset.from_arrays(x, [0, 1, 2, 0])
  assert downstream.default_learner(images).text.startswith("CNN")

"""Every attack finds who was memorised, and nothing where there is nothing to find."""

import dataclasses

import numpy as np
import optax
import pytest

import mixdef
from mixdef.attacks import CATALOGUE
from mixdef.auditing import Budget, run_attacks

MODELS, RECORDS = 8, 240


@pytest.fixture(scope="module")
def leaky():
  """Digits with random labels: all that a model can do is know them by heart."""
  data = mixdef.load("digits")
  labels = np.random.default_rng(0).integers(10, size=len(data))
  data = dataclasses.replace(data, y=labels.astype(np.int32))
  population = data.select(np.arange(RECORDS, 2 * RECORDS))
  data = dataclasses.replace(data.select(np.arange(RECORDS)), test=population)
  members = mixdef.subsets(RECORDS, MODELS, seed=0)
  learner = mixdef.classifier(
    mixdef.models.mlp(128), optax.adam(3e-3), mixdef.label_smoothing(0.01)
  )
  return mixdef.fit_many(
    learner, data, members, epochs=120, batch_size=40, strategy="vmap"
  )


def audited(ensemble, source):
  signals = ensemble.signals(views=mixdef.attacks.mirror, population=ensemble.data.test)
  found = run_attacks(
    list(CATALOGUE),
    signals,
    ensemble,
    budget=Budget(targets=3, records=RECORDS // 2),
    options={
      "salem_2": {"source": source},
      "threshold_known": {"known": 20},
      "label_only_boundary": {"iterations": 1},
    },
  )
  assert not found.not_run
  return found


@pytest.fixture(scope="module")
def source(memorised):
  return memorised.signals()


@pytest.mark.slow
def test_every_attack_beats_chance_on_what_was_memorised(leaky, source):
  found = audited(leaky, source)
  assert set(found.metrics) == set(CATALOGUE)
  weak = {
    name: row["auc"]
    for name, row in found.metrics.items()
    if row["auc"] - 5 * spread(row) < 0.5
  }
  assert not weak


@pytest.mark.slow
def test_no_attack_finds_what_is_not_there(leaky, source):
  rows = np.random.default_rng(1).random((MODELS, RECORDS)) < 0.5
  found = audited(dataclasses.replace(leaky, members=rows), source)
  far = {
    name: row["auc"]
    for name, row in found.metrics.items()
    if abs(row["auc"] - 0.5) > 5 * spread(row)
  }
  assert not far


def spread(row):
  """Null standard error of the AUC."""
  members, others = row["num_members"], row["num_nonmembers"]
  error = np.sqrt((members + others + 1) / (12 * members * others))
  return error

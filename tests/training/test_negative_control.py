"""An undefended model on random labels must leak: else no test of a defense counts."""

import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.attacks import leave_one_out, lira_global, lira_online
from mixdef.data import subsets
from mixdef.data.synthetic import synthetic_memorize
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc
from mixdef.training import fit_many


@pytest.fixture(scope="module")
def leaky():
  data = synthetic_memorize(200, num_features=20, num_classes=4, num_test=400)
  learner = classifier(models.mlp(64, num_classes=4), optax.adam(1e-2))
  members = subsets(data, 8, seed=0)
  return fit_many(learner, data, members, epochs=25, batch_size=32, strategy="vmap")


@pytest.mark.slow
def test_the_models_memorise(leaky):
  hits = leaky.log_probs(leaky.data.x).argmax(-1) == leaky.data.y
  test = leaky.log_probs(leaky.data.test.x).argmax(-1) == leaky.data.test.y
  assert hits[leaky.members].mean() > 0.95
  # Labels are independent of the inputs: chance is 1/4, give or take 5 sigma.
  assert abs(hits[~leaky.members].mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 200)
  assert abs(test.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize("attack", [lira_global, lira_online])
def test_the_attacks_find_the_members(leaky, attack):
  scores = leave_one_out(attack, leaky.signals())
  assert auc(scores, leaky.members) > 0.8
  assert auc(scores, np.roll(leaky.members, 1, axis=1)) == pytest.approx(0.5, abs=0.1)

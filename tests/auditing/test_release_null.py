"""No price of a release audit finds members among records that nobody trained on."""

import numpy as np
import optax
import pytest

import mixdef
from mixdef.metrics.false_discoveries import fdr_list
from mixdef.metrics.holdout import Rules

pytestmark = pytest.mark.slow
ATTACKS = {
  "free": "loss_threshold",
  "imitate": "loss_threshold",
  "shadows:16": "lira_online, rmia, bavaria",
  "cascade:2x8": "loss_threshold",
}
DRAWS = 200


@pytest.fixture(scope="module")
def digits():
  """Records in random order: one writer's follow each other in the file."""
  return mixdef.load("digits").select(np.random.default_rng(1).permutation(1797))


@pytest.fixture(scope="module")
def run(digits):
  learner = mixdef.classifier(mixdef.models.mlp(32), optax.adam(5e-3))
  return mixdef.fit(learner, digits, np.arange(1797) >= 1000, epochs=30, batch_size=64)


@pytest.mark.parametrize("budget", ATTACKS)
def test_membership_drawn_at_random_names_nobody(digits, run, budget):
  """Which of the unseen records are called members is drawn again 200 times."""
  unseen = digits.select(np.arange(1000))
  found = mixdef.audit_release(
    run,
    members=unseen.select(np.arange(500)),
    holdout=unseen.select(np.arange(500, 800)),
    population=unseen.select(np.arange(800, 1000)),
    attacks=ATTACKS[budget],
    budget=budget,
  )
  assert found.report["verdict"]["level"] in ("none_found", "low")
  assert set(found.scores) >= set(ATTACKS[budget].split(", "))
  rng, named, shown = np.random.default_rng(2), 0, 0
  for name, scores in found.scores.items():
    low, high = found.report["attacks"][name]["auc_ci"]
    assert low - 0.02 < 0.5 < high + 0.02  # of 95%, for up to ten attacks
    for _ in range(DRAWS):
      drawn = rng.permutation(scores)
      sides = drawn[:500], drawn[500:]
      named += fdr_list(*sides, draws=1).named > 0
      shown += Rules.of(*sides).shown(0.5, 0.1) > 0
  tries = DRAWS * len(found.scores)
  assert named <= 0.05 * tries
  assert shown <= 0.05 * tries

import numpy as np
import pytest

from mixdef.attacks import Signals, lira_global, lira_online_fixed
from mixdef.auditing import budget_curve
from mixdef.auditing.budget import budget_sizes
from mixdef.data import subsets
from mixdef.metrics import auc, tpr_at_fpr


def draw(models=10, records=300, seed=0):
  """Signals whose members stand out from records of very different hardness."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  phi = 4 * rng.normal(size=records) + rng.normal(size=members.shape) + 2 * members
  population = rng.normal(size=(models, 50))
  audited = np.arange(records) >= 20
  return Signals.from_phi(phi, members, audited=audited, population=population)


@pytest.mark.parametrize(
  ("models", "sizes"),
  [(1, [1]), (4, [4]), (5, [4, 5]), (8, [4, 8]), (100, [4, 8, 16, 32, 64, 100])],
)
def test_sizes_double_up_to_what_there_is(models, sizes):
  assert budget_sizes(models) == sizes


def test_the_targets_stay_and_the_references_grow():
  signals, asked = draw(), []

  def attack(signals, *, target):
    asked.append((target, len(signals.members), len(signals.population.members)))
    return lira_online_fixed(signals, target=target)

  rows = budget_curve(attack, signals)
  assert [row["num_models"] for row in rows] == [4, 8, 10]
  assert asked == [(target, size, size) for size in (4, 8, 10) for target in range(4)]


def test_every_point_is_that_of_an_attack_on_the_first_models_alone():
  signals = draw()
  for row in budget_curve(lira_online_fixed, signals, fpr=0.05):
    part = Signals.from_phi(
      signals.phi[: row["num_models"], :, 0],
      signals.members[: row["num_models"]],
      audited=signals.audited,
    )
    scores = np.stack([lira_online_fixed(part, target=target) for target in range(4)])
    assert row["auc"] == auc(scores, signals.members[:4])
    assert row["tpr"] == tpr_at_fpr(scores, signals.members[:4], 0.05)
    assert row["fpr"] == 0.05
    assert row["resolvable"]
    assert row["auc_ci"][0] <= row["auc"] <= row["auc_ci"][1]
    assert row["tpr_ci"][0] <= row["tpr"] <= row["tpr_ci"][1]


def test_more_references_find_more_where_records_differ_in_hardness():
  rows = budget_curve(lira_online_fixed, draw(models=32))
  assert rows[-1]["auc"] > rows[0]["auc"] + 0.02
  # An attack without references does not care how many there are.
  flat = budget_curve(lira_global, draw(models=32))
  assert len({row["auc"] for row in flat}) == 1


def test_a_balanced_design_gives_nothing_away_at_any_size():
  rng = np.random.default_rng(0)
  members = subsets(10_000, 8, design="balanced")
  signals = Signals.from_phi(rng.normal(size=members.shape), members)
  assert signals.design == "balanced"
  rows = budget_curve(lira_online_fixed, signals)
  assert [row["num_models"] for row in rows] == [4, 8]
  for row in rows:
    # n pairs of each kind have an error of 1 / sqrt(6 n): 4 targets, 5,000 each.
    assert abs(row["auc"] - 0.5) < 5 / np.sqrt(6 * 20_000)

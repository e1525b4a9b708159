"""On outputs that know nothing of the members, few audits of any size may accuse."""

import numpy as np
import pytest
from scipy import stats

from mixdef.attacks import ATTACKS, Signals
from mixdef.auditing import audit
from mixdef.auditing.levels import LEVELS

CLASSES = 5
_NETS = ("shokri", "salem_1", "quantile")  # seconds each; the slow test runs them, too
QUICK = [name for name in ATTACKS.on_signals if name not in _NETS]


def null(models, records, *, design="bernoulli", population=0, seed=0, spread=2.0):
  """Outputs with easy and hard records, independent of who is a member."""
  rng = np.random.default_rng([seed, models, records])
  labels = rng.integers(CLASSES, size=records)
  logits = rng.normal(size=(models, records, CLASSES))
  logits[:, np.arange(records), labels] += rng.normal(1, spread, records)
  members = np.zeros((models, records), bool)
  while not (
    members.any(1) & ~members.all(1)
  ).all():  # a model of one kind is not audited
    members = rng.random((models, records)) < 0.5
    if design == "balanced":
      members = rng.random((models, records)).argsort(0) < models / 2
  others = None
  if population:
    classes = rng.integers(CLASSES, size=population)
    answers = rng.normal(size=(models, population, CLASSES))
    answers[:, np.arange(population), classes] += rng.normal(1, spread, population)
    others = (answers, classes)
  return Signals.from_logits(logits, labels, members, population=others)


def accused(runs, models, records, *, target=None, attacks=QUICK, **how):
  """Count the audits graded above low, and those that had too few records."""
  levels = []
  for seed in range(runs):
    signals = null(models, records, seed=seed, **how)
    found = audit(signals, attacks=attacks, target=target, seed=seed)
    levels.append(found.report["verdict"]["level"])
  above = sum(LEVELS.index(level) < LEVELS.index("low") for level in levels)
  return above, levels.count("too_few_records")


@pytest.mark.parametrize(
  ("models", "records", "target"),
  [(1, 4, None), (2, 4, None), (2, 10, 1), (4, 30, None), (8, 10, None)],
)
def test_on_few_records_no_level_is_given(models, records, target):
  assert accused(1, models, records, target=target) == (0, 1)


@pytest.mark.parametrize(
  ("models", "target", "design"),
  [(1, None, "bernoulli"), (2, None, "bernoulli"), (4, 0, "balanced")],
)
def test_on_records_that_suffice_chance_is_not_graded(models, target, design):
  assert accused(2, models, 60, target=target, design=design) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("models", "records", "design", "target"),
  [
    (1, 100, "bernoulli", None),
    (2, 50, "bernoulli", None),
    (2, 50, "balanced", 0),
    pytest.param(4, 100, "balanced", None, marks=pytest.mark.heavy),
    pytest.param(8, 50, "bernoulli", 0, marks=pytest.mark.heavy),
    pytest.param(16, 500, "bernoulli", None, marks=pytest.mark.heavy),
  ],
)
def test_every_attack_together_accuses_in_one_run_of_twenty_at_most(
  models, records, design, target
):
  runs = 20
  every = {"attacks": list(ATTACKS.on_signals), "population": 50}
  above, _ = accused(runs, models, records, design=design, target=target, **every)
  assert above <= stats.binom.isf(stats.norm.sf(3), runs, 0.05)

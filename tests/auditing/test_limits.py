"""A report says what the audit does not cover."""

import types

import numpy as np
import optax
import pytest

import mixdef
from mixdef.auditing.limits import audit_limits
from mixdef.auditing.running import Findings

DATA = mixdef.Dataset.from_arrays([[0.0], [1.0], [1.0], [2.0]], [0, 1, 1, 0])
SIGNALS = mixdef.Signals(phi=np.zeros((2, 4, 1)), members=np.zeros((2, 4), bool))


@pytest.mark.parametrize("start", [True, False])
def test_records_of_given_parameters_and_copies_are_stated(start):
  defense = mixdef.start_from({"Dense_0": {}}) if start else None
  learner = mixdef.classifier(mixdef.models.mlp(2), optax.sgd(0.1), defense)
  models = types.SimpleNamespace(learner=learner, data=DATA)
  population = DATA.select([0, 3])
  lines = audit_limits(Findings({}, {}, {}), SIGNALS, models, population)
  assert any("start from given parameters" in line for line in lines) is start
  assert any(line.startswith("1 of the 4 records are equal") for line in lines)
  assert any(line.startswith("2 of the 2 population records") for line in lines)

"""A report states how a table was encoded, and that records belong to groups."""

import numpy as np
import optax
import pytest

import mixdef
from mixdef.auditing.facts import epsilon_remark
from mixdef.auditing.records import record_facts, record_limits
from mixdef.data import Dataset

AGE = {"age": {"kind": "numeric", "mean": 50, "spread": 20}}


def people(schema=None, group=None):
  random = np.random.default_rng(0)
  age = random.integers(20, 80, 80)
  frame = {
    "age": age,
    "who": np.arange(80) // 2,
    "y": np.where(age > 50, "old", "young"),
  }
  schema = {**(schema or {}), **({} if group else {"who": "drop"})}
  data = Dataset.from_dataframe(frame, schema=schema, group=group, name="people")
  return data.hold_out(0.25)


def test_facts_and_limits_of_what_was_read_from_the_records():
  data = people(group="who")
  assert record_facts(data) == {
    "classes": ["old", "young"],
    "encoding": "read from the records: age",
  }
  (of_encoding,) = record_limits(data)
  assert "for the columns age: " in of_encoding


def test_a_given_schema_limits_nothing():
  data = people(AGE)
  assert record_facts(data)["encoding"] == "given"
  assert record_limits(data) == []
  plain = mixdef.load("synthetic_clusters")
  assert (record_facts(plain), record_limits(plain)) == ({}, [])


def test_an_epsilon_is_printed_with_what_it_does_not_cover():
  stated = {"epsilon": 1.0, "unit": "record", "excludes": "encoding of columns"}
  remark = " (without the encoding of the columns, of a record, not of a group)"
  assert epsilon_remark(stated) == remark


@pytest.mark.slow
def test_a_guarantee_states_what_it_does_not_cover():
  defense = mixdef.parse("dp_sgd(1.0)")
  learner = mixdef.classifier(
    mixdef.models.mlp(4, num_classes=2), optax.sgd(0.1), defense
  )
  options = {"epochs": 1, "batch_size": 8}
  stated = mixdef.fit(learner, people(group="who"), **options).guarantee
  assert (stated["unit"], stated["excludes"]) == ("record", "encoding of columns")
  stated = mixdef.fit(learner, people(AGE), **options).guarantee
  assert not {"unit", "excludes"} & set(stated)


@pytest.mark.slow
def test_an_audit_shows_both():
  data = people(group="who")
  learner = mixdef.classifier(mixdef.models.mlp(4, num_classes=2), optax.adam(1e-2))
  members = mixdef.subsets(data, 4)
  models = mixdef.fit_many(learner, data, members, epochs=2, strategy="vmap")
  report = mixdef.audit(models, attacks=["loss_threshold"]).report
  assert report["setting"]["num_groups"] == 30
  assert report["setting"]["encoding"] == "read from the records: age"
  assert set(record_limits(data)) <= set(report["limits"])

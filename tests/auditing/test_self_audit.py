"""What a self-audit says in reports, on pages, at the gate and on the console."""

import dataclasses
import json
import pathlib
import types

import jsonschema
import numpy as np
import optax
import pytest
import report_case

import mixdef
from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.self_audit import contradiction, summary
from mixdef.auditing.verdict import verdict
from mixdef.cli import gate, train
from mixdef.metrics import audit_canaries

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def facts(noise):
  """The self-audit of a claim of epsilon 2.31, with some noise in place of 2."""
  rng = np.random.default_rng(0)
  members = rng.random(400) < 0.5
  drawn = (rng.random((100, 400)) < 0.1) & members
  seen = drawn + noise * rng.normal(size=(100, 400))
  claim = {"noise_multiplier": 2.0, "sampling_probability": 0.1, "steps_per_epoch": 10}
  found = audit_canaries(
    seen, members, np.arange(400) // 100, epsilon=2.31, advantage=0.2, **claim
  )
  return json.loads(json.dumps(found.to_json()))


@pytest.fixture(scope="module")
def kept():
  return facts(2.0)


@pytest.fixture(scope="module")
def broken():
  return facts(0.2)


def test_a_claim_that_stands_is_one_sentence_and_no_alarm(kept):
  assert contradiction(kept) == contradiction(None) == ""
  said = summary(kept)
  assert "2.31 is stated, and nothing contradicts it" in said
  assert said.endswith(".")


def test_an_alarm_names_what_contradicts(broken):
  said = contradiction(broken)
  assert "epsilon is at least" in said
  assert "variance deviates by" in said
  assert said.endswith("The guarantee does not hold as stated.")
  assert summary(broken) == said


def test_the_console_of_train_prints_it(broken, kept, capsys):
  train.show({"test_accuracy": 0.5, "self_audit": kept})
  train.show({"test_accuracy": 0.5, "self_audit": broken})
  lines = capsys.readouterr().out.splitlines()
  assert lines[1].startswith("The 400 canaries of this run show")
  assert lines[3].startswith("ALARM: The 400 canaries of this run contradict")


def test_the_page_and_the_gate_of_an_audit_show_the_alarm(broken, kept):
  report, scores, members, audited, _ = report_case.make()
  schema = json.loads((DOCS / "report.schema.json").read_text())["properties"]
  for found, words in ((kept, ""), (broken, "Alarm")):
    report["self_audit"] = found
    report["verdict"] = verdict(report)
    jsonschema.validate(found, schema["self_audit"])
    page = render(report, scores=scores, members=members, audited=audited)
    assert "Self-audit of the guarantee" in page
    assert ("Alarm" in page) == bool(words)
    lines = gate.failures(report, gate.GateSettings(report="-", max_tpr="1@0.001"))
    assert bool(lines) == bool(words)


def test_a_run_without_canaries_says_how_to_have_them():
  state = types.SimpleNamespace(defense={"dp_sgd": {"epsilon": 1.0}, "mixup": ()})
  with pytest.raises(ValueError, match=r"canaries=1000"):
    mixdef.self_audit(types.SimpleNamespace(state=state))


@pytest.mark.slow
def test_a_release_audit_of_a_run_holds_its_self_audit(tmp_path):
  data = mixdef.load("digits").hold_out(0.2)
  defense = "dp_sgd(epsilon=8.0, canaries=400)"
  learner = mixdef.classifier(mixdef.models.mlp(64), optax.sgd(0.3), defense)
  run = mixdef.fit(learner, data, epochs=2, seed=0, noise_seed=0)
  release = mixdef.audit_release(run)
  schema = json.loads((DOCS / "release.schema.json").read_text())
  jsonschema.validate(release.report, schema)
  assert release.report["self_audit"]["canaries"] == 400
  assert release.report["verdict"]["alarm"] == ""
  assert "Self-audit of the guarantee" in release.save(tmp_path / "whole").read_text()
  redacted = release.save(tmp_path / "redacted", redact=True).read_text()
  assert "Self-audit" not in redacted


@pytest.mark.slow
@pytest.mark.parametrize(
  ("before", "options"),
  [
    ("", "clipping='adaptive'"),
    ("", "clipping='automatic'"),
    ("gaussian_noise(0.1)|", "multiplicity=2"),
    ("", "unit='person', per_person=2"),
    ("freeze('Dense_0/kernel')|", "clip=0.5"),
    ("lora(4)|", "clip=0.5"),
  ],
)
def test_a_true_claim_stands_whatever_it_is_combined_with(before, options):
  """Batches of 40, so that the count of adaptive clipping takes a part of the noise."""
  data = mixdef.load("digits").select(np.arange(400))
  if "person" in options:
    data = dataclasses.replace(data, groups=np.arange(400) // 2)
  size = 20 if "person" in options else 40
  text = f"{before}dp_sgd(2.0, {options}, delta=1e-3, canaries=100)"
  learner = mixdef.classifier(mixdef.models.mlp(96), optax.sgd(0.1), text)
  run = mixdef.fit(
    learner,
    data,
    np.ones(400, bool),
    epochs=15,
    batch_size=size,
    num_members=200 if "person" in options else 400,
  )
  found = mixdef.self_audit(run)
  assert not found.failures
  assert found.canaries == 100

"""Reports on one model: the released one among its references, or one alone."""

import dataclasses
import json
import pathlib
import re

import jsonschema
import numpy as np
import pytest

from mixdef.attacks import ATTACKS, Signals
from mixdef.auditing import audit
from mixdef.auditing.exposure import describe, exposure
from mixdef.auditing.running import run_attacks
from mixdef.metrics import auc, summarize

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "report.schema.json"
NAMES = ["gap", "loss_threshold", "lira_online_fixed", "lira_offline_fixed", "rmia"]
MODELS, RECORDS, CLASSES, OTHERS = 8, 160, 4, 60


def arrays(leak, models=MODELS, records=RECORDS, seed=0):
  """Outputs of models that are surer of their members by `leak`."""
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  labels, others = (
    rng.integers(CLASSES, size=records),
    rng.integers(CLASSES, size=OTHERS),
  )
  logits = rng.normal(size=(models, records, CLASSES))
  logits[:, np.arange(records), labels] += rng.normal(1, 1, records) + leak * members
  population = rng.normal(size=(models, OTHERS, CLASSES))
  population[:, np.arange(OTHERS), others] += rng.normal(1, 1, OTHERS)
  return {
    "logits": logits,
    "labels": labels,
    "keep": members,
    "population_logits": population,
    "population_labels": others,
  }


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("outputs") / "outputs.npz"
  np.savez(path, **arrays(3.0))
  return path


@pytest.fixture(scope="module")
def pooled(file):
  return audit(Signals.from_npz(file), attacks=NAMES)


@pytest.fixture(scope="module")
def released(file):
  return audit(Signals.from_npz(file), attacks=NAMES, target=0)


def spoken(report):
  said = report["verdict"]
  lines = [said["headline"], *said["who"], *said["how_sure"], *said["what_to_do"]]
  return " ".join(lines)


def check_schema(report):
  schema = json.loads(SCHEMA.read_text())
  jsonschema.validate(report, schema, jsonschema.Draft202012Validator)


@pytest.mark.slow
def test_only_members_of_the_released_model_are_listed(released, pooled):
  member = released.signals.members[0]
  listed = [row["index"] for row in released.report["records"]["exposed"]]
  assert len(listed) == 24
  assert member[listed].all()
  assert {row["times"] for row in released.report["records"]["exposed"]} == {1}
  # Pooled, the list is of the recipe, and says so.
  listed = [row["index"] for row in pooled.report["records"]["exposed"]]
  assert not member[listed].all()
  assert "the recipe, all 8 models pooled" in pooled.report["records"]["note"]
  assert "Members of model 0 only" in released.report["records"]["note"]
  for found in (pooled, released):
    assert found.report["records"]["note"] in found.html()


@pytest.mark.slow
def test_the_metrics_are_those_of_the_released_model_alone(released, pooled):
  members = released.signals.members
  assert list(released.report["attacks"]) == NAMES
  for name, row in released.report["attacks"].items():
    scores = released.scores[name]
    assert np.isnan(scores[1:]).all()
    np.testing.assert_array_equal(scores[0], pooled.scores[name][0])
    assert (
      row["auc"] == auc(scores[0], members[0]) != pooled.report["attacks"][name]["auc"]
    )
    alone = summarize(scores[:1], members[:1])
    assert row["auc_ci"] == alone.auc_ci
    assert row["tpr"] == alone.tpr
    assert row["num_members"] + row["excluded"] >= members[0].sum() - RECORDS // 8
    assert row["num_targets"] == 1
    assert row["calibrated"] is row["balanced_accuracy"] is None
  assert any("omitted because" in line for line in released.report["limits"])
  best = released.report["strongest"]
  assert f"AUC {best['auc']:.3f}" in spoken(released.report)
  assert "non-members of model 0." in spoken(released.report)


def test_classes_budget_and_accuracy_are_of_the_released_model(released):
  report, signals = released.report, released.signals
  correct, member = signals.correct[0, :, 0], signals.members[0]
  assert report["setting"]["train_accuracy"] == correct[member].mean()
  assert report["setting"]["test_accuracy"] == correct[~member].mean()
  assert report["setting"]["test_accuracy_std"] is None
  for name, rows in report["budget"].items():
    assert [row["num_models"] for row in rows] == [4, 8]
    assert rows[-1]["auc"] == report["attacks"][name]["auc"]
  scores = released.scores[report["records"]["attack"]][0]
  for row in report["classes"]:
    mine = signals.labels == row["label"]
    assert row["auc"] == auc(scores[mine], member[mine])


@pytest.mark.slow
def test_the_report_says_which_model_it_describes(released, pooled):
  member = released.signals.members[0].sum()
  text = (
    f"model 0, the released model, {member} members / {RECORDS - member} non-members, "
    "7 reference models"
  )
  assert released.report["target"]["text"] == text
  assert f"This describes {text}." in spoken(released.report)
  assert "the recipe, all 8 models pooled" in spoken(pooled.report)
  assert "not a single model" in spoken(pooled.report)
  for found in (released, pooled):
    check_schema(found.report)
    assert found.report["target"]["text"] in found.html()


@pytest.mark.slow
@pytest.mark.parametrize("target", [3, 7])
def test_any_row_can_be_the_released_one(pooled, target):
  found = audit(pooled.signals, attacks=NAMES, target=target)
  members = found.signals.members[target]
  listed = [row["index"] for row in found.report["records"]["exposed"]]
  assert members[listed].all()
  for name, row in found.report["attacks"].items():
    assert row["auc"] == auc(pooled.scores[name][target], members)
  assert f"model {target}, the released model" in spoken(found.report)
  # The order of the models does not matter to attacks whose references are all others.
  others = [s for s in range(MODELS) if s != target]
  turned = audit(pooled.signals.only_models([target, *others]), attacks=NAMES, target=0)
  for name, row in turned.report["attacks"].items():
    assert row["auc"] == pytest.approx(found.report["attacks"][name]["auc"]), name


def test_the_file_may_name_the_released_model(file, released, tmp_path):
  path = tmp_path / "named.npz"
  np.savez(path, **arrays(3.0), target=0)
  signals = Signals.from_npz(path)
  assert signals.target == 0
  for given in (None, 0, np.int64(0)):
    named = audit(signals, attacks=NAMES[:2], target=given).report
    assert named["target"] == released.report["target"]
  with pytest.raises(ValueError, match="target=1, but the outputs name model 0"):
    audit(signals, attacks=NAMES[:2], target=1)


@pytest.mark.parametrize("target", [-1, 8, 0.0, 1.5, True, "0", [0], np.nan])
def test_what_is_no_model_is_refused_by_every_door(file, target, tmp_path):
  message = r"target=.* is not a model; pass 0 to 7$"
  with pytest.raises(ValueError, match=message):
    audit(Signals.from_npz(file), attacks=NAMES[:1], target=target)
  given = arrays(3.0)
  with pytest.raises(ValueError, match=message):
    Signals.from_logits(given["logits"], given["labels"], given["keep"], target=target)
  path = tmp_path / "wrong.npz"
  np.savez(path, **given, target=target)
  with pytest.raises(ValueError, match=rf"wrong\.npz: {message}"):
    Signals.from_npz(path)


def test_scores_of_one_target_are_not_those_of_all(pooled, tmp_path):
  audit(pooled.signals, attacks=NAMES[:1], out=tmp_path)
  with pytest.raises(ValueError, match="target was None, now 0"):
    audit(pooled.signals, attacks=NAMES[:1], out=tmp_path, target=0)


@pytest.mark.slow
def test_trained_models_are_audited_alone_too(memorised):
  names = ["gap", "lira_online_fixed", "gradient_norm", "label_only_noise(draws=5)"]
  found = audit(memorised, attacks=names, target=4)
  check_schema(found.report)
  # The costly attacks meet the target as well, wherever it stands.
  assert list(found.report["attacks"]) == names
  for name in names:
    assert np.isfinite(found.scores[name][4]).any()
    assert np.isnan(np.delete(found.scores[name], 4, axis=0)).all()
  listed = [row["index"] for row in found.report["records"]["exposed"]]
  assert memorised.members[4, listed].all()
  with pytest.raises(ValueError, match="target=6 is not a model; pass 0 to 5"):
    audit(memorised, attacks=names, target=6)


def test_canaries_in_other_models_do_not_grade_the_released_one():
  calm = Signals.from_phi(*_noise(MODELS, 200))
  leaky = audit(Signals.from_phi(*_noise(4, 200, leak=4.0)), attacks=["loss_threshold"])
  canaries = {
    "kind": "mislabelled",
    "count": 200,
    "attacks": {},
    "strongest": leaky.report["strongest"],
  }
  chosen = {"attacks": ["loss_threshold"], "canaries": canaries}
  assert audit(calm, **chosen).report["verdict"]["level"] == "high"
  report = audit(calm, **chosen, target=0).report
  assert report["verdict"]["level"] in ("none_found", "low")
  assert "planted in other models of the recipe" in spoken(report)
  assert "graded high" in spoken(report)


def _noise(models, records, leak=0.0, seed=0):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  return rng.normal(size=members.shape) + leak * members, members


@pytest.mark.parametrize(("leak", "target"), [(0.0, None), (4.0, 0)])
def test_one_model_without_references_is_judged_on_average_only(leak, target):
  given = arrays(leak, models=1)
  signals = Signals.from_logits(given["logits"], given["labels"], given["keep"])
  found = audit(signals, target=target)
  report, text = found.report, spoken(found.report)
  check_schema(report)
  assert report["records"] is None
  assert report["verdict"]["level"] == ("high" if leak else "none_found")
  assert report["verdict"]["headline"].startswith("On average the model treats")
  assert "no single record can be judged" in text
  assert "Only an average gap was measured: accuracy" in text
  assert "0 reference models" in text
  assert "Train reference models" in text
  assert not re.search("excluding|report lists|exposed records|1 models", text)
  assert 'id="records"' not in found.html()
  missing = ["lira_online", "lira_offline_fixed", "base", "bavaria", "attack_r"]
  missing += ["calibrated_loss", "confidence", "shokri", "salem_1"]
  for name in missing:
    assert "needs reference models" in report["not_run"][name], name


def test_classes_are_named(pooled):
  signals, names = pooled.signals, [f"class {k}" for k in range(10)]
  findings = run_attacks(NAMES[:2], signals)
  ids = np.arange(signals.members.shape[1])
  numbered, named = (
    exposure(findings, signals, ids, catalogue=ATTACKS, seed=0, classes=classes)
    for classes in (None, names)
  )
  for kind in (lambda found: found["classes"], lambda f: f["records"]["exposed"]):
    labels = [row["label"] for row in kind(numbered)]
    assert labels
    assert [row["label"] for row in kind(named)] == [f"class {k}" for k in labels]


@pytest.mark.parametrize(("seed", "target"), [(0, None), (1, 0)])
def test_where_chance_explains_the_result_no_record_is_to_be_left_out(seed, target):
  given = arrays(0.0, models=4, records=400, seed=seed)
  signals = Signals.from_logits(given["logits"], given["labels"], given["keep"])
  report = audit(signals, attacks=NAMES[:4], target=target).report
  assert report["verdict"]["level"] in ("none_found", "low")
  assert not re.search("excluding|report lists", spoken(report))


def test_the_same_advice_is_given_where_records_stand_out(pooled, released):
  for found in (pooled, released):
    assert found.report["verdict"]["level"] == "high"
    assert "excluding the most exposed records" in spoken(found.report)


def test_an_attack_on_some_records_ranks_none_of_all(pooled):
  """A label-only attack may be the strongest where it was tried."""
  signals = dataclasses.replace(pooled.signals, target=None)
  found = run_attacks(["gap", "loss_threshold"], signals)
  found.metrics["label_only_noise"] = found.metrics["gap"] | {"auc": 1.0}
  found.scores["label_only_noise"] = found.scores["gap"]
  ids = np.arange(RECORDS)
  listed = exposure(found, signals, ids, catalogue=ATTACKS, seed=0)["records"]
  assert listed["attack"] == "loss_threshold"


def test_one_reference_is_counted_in_the_singular():
  signals = Signals.from_phi(*_noise(2, 40))
  described = describe(dataclasses.replace(signals, target=1))
  assert described["text"].endswith("1 reference model")
  assert described["num_references"] == 1

import dataclasses
import json
import math
import pathlib

import jsonschema
import numpy as np
import optax
import pytest

from mixdef import attacks, models
from mixdef.attacks import Signals
from mixdef.auditing import Budget, audit, read_report
from mixdef.data import Dataset, subsets
from mixdef.defenses import confidence_masking
from mixdef.learners.classifier import classifier
from mixdef.metrics import auc, record_risk, summarize
from mixdef.training import fit_many

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "report.schema.json"
NOISE = "label_only_noise(draws=20)"
ATTACKS = [  # of every family, and one that cannot be run on tables
  "gap",
  "loss_threshold",
  "lira_online_fixed",
  "rmia",
  "salem_3",
  NOISE,
  "label_only_rotation",
  "gradient_norm",
]
BUDGET = Budget(targets=2, records=120)


@pytest.fixture(scope="module")
def leaky(memorised):
  return audit(memorised, attacks=ATTACKS, budget=BUDGET, setting={"defense": "none"})


@pytest.fixture(scope="module")
def saved(leaky, tmp_path_factory):
  folder = tmp_path_factory.mktemp("audit") / "report"
  page = leaky.save(folder)
  assert page == folder / "report.html"
  return folder


def schema_of(report):
  schema = json.loads(SCHEMA.read_text())
  jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
  text = json.dumps(report, allow_nan=False)  # strict: no NaN, no infinity, no numpy
  assert json.loads(text) == report


def test_an_undefended_model_leaks_and_the_report_says_so(leaky):
  report = leaky.report
  assert report["verdict"]["level"] == "high"
  best = report["strongest"]
  assert best["auc"] == max(row["auc"] for row in report["attacks"].values()) > 0.9
  assert best["auc_ci"][0] > 0.8
  assert best["tpr_ci"][0] > 5 * best["fpr"]
  for name, row in report["attacks"].items():
    assert row["auc"] > 0.7, name
  assert report["setting"]["train_accuracy"] > 0.95
  assert report["setting"]["test_accuracy"] < 0.4


def test_random_members_are_at_chance_through_the_whole_audit(memorised):
  members = subsets(memorised.data, 6, seed=99)
  blind = dataclasses.replace(memorised, members=members)
  report = audit(blind, attacks=ATTACKS, budget=BUDGET).report
  schema_of(report)
  assert report["verdict"]["level"] == "none_found"
  assert len(report["attacks"]) == len(ATTACKS) - 1
  for name, row in report["attacks"].items():
    n1, n0 = row["num_members"], row["num_nonmembers"]
    # Pairs of one record share their hardness: at most as if there were one target.
    error = math.sqrt(row["num_targets"] * (n1 + n0 + 1) / (12 * n1 * n0))
    assert abs(row["auc"] - 0.5) < 5 * error, name
  assert report["strongest"]["auc_ci"][0] < 0.5
  assert report["records"]["quantiles"]["0.5"] < 0.2
  assert abs(report["setting"]["gap_attack"] - 0.5) < 0.1


def test_the_report_follows_the_schema(leaky):
  schema_of(leaky.report)
  assert leaky.report["schema"] == 1
  assert leaky.report["title"] == "synthetic_memorize, no defense"


def test_every_attack_is_in_the_report_or_the_reason_why_not(leaky):
  report = leaky.report
  assert list(report["attacks"]) == [a for a in ATTACKS if a != "label_only_rotation"]
  assert list(report["not_run"]) == ["label_only_rotation"]
  assert "are not images" in report["not_run"]["label_only_rotation"]
  families = {row["family"] for row in report["attacks"].values()}
  assert families == set(attacks.ATTACKS.families)
  assert report["attacks"][NOISE]["num_targets"] == BUDGET.targets
  assert report["attacks"]["rmia"]["num_targets"] == 6


def test_pitfall_141_numbers_carry_what_they_rest_on(leaky, memorised):
  setting = leaky.report["setting"]
  assert setting["num_models"] == 6
  assert setting["num_records"] == setting["num_audited"] == 240
  assert setting["num_population"] == len(memorised.data.test)
  assert setting["design"] == "bernoulli"
  assert setting["references"] == "trained with the target's own defense"
  assert setting["epochs"] == 40
  for name, row in leaky.report["attacks"].items():
    member = memorised.members[~np.isnan(leaky.scores[name])]
    assert row["num_members"] == member.sum()
    assert row["num_nonmembers"] == (~member).sum()
    assert row["auc_ci"][0] <= row["auc"] <= row["auc_ci"][1]
    for fpr, rate in row["tpr"].items():
      assert rate["n_nonmembers"] == row["num_nonmembers"]
      assert rate["resolvable"] == (rate["n_nonmembers"] * float(fpr) >= 10)
      assert rate["interval"] == "bootstrap_records"
      assert rate["ci"][0] <= rate["value"] <= rate["ci"][1]
  text = " ".join(leaky.report["verdict"]["how_sure"])
  best = leaky.report["attacks"][leaky.report["strongest"]["attack"]]
  assert f"{best['num_nonmembers']} non-members of 6 models" in text
  assert "trained with the target's own defense" in text


def test_pitfall_144_averages_come_with_quantiles_and_records(leaky, memorised):
  records = leaky.report["records"]
  scores = leaky.scores[records["attack"]]
  whole = {
    name: row["auc"]
    for name, row in leaky.report["attacks"].items()
    if row["num_targets"] == 6
  }
  assert whole[records["attack"]] == max(whole.values())
  assert records["fpr"] == 0.02  # 1 % of some 700 non-members is less than ten
  risk = record_risk(scores, memorised.members, fpr=records["fpr"])
  assert records["quantiles"] == risk.quantiles()
  assert [row["index"] for row in records["exposed"]] == risk.ranked()[:24].tolist()
  assert [row["rank"] for row in records["exposed"]] == list(range(1, 25))
  for row in records["exposed"]:
    i = row["index"]
    assert row["label"] == memorised.data.y[i]
    assert row["rate"] == risk.found[i]
    assert row["times"] <= memorised.members[:, i].sum()
  assert any("canaries" in line for line in leaky.report["verdict"]["how_sure"])


def test_classes_and_budget_are_reported(leaky):
  classes = leaky.report["classes"]
  assert sorted(row["label"] for row in classes) == [0, 1, 2, 3]
  assert sum(row["num_records"] for row in classes) <= 240
  assert set(leaky.report["budget"]) == {"lira_online_fixed", "rmia"}
  for rows in leaky.report["budget"].values():
    assert [row["num_models"] for row in rows] == [4, 6]


def test_three_files_are_written(saved, leaky):
  assert {path.name for path in saved.iterdir()} == {
    "report.html",
    "report.json",
    "scores.npz",
  }
  assert read_report(saved) == read_report(saved / "report.json") == leaky.report
  page = (saved / "report.html").read_text(encoding="utf-8")
  assert page == leaky.html()
  assert page.startswith("<!doctype html>")
  assert leaky.report["verdict"]["headline"] in page
  for name in ("gap", "rmia", "gradient_norm"):
    assert name in page


def test_scores_travel_with_ids_and_members(saved, leaky, memorised):
  with np.load(saved / "scores.npz", allow_pickle=False) as scores:
    assert set(scores) == {"ids", "keep", "audited", "labels", *leaky.scores}
    np.testing.assert_array_equal(scores["keep"], memorised.members)
    np.testing.assert_array_equal(scores["ids"], memorised.data.ids)
    for name, row in leaky.report["attacks"].items():
      assert scores[name].shape == memorised.members.shape
      assert auc(scores[name], scores["keep"]) == row["auc"]


def test_what_is_no_report_is_refused(saved, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"report\.json is missing"):
    read_report(tmp_path)
  newer = read_report(saved) | {"schema": 2}
  (tmp_path / "report.json").write_text(json.dumps(newer))
  with pytest.raises(ValueError, match="is not a report of schema 1"):
    read_report(tmp_path)
  (tmp_path / "report.json").write_text("[]")
  with pytest.raises(ValueError, match="is not a report of schema 1"):
    read_report(tmp_path)


def test_ids_name_the_record_in_the_file_it_came_from(memorised):
  rows = np.arange(len(memorised.data))[::-1]
  turned = dataclasses.replace(
    memorised, data=memorised.data.select(rows), members=memorised.members[:, rows]
  )
  report = audit(turned, attacks=["loss_threshold"]).report
  for row in report["records"]["exposed"]:
    assert row["id"] == 239 - row["index"]


@pytest.fixture(scope="module")
def outputs(memorised):
  """Log-probabilities alone, as any framework gives them."""
  return Signals.from_logits(
    memorised.log_probs(memorised.data.x), memorised.data.y, memorised.members
  )


def test_arrays_alone_are_audited_as_the_models_are(outputs, leaky, tmp_path):
  found = audit(outputs, attacks=["gap", "rmia", "lira_online_fixed", *ATTACKS[5:]])
  report = found.report
  schema_of(report)
  assert list(report["attacks"]) == ["gap", "lira_online_fixed"]
  for name in ("gap", "lira_online_fixed"):
    np.testing.assert_allclose(
      found.scores[name], leaky.scores[name], rtol=1e-6, atol=1e-9
    )
  assert "population" in report["not_run"]["rmia"]
  for name in ATTACKS[5:]:
    assert "pass the ensemble" in report["not_run"][name]
  assert report["title"] == "outputs"
  assert report["verdict"]["level"] == "high"
  # Nothing is known of the training, and nothing is claimed.
  assert "epsilon" not in report["setting"]
  assert not any("guarantee" in line for line in report["verdict"]["how_sure"])
  found.save(tmp_path)
  with np.load(tmp_path / "scores.npz") as scores:
    np.testing.assert_array_equal(scores["ids"], np.arange(240))


def test_phi_alone_is_audited(outputs):
  found = audit(
    Signals.from_phi(outputs.phi, outputs.members), attacks=["loss_threshold"]
  )
  schema_of(found.report)
  assert found.report["classes"] == []
  assert "train_accuracy" not in found.report["setting"]
  assert found.report["records"]["exposed"][0]["label"] is None
  assert found.html()


def test_one_model_is_audited_by_what_needs_no_other(outputs):
  names = ["gap", "loss_threshold", "lira_online", "confidence"]
  found = audit(outputs.first_models(1), attacks=names)
  schema_of(found.report)
  assert list(found.report["attacks"]) == ["gap", "loss_threshold"]
  assert "train more models" in found.report["not_run"]["lira_online"]
  assert found.report["budget"] == {}
  row = found.report["attacks"]["gap"]
  assert row["balanced_accuracy"] is None
  assert row["tpr"]["0.05"]["interval"] == "bootstrap_records"
  assert found.html()


def test_nothing_is_said_where_no_attack_could_be_run(outputs):
  with pytest.raises(ValueError, match=r"no attack could be run; rmia: .*population"):
    audit(outputs, attacks=["rmia"])


def test_facts_of_the_caller_are_shown(outputs):
  setting = {"dataset": "mine", "defense": "dp_sgd", "epsilon": 2.0, "delta": 1e-5}
  report = audit(outputs, attacks=["gap"], setting=setting).report
  assert report["title"] == "mine, dp_sgd"
  assert report["setting"]["epsilon"] == 2.0
  assert any("epsilon 2 at" in line for line in report["verdict"]["how_sure"])


def test_canaries_and_baseline_enter_the_report(outputs, leaky):
  strong = leaky.report["strongest"]
  canaries = {"kind": "blank", "count": 9, "attacks": {}, "strongest": strong}
  weak = strong | {"auc": 0.5, "auc_ci": [0.4, 0.55]}
  chance = np.random.default_rng(0).normal(size=outputs.members.shape)
  any_attack = next(iter(leaky.report["attacks"].values()))
  found = any_attack | summarize(chance, outputs.members, resamples=10).to_json()
  baseline = {
    "noise_multiplier": 1.0,
    "epsilon": math.inf,
    "delta": 1e-5,
    "learning_rate": 0.5,
    "test_accuracy": 0.25,
    "defense_test_accuracy": 0.9,
    "attacks": {"loss_threshold": found},
    "scores": {"loss_threshold": chance},
    "members": outputs.members,
    "strongest": weak,
  }
  names = ["loss_threshold"]
  report = audit(outputs, attacks=names, canaries=canaries, dp_baseline=baseline).report
  schema_of(report)
  assert report["canaries"] == canaries
  # The accuracy that is compared is the audited models', not an earlier guess.
  reached = report["setting"]["test_accuracy"]
  assert report["dp_baseline"]["defense_test_accuracy"] == reached != 0.9
  assert report["dp_baseline"]["epsilon"] is None
  assert "scores" not in report["dp_baseline"]
  (paired,) = report["dp_baseline"]["paired"]
  assert paired["auc"] == report["attacks"]["loss_threshold"]["auc"]
  assert paired["difference"] == pytest.approx(paired["auc"] - paired["dp_auc"])
  assert paired["ci"][0] > 0
  (line,) = report["verdict"]["compared"]
  assert line.startswith("On the audited records, this model leaks more than DP-SGD")
  assert any("Prefer the DP-SGD" in line for line in report["verdict"]["what_to_do"])


@pytest.fixture(scope="module")
def masked():
  """Two models that release their label alone."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(160, 20)).astype(np.float32)
  data = Dataset.from_arrays(x, rng.integers(0, 4, 160), num_classes=4)
  learner = classifier(
    models.mlp(32, num_classes=4), optax.adam(1e-2), confidence_masking()
  )
  members = subsets(data, 2, seed=0)
  return fit_many(learner, data, members, epochs=30, batch_size=32, strategy="vmap")


@pytest.mark.slow
def test_pitfall_143_masked_scores_alone_judge_nobody(masked):
  with pytest.raises(ValueError, match="add a label-only attack, for example label_o"):
    audit(masked, attacks=["loss_threshold", "gradient_norm"])
  # One that cannot be run on tables is no judge either.
  with pytest.raises(ValueError, match="add a label-only attack"):
    audit(masked, attacks=["loss_threshold", "label_only_rotation"])


@pytest.mark.slow
def test_pitfall_143_with_a_label_only_attack_masked_scores_are_judged(masked):
  report = audit(masked, attacks=["loss_threshold", NOISE], budget=BUDGET).report
  schema_of(report)
  assert list(report["attacks"]) == ["loss_threshold", NOISE]
  assert report["attacks"][NOISE]["auc"] > 0.7


def test_pitfall_148_duplicates_are_reported(memorised, leaky):
  def limits(data, population):
    models = dataclasses.replace(memorised, data=data)
    found = audit(models, attacks=["gap"], population=population)
    return " ".join(found.report["limits"])

  data, test = memorised.data, memorised.data.test
  x = test.x.copy()
  x[:7] = data.x[10:17]
  text = limits(data, dataclasses.replace(test, x=x))
  assert "7 of the 240 population records are equal to a training record" in text
  x = data.x.copy()
  x[:3] = x[100:103]
  text = limits(dataclasses.replace(data, x=x), test)
  assert "3 of the 240 records are equal to an earlier one" in text
  assert "population records" not in text
  assert not any("equal to" in line for line in leaky.report["limits"])


def test_a_population_of_another_kind_is_refused(memorised):
  population = Dataset.from_arrays(np.zeros((9, 5)), [0] * 9)
  with pytest.raises(ValueError, match="preprocess both in the same way"):
    audit(memorised, attacks=["gap"], population=population)


def test_a_killed_audit_goes_on(memorised, tmp_path):
  names = ["gap", "rmia"]
  first = audit(memorised, attacks=names[:1], out=tmp_path)
  kept = tmp_path / "gap.npz"
  with np.load(kept) as file:
    arrays = dict(file)
  np.savez(kept, **{**arrays, "scores": 1 - arrays["scores"]})
  again = audit(memorised, attacks=names, out=tmp_path)
  # What lies there is taken: an attack is not run twice.
  np.testing.assert_array_equal(again.scores["gap"], 1 - first.scores["gap"])
  assert set(again.scores) == set(names)
  with pytest.raises(ValueError, match="seed was 0, now 1"):
    audit(memorised, attacks=names, out=tmp_path, seed=1)


def test_views_are_asked_and_counted(memorised):
  def two_views(x):
    return np.stack([x, x + np.float32(0.1)], 1)

  found = audit(memorised, attacks=["lira_online_fixed"], views=two_views)
  assert found.report["setting"]["queries"] == "2 views per record"
  expected = memorised.signals(views=two_views)
  np.testing.assert_array_equal(found.signals.phi, expected.phi)

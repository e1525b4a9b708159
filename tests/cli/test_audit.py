import dataclasses
import functools
import json
import pathlib

import jsonschema
import numpy as np
import pytest

import mixdef
from mixdef import attacks
from mixdef.cli import audit, job
from mixdef.cli.audit import AuditSettings
from mixdef.cli.flags import FLAGS

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "report.schema.json"
ONE_OF_EACH_FAMILY = (
  "gap",
  "loss_threshold",
  "lira_online_fixed",
  "rmia(a=0.5)",
  "salem_1",
  "salem_2",
  "label_only_noise(draws=20)",
  "gradient_norm",
)
TINY = AuditSettings(
  model="mlp(8)",
  epochs=2,
  learning_rate=0.01,
  train_size=150,
  num_shadows=4,
  strategy="scan",
  attacks=", ".join(ONE_OF_EACH_FAMILY),
  canaries="mislabelled:40",
  attack_targets=2,
  attack_records=20,
)
FEW = {"attacks": "gap, lira_online_fixed", "canaries": "none"}


def strict_json(path):
  """Read JSON and refuse NaN and infinities, which other readers do not know."""

  def refuse(word):
    raise AssertionError(f"{path.name} holds {word}")

  return json.loads(path.read_text(), parse_constant=refuse)


def valid_report(folder):
  report = strict_json(folder / "report.json")
  jsonschema.validate(report, json.loads(SCHEMA.read_text()))
  return report


def findings(report):
  """Return what does not depend on how long things took or when they were run."""
  attacks = {
    name: {key: value for key, value in row.items() if key != "seconds"}
    for name, row in report["attacks"].items()
  }
  rest = ("strongest", "records", "classes", "verdict", "not_run", "budget")
  canaries = report["canaries"] and report["canaries"]["strongest"]
  return attacks, canaries, {name: report[name] for name in rest}


def written_metrics(folder):
  return {
    path: (path.stat().st_mtime_ns, len(path.read_text().splitlines()))
    for path in folder.rglob("metrics.jsonl")
  }


def write_outputs(path, *, gain=2.0, models=6, records=300, seed=0, **more):
  """Write outputs of models that are surer of their members, as a user would."""
  random = np.random.default_rng(seed)
  members = random.random((models, records)) < 0.5
  labels = random.integers(3, size=records)
  logits = random.normal(size=(models, records, 3))
  logits[:, np.arange(records), labels] += gain * members
  population = random.normal(size=(models, 60, 3))
  np.savez(
    path,
    logits=logits,
    keep=members,
    labels=labels,
    population_logits=population,
    population_labels=random.integers(3, size=60),
    **more,
  )
  return path


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
  folder = tmp_path_factory.mktemp("audit") / "run"
  return folder, job.execute(TINY, folder, audit.run)


def test_audit_writes_the_contract(audited):
  folder, returned = audited
  result, report = strict_json(folder / "result.json"), valid_report(folder)
  assert result == returned
  assert result["attacks"] == report["attacks"]
  assert set(report["attacks"]) == set(ONE_OF_EACH_FAMILY) - {"salem_2"}
  assert set(report["not_run"]) == {"salem_2"}  # needs models of another data set
  families = {row["family"] for row in report["attacks"].values()}
  assert families == set(attacks.ATTACKS.families)
  assert {name: row["num_targets"] for name, row in report["attacks"].items()} == {
    **dict.fromkeys(ONE_OF_EACH_FAMILY[:4], 4),
    **dict.fromkeys(("salem_1", *ONE_OF_EACH_FAMILY[6:]), 2),
  }
  setting = report["setting"]
  assert (setting["dataset"], setting["defense"]) == ("digits", "none")
  assert (setting["num_models"], setting["num_records"]) == (4, 300)
  assert setting["num_population"] == 359
  assert report["dp_baseline"] is None
  assert report["canaries"]["count"] == 40
  assert report["canaries"]["num_always"] == 260


def test_audit_writes_its_scores_and_one_page(audited):
  folder, result = audited
  with np.load(folder / "scores.npz") as scores:
    assert set(scores) == {"ids", "labels", "keep", "audited", *result["attacks"]}
    members, asked = scores["keep"], ~np.isnan(scores["gradient_norm"])
    assert {scores[name].shape for name in result["attacks"]} == {members.shape}
  assert asked.sum(1).tolist() == [20, 20, 0, 0]
  page = (folder / "report.html").read_text()
  assert result["verdict"]["headline"] in page
  assert "<script" not in page


def test_audit_prints_the_verdict_first(audited, capsys):
  _, result = audited
  audit.show(result)
  lines = capsys.readouterr().out.splitlines()
  level = result["verdict"]["level"].replace("_", " ")
  assert lines[0] == f"{level}: {result['verdict']['headline']}"
  assert any(line.startswith("  not run: salem_2: ") for line in lines)
  assert result["report"] == "report.html"  # inside the run folder, wherever it goes


@pytest.mark.slow
def test_an_audit_killed_after_the_training_does_not_train_again(
  tmp_path, audited, monkeypatch
):
  def stop(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(mixdef, "audit", stop)
    with pytest.raises(KeyboardInterrupt):
      job.execute(TINY, tmp_path, audit.run)
  assert not (tmp_path / "result.json").exists()
  trained = written_metrics(tmp_path)
  assert {path.parent.name for path in trained} == {"shadows", "canaries"}
  job.execute(TINY, tmp_path, audit.run)
  assert written_metrics(tmp_path) == trained
  assert findings(valid_report(tmp_path)) == findings(valid_report(audited[0]))


@pytest.mark.slow
def test_no_canaries_are_planted_if_none_are_asked_for(tmp_path, audited):
  settings = dataclasses.replace(TINY, **FEW)
  job.execute(settings, tmp_path, audit.run)
  report = valid_report(tmp_path)
  assert report["canaries"] is None
  assert not (tmp_path / "canaries").exists()
  assert any("No canaries" in line for line in report["verdict"]["how_sure"])
  # Planting them changes nothing about the audit of the real records.
  with_canaries = valid_report(audited[0])["attacks"]
  for name, row in report["attacks"].items():
    assert row["auc"] == with_canaries[name]["auc"]


@pytest.mark.slow
def test_a_shadow_of_another_data_set_transfers(tmp_path):
  settings = dataclasses.replace(
    TINY, **FEW | {"attacks": "gap, salem_2"}, transfer="synthetic_memorize"
  )
  settings = dataclasses.replace(settings, attacks="salem_2, gap")
  result = job.execute(settings, tmp_path, audit.run)
  assert set(result["attacks"]) == {"salem_2", "gap"}
  assert result["not_run"] == {}
  assert (tmp_path / "transfer" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_quick_audit_holds_the_dp_baseline(tmp_path, monkeypatch):
  grid = {"noise_multipliers": (0.05, 1.0), "learning_rates": (1.0, 4.0)}
  fewer_candidates = functools.partial(mixdef.auditing.matched_dp, **grid)
  monkeypatch.setattr(mixdef.auditing.additions, "matched_dp", fewer_candidates)
  few = {"attacks": "gap, lira_online_fixed, gradient_norm", "canaries": "clean:40"}
  settings = dataclasses.replace(TINY, **few, quick=True, epochs=1, num_shadows=2)
  job.execute(settings, tmp_path, audit.run)
  report = valid_report(tmp_path)
  baseline = report["dp_baseline"]
  assert set(baseline["attacks"]) == {"gap", "lira_online_fixed"}  # outputs alone
  assert len(baseline["candidates"]) >= 4
  searched = sorted(path.name for path in (tmp_path / "dp_candidates").iterdir())
  assert searched == sorted({row["recipe"] for row in baseline["candidates"]})
  assert baseline["epsilon"] > 0
  assert baseline["canaries"]["count"] == report["canaries"]["count"] == 40
  assert baseline["defense_test_accuracy"] == report["setting"]["test_accuracy"]
  # Its models are trained on the subsets of the audited ones.
  pairs = ("num_members", "num_nonmembers")
  ours, theirs = report["attacks"]["gap"], baseline["attacks"]["gap"]
  assert [ours[name] for name in pairs] == [theirs[name] for name in pairs]


@pytest.mark.slow
def test_outputs_of_models_trained_elsewhere_are_audited(tmp_path):
  path = write_outputs(tmp_path / "outputs.npz")
  settings = AuditSettings(arrays=str(path), out=str(tmp_path / "run"))
  result = job.execute(settings, tmp_path / "run", audit.run)
  report = valid_report(tmp_path / "run")
  assert report["title"] == "outputs"
  assert set(report["not_run"]) == {"salem_2", *attacks.ATTACKS.on_models}
  assert "rmia" in result["attacks"]  # it reads the population
  assert result["strongest"]["auc_ci"][0] > 0.7
  assert report["setting"]["num_population"] == 60
  assert settings.subject == "outputs"
  random = write_outputs(tmp_path / "random.npz", gain=0.0)
  few = AuditSettings(arrays=str(random), attacks="loss_threshold, lira_online, rmia")
  job.execute(few, tmp_path / "control", audit.run)
  control = valid_report(tmp_path / "control")
  assert control["strongest"]["auc"] < 0.65
  assert control["verdict"]["level"] in ("none_found", "low")


@pytest.mark.slow
def test_one_model_of_a_file_is_audited_by_flag_or_by_the_file(tmp_path):
  names = "loss_threshold, lira_online_fixed"
  plain = write_outputs(tmp_path / "plain.npz", records=120)
  named = write_outputs(tmp_path / "named.npz", records=120, target=2)
  by_flag = AuditSettings(arrays=str(plain), attacks=names, target="2")
  by_file = AuditSettings(arrays=str(named), attacks=names)
  reports = []
  for i, settings in enumerate((by_flag, by_file)):
    job.execute(settings, tmp_path / f"run{i}", audit.run)
    reports.append(valid_report(tmp_path / f"run{i}"))
  for part in ("target", "records", "classes", "verdict"):
    assert reports[0][part] == reports[1][part]
  assert reports[0]["target"]["model"] == 2
  for target, message in (
    ("6", "target=6 is not a model; pass 0 to 5"),
    ("1", "model 2"),
  ):
    settings = dataclasses.replace(by_file, target=target)
    with pytest.raises(ValueError, match=message):
      job.execute(settings, tmp_path / "refused", audit.run)
    assert not (tmp_path / "refused" / "config.json").exists()


@pytest.mark.parametrize("flag", ["dataset", "epochs", "dp_baseline", "canaries"])
def test_flags_of_training_beside_outputs_are_refused(flag):
  value = {"dataset": "mnist", "epochs": 3, "dp_baseline": True, "canaries": "none"}
  with pytest.raises(
    ValueError, match=f"--{flag}={value[flag]} is only used in training"
  ):
    AuditSettings(arrays="outputs.npz", **{flag: value[flag]})


def test_outputs_alone_cannot_be_asked_questions(tmp_path):
  path = write_outputs(tmp_path / "outputs.npz")
  settings = AuditSettings(arrays=str(path), attacks="gradient_norm")
  with pytest.raises(
    ValueError, match="no attack could be run; gradient_norm: it queries"
  ):
    job.execute(settings, tmp_path / "run", audit.run)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"attacks": "lira_onlin"}, "there is no attack 'lira_onlin'; did you mean lira"),
    ({"attacks": "rmia(g=1)"}, "rmia\\(g=1\\): .*'g'"),
    ({"attacks": "rmia("}, "cannot read"),
    (
      {"canaries": "loud:9"},
      "unknown kind of canaries 'loud'; choose from clean, mislabelled",
    ),
    ({"canaries": "blank"}, "canaries='blank'; write kind:count"),
    ({"views": "shake"}, "--views='shake'; choose from none, mirror, shifts, mixed"),
    ({"target": "-1"}, "--target='-1' is not a model; pass a whole number, 0 or more"),
    ({"target": "0.0"}, "--target='0.0' is not a model"),
    ({"target": "first", "arrays": "a.npz"}, "--target='first' is not a model"),
    ({"target": "16"}, "--target=16 is not a model; pass 0 to 15"),
    ({"target": "8", "quick": True}, "--target=8 is not a model; pass 0 to 7"),
    ({"transfer": "nowhere"}, "--transfer=nowhere: unknown data set 'nowhere'"),
    (
      {"transfer": "digits", "attacks": "gap"},
      "is only used by salem_2: add it to --attacks",
    ),
    (
      {"canary_source": "digits"},
      "--canary_source=digits is only used for ood canaries",
    ),
    (
      {"canary_source": "x", "canaries": "ood:9"},
      "--canary_source=x: unknown data set 'x'",
    ),
    ({"attacks": "lira_online(target=3)"}, "no argument 'target' here"),
    ({"attacks": "rmia(gamma='x')"}, "--attacks=.*rmia: gamma is 'x'; pass a number"),
    ({"attacks": "gap, gap"}, "attacks name gap twice"),
    ({"num_shadows": 1}, "--num_shadows=1: an attack needs a target and references"),
  ],
)
def test_mistakes_are_one_line_before_anything_is_written(wrong, message):
  with pytest.raises(ValueError, match=message) as raised:
    AuditSettings(**wrong)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("settings", "error", "message"),
  [
    (
      AuditSettings(arrays="nowhere.npz"),
      FileNotFoundError,
      "nowhere.npz is missing",
    ),
    (
      dataclasses.replace(TINY, canaries="ood:9", canary_source="synthetic_memorize"),
      ValueError,
      "source has records float32 \\(20,\\), but the data have",
    ),
  ],
)
def test_mistakes_in_the_data_are_one_line_before_training(
  tmp_path, settings, error, message
):
  with pytest.raises(error, match=message) as raised:
    job.execute(settings, tmp_path, audit.run)
  assert "\n" not in str(raised.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_table_has_no_mirror_images(tmp_path, small_table):
  table = {"dataset": "location30", "data_dir": small_table(200), "train_size": 0}
  settings = dataclasses.replace(TINY, **table, views="mirror")
  with pytest.raises(
    ValueError, match=r"are not images .*, so there is no mirror image"
  ):
    job.execute(settings, tmp_path / "run", audit.run)
  assert not list((tmp_path / "run").iterdir())
  mixed = dataclasses.replace(TINY, **{**table, **FEW}, views="mixed")
  assert job.execute(mixed, tmp_path / "run", audit.run)["queries"].startswith(
    "6 views"
  )


def test_every_flag_has_a_help_text():
  names = {field.name for field in dataclasses.fields(AuditSettings)}
  assert names <= set(FLAGS)

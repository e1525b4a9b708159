"""Audits of one trained model with reference models, from a run and from a folder."""

import json
import pathlib

import jsonschema
import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli import job, release, train
from mixdef.cli.__main__ import main
from mixdef.cli.settings import Settings

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "release.schema.json"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
  data = mixdef.load("digits").select(np.arange(1200)).hold_out(0.5, seed=0)
  learner = mixdef.classifier(mixdef.models.mlp(64), optax.adam(5e-3))
  return mixdef.fit(learner, data, epochs=60, batch_size=64)


def test_references_find_members_and_not_shuffled_ones(trained, tmp_path):
  found = mixdef.audit_release(trained, budget="shadows:16", out=tmp_path)
  report = found.report
  assert report["price"]["models"] == 16
  assert report["price"]["size"] == 600
  assert report["title"] == "MLP, no defense"
  assert report["setting"]["defense"] == "none"
  assert report["setting"]["dataset"] == "digits"
  assert list(report["curves"]) == ["release", "calibrated", "pooled"]
  assert 0.002 < report["curves"]["calibrated"]["nominal"]["0.01"]["holdout"] < 0.03
  assert [row["models"] for row in report["stability"]["sets"]] == [8]
  assert report["exposed"][0]["own_p"] < 0.05
  schema = json.loads(SCHEMA.read_text())
  jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
  online = report["attacks"]["lira_online"]
  assert online["auc_ci"][0] > 0.55
  assert not report["confounding"]["confounded"]
  again = mixdef.audit_release(trained, budget="shadows:16", out=tmp_path).report
  assert again["attacks"]["lira_online"]["auc"] == online["auc"]


def test_a_private_run_is_audited_with_its_epsilon():
  data = mixdef.load("digits").select(np.arange(400)).hold_out(0.5, seed=1)
  model, private = mixdef.models.mlp(8), mixdef.dp_sgd(2.0, delta=1e-3)
  learner = mixdef.classifier(model, optax.adam(1e-2), private)
  run = mixdef.fit(learner, data, epochs=2, batch_size=32, num_members=200)
  found = mixdef.audit_release(run, attacks="loss_threshold")
  assert found.report["setting"]["members"] == 200
  assert found.report["setting"]["epsilon"] > 0
  assert "differentially private" in " ".join(found.report["verdict"]["compared"])
  assert found.report["verdict"]["alarm"] == ""
  assert found.report["bound"]["points"]
  assert found.report["title"].startswith("MLP, dp_sgd(noise_multiplier=2.0")
  assert found.html()


def test_imitators_find_members(trained):
  report = mixdef.audit_release(trained, budget="imitate").report
  assert (report["price"]["models"], report["price"]["imitators"]) == (20, 10)
  assert report["attacks"]["imia"]["auc_ci"][0] > 0.55
  assert report["attacks"]["glira"]["auc_ci"][0] > 0.5


def test_persons_are_scored_where_records_have_groups(trained):
  """Persons of two records each; the attack on persons is at least as strong."""
  data, half = trained.data, np.arange(600) // 2
  groups = np.concatenate([half, 300 + half])
  found = mixdef.audit_release(
    trained,
    members=data.select(trained.members),
    holdout=data.test,
    groups=groups,
    budget="shadows:8",
    attacks="lira_online, loss_threshold",
  )
  assert found.report["unit"] == "person"
  assert found.scores["lira_online"].shape == (600,)
  assert found.report["setting"]["members"] == 300
  assert found.report["attacks"]["lira_online"]["auc_ci"][0] > 0.55


def test_a_trace_ranks_the_members(tmp_path):
  data = mixdef.load("digits").select(np.arange(400)).hold_out(0.5, seed=0)
  learner = mixdef.classifier(mixdef.models.mlp(32), optax.adam(5e-3))
  run = mixdef.fit(learner, data, epochs=8, batch_size=64, trace="loss", every=1)
  report = mixdef.audit_release(run, attacks="loss_threshold").report
  ranks = [row["trace_rank"] for row in report["exposed"]]
  assert len(set(ranks)) == len(ranks)
  assert min(ranks) >= 1
  assert max(ranks) <= 200


def test_a_population_gives_a_network_of_non_members(trained):
  rest = trained.data.test
  halves = rest.select(np.arange(300)), rest.select(np.arange(300, 600))
  report = mixdef.audit_release(trained, holdout=halves[0], population=halves[1]).report
  assert "quantile_network" in report["attacks"]
  assert "attack_p" in report["attacks"]


def test_a_hold_out_that_was_trained_on_shows_no_difference(trained):
  """The negative control: both sides are members."""
  members = trained.data.select(trained.members)
  order = np.random.default_rng(1).permutation(len(members))
  halves = members.select(order[:300]), members.select(order[300:])
  report = mixdef.audit_release(
    trained, members=halves[0], holdout=halves[1], budget="shadows:16"
  ).report
  assert abs(report["attacks"]["lira_online"]["auc"] - 0.5) < 4 * 0.0236  # its sd
  assert report["verdict"]["level"] in ("none_found", "low")


def test_the_job_audits_the_run_folder_of_train(tmp_path, capsys):
  settings = Settings(
    model="mlp(64)", epochs=40, train_size=600, out=str(tmp_path / "run")
  )
  job.execute(settings, tmp_path / "run", train.run)
  argv = [f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'audit'}"]
  argv.append("--drop_exposed=1%")
  before = sorted((tmp_path / "run" / "models").iterdir())
  job.main(release.JOB, argv)
  result = json.loads((tmp_path / "audit" / "result.json").read_text())
  assert result["price"]["name"] == "free"
  assert result["without_exposed"]["dropped"] == 6
  assert (tmp_path / "audit" / "without_exposed" / "report.json").exists()
  assert (tmp_path / "audit" / "report.html").exists()
  assert sorted((tmp_path / "run" / "models").iterdir()) == before
  with pytest.raises(SystemExit):
    job.main(release.JOB, [f"--run={tmp_path / 'audit'}"])
  report = str(tmp_path / "audit" / "report.json")
  main(["verify", report, f"--run={tmp_path / 'run'}"])
  assert "verify: outputs agree" in capsys.readouterr().out

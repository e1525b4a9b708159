import csv
import dataclasses
import json

import numpy as np
import pytest

from mixdef.cli import audit, compare, job
from mixdef.cli.compare import CompareSettings
from mixdef.cli.flags import FLAGS
from mixdef.metrics import paired_bootstrap

ATTACKS = "loss_threshold, lira_online_fixed, base"


def audited(folder, *, gain, records=200, seed=0):
  """Audit outputs that gain on the true class of members; returns the run folder."""
  random = np.random.default_rng(seed)
  members = random.random((8, records)) < 0.5
  labels = random.integers(3, size=records)
  logits = random.normal(size=(8, records, 3))
  logits[:, np.arange(records), labels] += gain * members
  path = folder / f"{folder.name}.npz"
  folder.mkdir()
  np.savez(path, logits=logits, keep=members, labels=labels)
  job.execute(audit.AuditSettings(arrays=str(path), attacks=ATTACKS), folder, audit.run)
  return folder


def joined(*folders):
  return CompareSettings(audits=", ".join(map(str, folders)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("audits")
  return {
    "leaky": audited(folder / "leaky", gain=2.0),
    "defended": audited(folder / "defended", gain=0.7),
    "others": audited(folder / "others", gain=2.0, records=150),
    "relabelled": audited(folder / "relabelled", gain=2.0, seed=1),
  }


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("compare") / "run"
  return folder, job.execute(joined(*runs.values()), folder, compare.run)


@pytest.mark.slow
def test_every_audit_is_a_row_of_each_table(compared, runs):
  folder, result = compared
  assert json.loads((folder / "result.json").read_text()) == result
  with (folder / "compare.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["audit"] for row in rows] == list(runs)
  report = json.loads((runs["leaky"] / "report.json").read_text())
  assert rows[0]["attack"] == report["strongest"]["attack"]
  assert float(rows[0]["auc"]) == report["strongest"]["auc"]
  low, high = report["strongest"]["auc_ci"]
  assert (float(rows[0]["auc_low"]), float(rows[0]["auc_high"])) == (low, high)
  assert float(rows[0]["accuracy"]) == report["setting"]["test_accuracy"]
  assert rows[0]["epsilon"] == ""  # no guarantee
  table = (folder / "compare.md").read_text().splitlines()
  assert len(table) == 2 + len(runs)
  assert len({line.count("|") for line in table}) == 1
  page = (folder / "compare.html").read_text()
  for name in runs:
    assert f">{name}</th>" in page
  assert "“leaky” leaks more" in page


@pytest.mark.slow
def test_audits_of_the_same_records_are_compared_record_by_record(compared, runs):
  (row,) = compared[1]["differences"]
  assert (row["first"], row["second"]) == ("leaky", "defended")
  with (
    np.load(runs["leaky"] / "scores.npz") as first,
    np.load(runs["defended"] / "scores.npz") as second,
  ):
    sides = [(part[row["attack"]], part["keep"]) for part in (first, second)]
  expected = paired_bootstrap(*sides, seed=0)["auc"]
  assert (row["auc_difference"], *row["ci"]) == (
    expected["difference"],
    *expected["ci"],
  )
  low, high = row["ci"]
  assert 0 < low < row["auc_difference"] < high


@pytest.mark.slow
def test_audits_of_other_records_are_said_not_to_be_comparable(compared, capsys):
  compare.show(compared[1])
  lines = capsys.readouterr().out.splitlines()
  apart = [line for line in lines if "no paired difference" in line]
  assert [line.split(":")[0] for line in apart] == ["others", "relabelled"]
  assert sum(": AUC of leaky minus defended +" in line for line in lines) == 1
  assert compared[1]["report"] == "compare.html"  # inside the run folder


@pytest.mark.slow
def test_an_attack_that_one_audit_lacks_is_not_compared(runs, tmp_path):
  settings = audit.AuditSettings(
    arrays=str(runs["leaky"] / "leaky.npz"), attacks="gap, entropy"
  )
  job.execute(settings, tmp_path / "weak", audit.run)
  result = job.execute(
    joined(runs["leaky"], tmp_path / "weak"), tmp_path / "run", compare.run
  )
  assert result["differences"] == []
  assert len(result["rows"]) == 2


@pytest.mark.parametrize("audits", ["", "runs/a", "a,", "x/a,y/a", "a,b,a/"])
def test_two_audits_of_different_names_are_needed(audits):
  with pytest.raises(ValueError, match="pass at least two run folders") as raised:
    CompareSettings(audits=audits)
  assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_folder_without_an_audit_is_named(runs, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"nowhere.* run mixdef audit"):
    job.execute(joined(runs["leaky"], "nowhere"), tmp_path / "run", compare.run)
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(FileNotFoundError, match=r"empty/report.json is missing"):
    job.execute(joined(runs["leaky"], empty), tmp_path / "run", compare.run)
  (empty / "report.json").write_text((runs["leaky"] / "report.json").read_text())
  with pytest.raises(FileNotFoundError, match=r"empty/scores.npz is missing"):
    job.execute(joined(runs["leaky"], empty), tmp_path / "run", compare.run)
  (empty / "report.json").write_text('{"schema": 99}')
  with pytest.raises(ValueError, match="is not a report of schema 1; audit again"):
    job.execute(joined(runs["leaky"], empty), tmp_path / "run", compare.run)


def test_the_default_folder_is_called_after_the_audits():
  folder = CompareSettings(audits="runs/none,runs/relaxloss").folder("compare")
  assert str(folder).startswith("runs/compare-none-relaxloss-")
  other = CompareSettings(audits="runs/none,runs/mixup")
  assert other.folder("compare") != folder


def test_every_flag_has_a_help_text():
  names = {field.name for field in dataclasses.fields(CompareSettings)}
  assert names <= set(FLAGS)

"""Verification of a report against outputs, scores and code."""

import json

import numpy as np
import pytest

import mixdef
from mixdef.cli.__main__ import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("verify")
  arrays = {}
  for side in ("member", "holdout"):
    arrays[f"{side}_logits"] = rng.normal(size=(60, 3))
    arrays[f"{side}_labels"] = rng.integers(3, size=60)
  np.savez(folder / "outputs.npz", **arrays)
  found = mixdef.audit_release(folder / "outputs.npz", attacks="loss_threshold")
  found.save(folder)
  arrays["member_logits"][0, 0] += 1
  np.savez(folder / "others.npz", **arrays)
  return folder


def run(capsys, *argv):
  status = 0
  try:
    main(["verify", *map(str, argv)])
  except SystemExit as ended:
    status = ended.code
  printed = capsys.readouterr()
  return status, (printed.out + printed.err).splitlines()


def test_a_report_agrees_with_its_own_model(saved, capsys):
  report = saved / "report.json"
  status, lines = run(capsys, report, f"--arrays={saved / 'outputs.npz'}")
  assert status == 0
  assert lines == [
    f"verify: {name} agree" for name in ("code", "scores", "outputs", "membership")
  ]
  assert run(capsys, report)[0] == 0


def test_another_model_differs(saved, capsys):
  report = saved / "report.json"
  status, lines = run(capsys, report, f"--arrays={saved / 'others.npz'}")
  assert status == 1
  assert "verify: outputs DIFFER" in lines
  assert "verify: membership agree" in lines


def test_scores_that_were_changed_differ(saved, capsys, tmp_path):
  (tmp_path / "report.json").write_text((saved / "report.json").read_text())
  np.savez(tmp_path / "scores.npz", loss_threshold=np.zeros(3))
  status, lines = run(capsys, tmp_path / "report.json")
  assert status == 1
  assert "verify: scores DIFFER" in lines


def test_mistakes_are_one_line(saved, capsys, tmp_path):
  (tmp_path / "report.json").write_text(json.dumps({"kind": "audit"}))
  status, lines = run(capsys, tmp_path / "report.json")
  assert status == 2
  assert "has no digests: pass the report.json of mixdef release" in lines[0]
  (tmp_path / "report.json").write_text(json.dumps({"made_from": []}))
  assert run(capsys, tmp_path / "report.json")[0] == 2
  assert run(capsys)[0] == 2

"""The gate: what passes, what fails, with which status and line."""

import json

import pytest

from mixdef.cli import gate
from mixdef.cli.__main__ import main


def rate(value, ci, resolvable=True):
  return {"value": value, "ci": ci, "resolvable": resolvable}


def report(**changes):
  counts = {"prior": 0.1, "shown": {"0.95": 0}, "possible": {"0.95": 12}}
  return {
    "kind": "release",
    "unit": "record",
    "prior": 0.1,
    "priors": [counts],
    "verdict": {"level": "low"},
    "attacks": {"rmia": {"tpr": {"0.001": rate(0.02, [0.008, 0.03])}}},
    **changes,
  }


def run(tmp_path, capsys, content, *argv):
  path = tmp_path / "report.json"
  path.write_text(json.dumps(content))
  status = 0
  try:
    main(["gate", str(path), *argv])
  except SystemExit as ended:
    status = ended.code
  printed = capsys.readouterr()
  return status, (printed.out + printed.err).strip()


def test_limits_that_hold_pass(tmp_path, capsys):
  argv = ("--max_tpr=0.01@0.001", "--max_named=0")
  assert run(tmp_path, capsys, report(), *argv) == (0, "gate: within the limits")


def test_each_limit_that_is_exceeded_is_a_line(tmp_path, capsys):
  counts = {"prior": 0.1, "shown": {"0.95": 3}, "possible": {"0.95": 12}}
  found = report(priors=[counts])
  status, text = run(tmp_path, capsys, found, "--max_tpr=0.005@0.001", "--max_named=2")
  assert status == 1
  assert text.splitlines() == [
    "gate: rmia: TPR 0.02 at FPR 0.001, at least 0.008",
    "gate: 3 records can be named, with 19 of 20 names right",
  ]


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    ("--max_tpr=0.01@0.001", "rmia: TPR at FPR 0.001 may be up to 0.03"),
    ("--max_named=11", "up to 12 records cannot be excluded"),
  ],
)
def test_strict_fails_on_what_cannot_be_excluded(tmp_path, capsys, argv, says):
  assert run(tmp_path, capsys, report(), argv)[0] == 0
  assert run(tmp_path, capsys, report(), argv, "--strict") == (1, f"gate: {says}")


def test_a_short_hold_out_fails_only_strictly(tmp_path, capsys):
  attacks = {"rmia": {"tpr": {"0.001": rate(0.9, [0.8, 1.0], resolvable=False)}}}
  short = report(attacks=attacks)
  assert run(tmp_path, capsys, short, "--max_tpr=0.01@0.001")[0] == 0
  status, text = run(tmp_path, capsys, short, "--max_tpr=0.01@0.001", "--strict")
  assert status == 1
  assert "too short" in text


def test_a_confounded_audit_never_passes(tmp_path, capsys):
  found = report(verdict={"level": "confounded"})
  assert run(tmp_path, capsys, found, "--max_named=5")[0] == 1


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    ([], "pass a limit"),
    (["--max_tpr=1%"], "pass TPR@FPR, as 0.01@0.001"),
    (["--max_tpr=0.1@0.3"], "no TPR at an FPR of 0.3; it has 0.001"),
    (["--max_name=0"], "did you mean --max_named"),
  ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, argv, says):
  status, text = run(tmp_path, capsys, report(), *argv)
  assert status == 2
  assert says in text
  assert "\n" not in text


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"verdict": None}, "verdict is None"),
    ({"attacks": []}, "attacks is []"),
    ({"attacks": {}}, "the report has no attacks"),
    ({"attacks": {"rmia": None}}, "attacks.rmia is None"),
    ({"attacks": {"rmia": {"tpr": {"0.001": {}}}}}, "attacks.rmia.tpr.0.001 has no"),
    ({"prior": "0.1"}, "prior is '0.1'"),
    ({"priors": []}, "no counts at its prior"),
    ({"priors": [{"prior": 0.1}]}, "priors[0] has no 'shown'"),
  ],
)
def test_a_damaged_report_never_passes(tmp_path, capsys, changes, says):
  argv = ("--max_tpr=0.9@0.001", "--max_named=99")
  status, text = run(tmp_path, capsys, report(**changes), *argv)
  assert status == 2
  assert says in text
  assert "pass the report.json of mixdef release" in text
  assert "\n" not in text


def test_a_report_of_the_recipe_names_nobody(tmp_path, capsys):
  status, text = run(tmp_path, capsys, report(kind="audit"), "--max_named=0")
  assert (status, text) == (2, "gate: --max_named needs a report of mixdef release")
  assert gate.TEXT.splitlines()[0] in gate.__doc__


def test_a_contradicted_epsilon_fails_whatever_the_limits(tmp_path, capsys):
  found = report(verdict={"level": "low", "alarm": "rmia names too many"})
  status, text = run(tmp_path, capsys, found, "--max_named=100")
  assert status == 1
  assert text == "gate: the stated epsilon is contradicted: rmia names too many"


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"attacks": {}}, "the report has no attacks"),
    ({"attacks": []}, "the report.attacks is [], not dict"),
    ({"attacks": {"rmia": 3}}, "rmia is 3, not dict"),
    (
      {"attacks": {"rmia": {"tpr": {"0.001": {}}}}},
      "attacks.rmia.tpr.0.001 has no 'value'",
    ),
    ({"verdict": 3}, "the report.verdict is 3, not dict"),
    ({"priors": []}, "the report has no counts at its prior"),
    ({"priors": 3}, "the report.priors is 3, not list"),
    ({"priors": [{"prior": 0.1, "shown": {}}]}, "has no '0.95'"),
  ],
)
def test_a_report_that_was_changed_is_one_line_and_never_passes(
  tmp_path, capsys, changes, says
):
  argv = ("--max_tpr=0.01@0.001", "--max_named=0")
  status, text = run(tmp_path, capsys, report(**changes), *argv)
  assert status == 2
  assert says in text
  assert len(text.splitlines()) == 1

"""The jobs as a user starts them. All processes run at once: starting is what costs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
MISTAKES = {
  "--defense=mixupp": "no defense is called 'mixupp'; did you mean mixup",
  "--dataset=mnist": "train-images-idx3-ubyte",
}
GOOD = (
  *("--protocol=adamixup", "--dataset=digits", "--train_size=200"),
  *("--model=mlp(8)", "--epochs=1", "--out=run"),
)


def start(folder, *flags):
  bare = {name: value for name, value in os.environ.items() if name != "MIXDEF_DATA"}
  return subprocess.Popen(
    [sys.executable, EXPERIMENTS / "train.py", *flags],
    cwd=folder,
    env={**bare, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  folder = tmp_path_factory.mktemp("jobs")
  started = {flag: start(folder, flag) for flag in MISTAKES}
  started["good"] = start(folder, *GOOD)
  done = {}
  for name, process in started.items():
    out, errors = process.communicate(timeout=300)
    done[name] = process.returncode, out, errors
  return folder, done


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_is_one_line_that_says_how_to_fix_it(outcomes, flag):
  status, _, errors = outcomes[1][flag]
  assert status == 2, errors
  assert "Traceback" not in errors
  ours = [line for line in errors.splitlines() if line.startswith("train: ")]
  assert ours == errors.splitlines()[-1:]
  assert MISTAKES[flag] in ours[0]


def test_a_flag_beside_a_protocol_wins(outcomes):
  folder, done = outcomes
  status, out, errors = done["good"]
  assert status == 0, errors
  assert "test_accuracy" in out
  config = json.loads((folder / "run" / "config.json").read_text())
  assert config["train_size"] == 200
  assert config["model"] == "mlp(8)"
  assert config["standardize"] is True
  assert errors.splitlines()[-1].endswith("run/result.json")

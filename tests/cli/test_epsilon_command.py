"""The command that accounts for DP-SGD without training."""

import re

import pytest

from mixdef.cli import __main__ as command
from mixdef.defenses import accounting

SIZE = ["--num_members=60000", "--batch_size=256", "--epochs=60"]


def answer(capsys, *argv):
  command.main(["epsilon", *argv])
  return capsys.readouterr().out


def test_epsilon_of_a_noise(capsys):
  said = answer(capsys, "--num_members=1000", "--epochs=2", "--noise_multiplier=2.0",
                "--delta=1e-4")  # fmt: skip
  found = accounting.spent(2.0, sampling_probability=0.128, steps=16, delta=1e-4)
  assert f"epsilon {found.epsilon:.4g} at delta 0.0001" in said
  assert f"Renyi {found.rdp:.4g}" in said
  assert "tuned on the same records are not covered" in said


def test_epsilon_of_the_best_of_several_trainings(capsys):
  said = answer(capsys, "--num_members=1000", "--epochs=2", "--noise_multiplier=2.0",
                "--delta=1e-4", "--tuned=logarithmic:5")  # fmt: skip
  assert "(Renyi) of the best of K such trainings, K logarithmic with mean 5" in said
  one, best = (float(found) for found in re.findall(r"^epsilon ([\d.]+)", said, re.M))
  assert one < best < 3 * one


@pytest.mark.slow
def test_noise_of_a_budget(capsys):
  assert "noise multiplier 1.22" in answer(capsys, *SIZE, "--epsilon=2")
  risk = re.search(
    r"([\d.]+)% at an FPR of 1%", answer(capsys, *SIZE, "--max_tpr=0.05@0.01")
  )
  assert 4.9 < float(risk[1]) <= 5


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--epochs=1", "--epsilon=1"], "--num_members=NUMBER"),
    ([], "--num_members=NUMBER"),
    (["--num_members=9", "--epochs=1"], "pass one of --noise_multiplier"),
    ([*SIZE, "--epsilon=1", "--max_tpr=0.1@0.01"], "pass one of"),
    ([*SIZE, "--epsilon=1", "--delta=0.1"], "less than 1/num_members, 1.7e-05"),
    ([*SIZE, "--epsilon=1", "--tuned=10"], "--tuned=10: pass LAW:MEAN"),
    ([*SIZE, "--epsilon=1", "--tuned=geometric:0"], "pass LAW:MEAN, as geometric:10"),
    ([*SIZE, "--max_tpr=5%"], "pass TPR@FPR"),
    ([*SIZE, "--max_tpr=0.01@0.05"], "0 < at_fpr < max_tpr < 1"),
  ],
)
def test_wrong_questions_are_refused_in_one_line(capsys, argv, message):
  with pytest.raises(SystemExit) as exit_:
    command.main(["epsilon", *argv])
  assert exit_.value.code == 2
  line = capsys.readouterr().err
  assert message in line
  assert line.count("\n") == 1

"""Audits of a model that is given by its parameters and its records in files."""

import json

import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli import __main__ as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the weights of a model, its training records, and a hold-out."""
  place = tmp_path_factory.mktemp("theirs")
  data = mixdef.load("digits").hold_out(0.5, seed=0)
  learner = mixdef.classifier(mixdef.models.mlp(8), optax.adam(1e-2))
  run = mixdef.fit(learner, data, epochs=3)
  mixdef.models.save_weights(place / "weights.npz", run.state.params)
  np.savez(place / "train.npz", x=data.x, y=data.y)
  np.savez(place / "test.npz", x=data.test.x, y=data.test.y)
  np.savez(place / "log_probs.npz", log_probs=run.log_probs(data.x))
  return place


def release(folder, *more, name="release"):
  files = [f"--params={folder}/weights.npz", f"--dataset={folder}/train.npz"]
  command.main([name, *files, "--model=mlp(8)", *more])


@pytest.mark.slow
def test_parameters_are_the_model_that_was_trained(folder):
  predict = mixdef.models.predictor(mixdef.models.mlp(8), folder / "weights.npz")
  x = np.load(folder / "train.npz")["x"]
  expected = np.load(folder / "log_probs.npz")["log_probs"]
  logits = np.asarray(predict(x))
  found = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_model_in_files_is_audited_and_verified(folder, tmp_path, capsys):
  out, test = f"--out={tmp_path}/audit", f"--test={folder}/test.npz"
  release(folder, out, test, "--attacks=loss_threshold")
  report = json.loads((tmp_path / "audit" / "report.json").read_text())
  assert report["setting"]["members"] == 899
  assert report["setting"]["holdout"] == 898
  assert report["setting"]["model"].startswith("mlp(8)")
  capsys.readouterr()
  command.main(
    ["verify", f"{tmp_path}/audit/report.json", f"--params={folder}/weights.npz",
     f"--dataset={folder}/train.npz", test, "--model=mlp(8)"]
  )  # fmt: skip
  assert "outputs agree" in capsys.readouterr().out


@pytest.mark.slow
def test_reference_models_are_trained_by_the_recipe_of_the_flags(folder, tmp_path):
  more = ["--budget=shadows:4", "--epochs=3", "--learning_rate=0.01"]
  more += ["--attacks=lira_offline", "--strategy=vmap"]
  release(folder, f"--out={tmp_path}/audit", f"--test={folder}/test.npz", *more)
  report = json.loads((tmp_path / "audit" / "report.json").read_text())
  assert report["price"]["models"] == 4
  assert report["price"]["released_epochs"] == 3


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ([], "train has no test records"),
    (["--run=runs/mine"], "pass one of --run=FOLDER"),
    (["--model=mlp(9)", "--test=0.5"], "Dense_0/kernel [64, 8] instead of [64, 9]"),
    (["--dataset="], "--params needs --dataset"),
  ],
)
def test_what_is_missing_is_one_line(folder, tmp_path, more, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    release(folder, f"--out={tmp_path}/audit", *more)
  assert exit_.value.code == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert message in line

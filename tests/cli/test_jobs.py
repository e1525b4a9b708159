import dataclasses
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdef import attacks
from mixdef.cli import job, lira, sweep, train
from mixdef.cli.flags import FLAGS
from mixdef.cli.papers import CLASSIFIERS
from mixdef.cli.settings import Settings
from mixdef.core.hooks import Data
from mixdef.data import Dataset
from mixdef.training.sampling import make_plan

RUN = [
  a.__name__
  for kind in ("threshold", "reference")
  for a in attacks.ATTACKS.families[kind]
]
SMALL = {"model": "mlp(8)", "epochs": 2, "learning_rate": 0.01, "quick": True}


def strict_json(path):
  """Read JSON and refuse NaN and infinities, which other readers do not know."""

  def refuse(word):
    raise AssertionError(f"{path.name} holds {word}")

  return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("train") / "run"
  settings = Settings(**SMALL, defense="label_smoothing(0.1)")
  return settings, folder, job.execute(settings, folder, train.run)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lira") / "run"
  options = {**SMALL, "num_shadows": 4, "strategy": "loop", "auxiliary": 20}
  settings = lira.LiraSettings(**options)
  return folder, job.execute(settings, folder, lira.run)


@pytest.mark.slow
def test_train_writes_the_contract(trained):
  _, folder, returned = trained
  result = strict_json(folder / "result.json")
  assert result == returned
  assert {
    *("train_accuracy", "test_accuracy", "gap_attack", "epsilon", "defense"),
    *("dataset", "seconds"),
  } <= set(result)
  train_accuracy, test_accuracy = result["train_accuracy"], result["test_accuracy"]
  assert result["gap_attack"] == 0.5 + (train_accuracy - test_accuracy) / 2
  assert 0 <= test_accuracy <= 1
  assert result["epsilon"] is None
  assert result["dataset"] == "digits"
  assert result["defense"] == "label_smoothing"
  assert (result["num_train"], result["num_test"]) == (300, 359)


@pytest.mark.slow
def test_train_writes_one_line_an_epoch_and_its_settings(trained):
  settings, folder, _ = trained
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["epoch"] for row in rows] == [0, 1]
  assert all({"loss", "accuracy", "seconds"} <= set(row) for row in rows)
  config = strict_json(folder / "config.json")
  assert config["defense"] == settings.defense
  assert config["seed"] == 0
  assert {"versions", "devices", "commit"} <= set(config["environment"])
  assert "jax" in config["environment"]["versions"]


def test_a_finished_job_returns_its_result(trained):
  settings, folder, result = trained
  moved = Settings(**{**settings.__dict__, "out": "elsewhere", "data_dir": "/data"})

  def never(*_):
    raise AssertionError

  assert job.execute(moved, folder, never) == result


@pytest.mark.parametrize(
  ("field", "value"),
  [("seed", 3), ("defense", "none"), ("epochs", 5), ("quick", False), ("auxiliary", 9)],
)
def test_pitfall_86_a_changed_setting_is_refused(trained, field, value):
  settings, folder, _ = trained
  changed = Settings(**{**settings.__dict__, field: value})
  with pytest.raises(ValueError, match=f"{field} was .*, now {value!r}") as raised:
    job.execute(changed, folder, train.run)
  assert "Choose another --out" in str(raised.value)


@pytest.mark.slow
def test_a_stopped_job_resumes(tmp_path, trained, monkeypatch):
  settings, _, result = trained

  def stop(self, units, **metrics):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr("mixdef.training.progress.Progress.advance", stop)
    with pytest.raises(KeyboardInterrupt):
      job.execute(settings, tmp_path, train.run)
  assert not (tmp_path / "result.json").exists()
  resumed = job.execute(settings, tmp_path, train.run)
  assert {**resumed, "seconds": 0} == {**result, "seconds": 0}


@pytest.mark.slow
def test_lira_writes_the_contract(attacked):
  folder, returned = attacked
  result = strict_json(folder / "result.json")
  assert result == returned
  assert set(result["attacks"]) | set(result["not_run"]) == set(RUN)
  assert set(result["not_run"]) == {"rmia", "attack_p", "quantile"}  # no population
  for metrics in result["attacks"].values():
    assert {"auc", "auc_ci", "balanced_accuracy", "tpr"} <= set(metrics)
    assert {"value", "ci", "resolvable"} <= set(metrics["tpr"]["0.001"])
    low, high = metrics["auc_ci"]
    assert low <= metrics["auc"] <= high
  assert result["num_shadows"] == 4
  assert result["strategy"] == "loop"
  assert result["shadows_per_minute"] > 0
  assert result["epsilon"] is None
  assert {"train_accuracy", "test_accuracy", "defense", "dataset"} <= set(result)


def test_lira_writes_its_scores_and_a_figure(attacked):
  folder, result = attacked
  with np.load(folder / "scores.npz") as scores:
    assert set(scores) == {"ids", "labels", "keep", *result["attacks"]}
    assert len(set(scores["ids"])) == 620
    members = scores["keep"]
    assert members.shape == (4, 620)
    assert members.dtype == bool
    hidden = np.isnan(scores["lira_global"])
    assert {scores[name].shape for name in result["attacks"]} == {members.shape}
    count = result["attacks"]["lira_global"]["num_members"]
  # The defender's own 20 records are in no model and are not scored.
  assert (hidden == hidden[0]).all()
  assert hidden[0].sum() == 20
  assert not members[:, hidden[0]].any()
  assert count == members.sum()
  assert (folder / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_lira_prints_a_row_an_attack(attacked, capsys):
  lira.show(attacked[1])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 + len(RUN)
  assert lines[0].startswith("digits, 4 shadows, none")
  assert "lira_online" in "".join(lines)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_protocol_builds(name):
  settings = Settings(**CLASSIFIERS[name], quick=True)
  x = np.random.default_rng(0).integers(256, size=(6, 28, 28, 1)).astype(np.uint8)
  data = Dataset.from_arrays(x, [0, 1, 2, 0, 1, 2])
  learner, members = settings.make_learner(data), np.ones((1, 6), bool)
  plan = make_plan(learner.traits, data, members, epochs=1, batch_size=6)
  spec = plan.spec(Data(*map(jnp.asarray, (x, data.y, data.auxiliary))), None)
  state = jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))
  assert jax.eval_shape(learner.predict, state, x).shape == (6, 3)


def test_the_default_folder_follows_from_the_settings():
  folder = Settings(defense="adamixup|l2(1e-4)").folder("train")
  assert str(folder).startswith("runs/train-digits-adamixup-weight_decay-coef")
  assert folder == Settings(defense="adamixup|l2(1e-4)").folder("train")
  assert folder != Settings(defense="adamixup|l2(1e-4)", seed=1).folder("train")
  assert str(Settings(out="here").folder("train")) == "here"


def test_the_records_are_drawn_by_the_seed():
  few = Settings(train_size=50)
  data = few.load()
  assert len(few.subsample(data, halves=1)) == 50
  half = few.subsample(data, halves=2)
  assert len(half) == 100
  np.testing.assert_array_equal(half.x, few.subsample(data, halves=2).x)
  other = Settings(train_size=50, seed=1).subsample(data, halves=2)
  assert not np.array_equal(half.x, other.x)
  with pytest.raises(ValueError, match="digits has 1797 records; --train_size=1000"):
    Settings(train_size=1000).subsample(data, halves=2)
  with_own = Settings(train_size=50, auxiliary=7).subsample(data, halves=2)
  assert (len(with_own), with_own.auxiliary.sum()) == (107, 7)
  scaled = Settings(train_size=50, standardize=True).subsample(data, halves=1)
  np.testing.assert_allclose(scaled.x.mean(0), 0, atol=1e-6)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"learning_rate": 0.0}, "--learning_rate=0.0 must be positive"),
    ({"learning_rate": float("nan")}, "--learning_rate=nan must be positive"),
    ({"model": "mpl"}, "there is no model 'mpl'; did you mean mlp"),
    ({"model": "mlp(width=3)"}, "mlp.*width"),
    ({"optimizer": "sgdd"}, "there is no optimizer 'sgdd'; did you mean sgd"),
    ({"defense": "mixup("}, "cannot read 'mixup\\('"),
    ({"defense": "mixup|mixup"}, "two parts of the chain are called 'mixup'"),
    ({"defense": "label_smoothing(x)"}, "'x' is not a literal"),
    ({"model": "mlp, mlp(8)"}, "a classifier accepts one network"),
    ({"learner": "staking"}, "there is no learner 'staking'"),
    (
      {"learner": "model_stacking", "defense": "mixup"},
      "does not accept a defense: remove mixup",
    ),
    ({"learner": "model_stacking"}, "model_stacking.* two"),
    ({"learner": "ban_mpr(3)"}, "ban_mpr"),
  ],
)
def test_mistakes_in_the_settings_are_one_line(wrong, message):
  settings = Settings(train_size=20)
  with pytest.raises(ValueError, match=message) as raised:
    Settings(**{**settings.__dict__, **wrong}).make_learner(settings.load())
  assert "\n" not in str(raised.value)


def test_a_learner_of_its_own_is_named_on_the_command_line():
  stacked = Settings(learner="model_stacking", model="mlp(8), mlp(4)")
  assert stacked.defended_by == "model_stacking"
  assert "model_stacking" in stacked.subject
  assert "model_stacking" in stacked.make_learner(stacked.load()).text
  chained = Settings(learner="ban_mpr(students=2, experimental=True)")
  assert "ban_mpr" in chained.make_learner(chained.load()).text


def test_every_flag_has_a_help_text():
  for kind in (Settings, lira.LiraSettings, sweep.SweepSettings):
    names = {field.name for field in dataclasses.fields(kind)}
    assert names <= set(FLAGS)


@pytest.mark.slow
def test_a_command_that_trained_nothing_leaves_its_folder_to_the_next(tmp_path):
  wrong = Settings(**SMALL, dataset="mnist", data_dir=str(tmp_path / "nothing"))
  with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
    job.execute(wrong, tmp_path / "run", train.run)
  job.execute(Settings(**SMALL), tmp_path / "run", train.run)


def test_clutter_of_a_desktop_does_not_take_a_folder(tmp_path):
  (tmp_path / ".DS_Store").write_bytes(b"\0")
  wrong = Settings(**SMALL, dataset="mnist", data_dir=str(tmp_path / "nothing"))
  with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
    job.execute(wrong, tmp_path, train.run)
  assert not (tmp_path / "config.json").exists()


def test_standardized_inputs_void_a_guarantee():
  with pytest.raises(ValueError, match="--standardize computes means"):
    Settings(standardize=True, defense="dp_sgd")
  Settings(standardize=True, defense="dp_sgd(guarantee=False)")


@pytest.mark.slow
def test_run_folders_name_no_place_of_the_machine(tmp_path):
  options = {**SMALL, "out": str(tmp_path / "run"), "data_dir": str(tmp_path)}
  settings = Settings(**options)
  job.execute(settings, settings.folder("train"), train.run)
  for path in (tmp_path / "run").glob("*.json"):
    text = path.read_text()
    assert str(tmp_path) not in text, path
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), path


@pytest.mark.parametrize(
  "given",
  [
    "--audits=/home/someone/runs/none,runs/relaxloss/",
    "--out=~/my runs/x",
    "--defense=mixup(0.5)|dp_sgd(1.0, delta=1e-5)",
    "--model='my_module:net(\"a\")'",
    "--learning_rate=0.1",
  ],
)
def test_a_shell_reads_the_shown_command_as_it_was_given(monkeypatch, given):
  monkeypatch.setattr("sys.argv", ["/somewhere/bin/mixdef", "audit", given])
  shown = job.provenance(0)["command"]
  script = f'mixdef() {{ printf "%s\\n" "$@"; }}; {shown}'
  read = subprocess.run(
    ["sh", "-c", script], capture_output=True, text=True, check=True
  )
  assert read.stdout.splitlines() == ["audit", given]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_of_another_project_is_not_stated(monkeypatch, tmp_path):
  elsewhere = tmp_path / "job.py"
  elsewhere.touch()
  subprocess.run(["git", "init", "-q", tmp_path], check=True)
  monkeypatch.setattr(job, "__file__", str(elsewhere))
  assert job.environment()["commit"] == ""


@pytest.mark.parametrize(
  ("program", "shown"),
  [
    (["experiments/audit.py"], "python experiments/audit.py"),
    ([r"mixdef.exe", "audit"], "mixdef audit"),
    (["/somewhere/mixdef/cli/__main__.py", "audit"], "python -m mixdef.cli audit"),
  ],
)
def test_the_command_is_shown_as_it_was_typed(monkeypatch, program, shown):
  monkeypatch.setattr("sys.argv", [*program, "--quick"])
  assert job.provenance(0)["command"] == f"{shown} --quick"


def test_places_may_start_at_home(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  settings = Settings(out="~/run", data_dir="~/data")
  assert settings.folder("train") == tmp_path / "run"
  assert settings.data_dir == str(tmp_path / "data")


@pytest.mark.slow
def test_a_model_that_diverged_is_told(tmp_path):
  settings = Settings(**{**SMALL, "learning_rate": 1e30})
  result = job.execute(settings, tmp_path, train.run)
  assert result["diverged"] is True
  assert strict_json(tmp_path / "result.json")["diverged"] is True


def test_a_model_that_did_not_diverge_says_so(trained):
  assert trained[2]["diverged"] is False


def test_stages_are_counted(caplog):
  caplog.set_level("INFO", logger="absl")
  stages = job.Stages("shadows", "canaries", "attacks")
  stages.begin("shadows")
  stages.begin("attacks")
  lines = [record.getMessage() for record in caplog.records]
  assert lines == ["stage 1 of 3: shadows", "stage 3 of 3: attacks"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_job_with_one_line(tmp_path, number, status):
  command = [sys.executable, "-m", "mixdef.cli", "train"]
  command += ["--epochs=1000000", f"--out={tmp_path}"]
  started = 0
  for _ in range(2):  # the second run resumes from the checkpoint of the first
    (tmp_path / "metrics" / "models-00000-1.jsonl").unlink(missing_ok=True)
    # A process started in the background ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
      while not (tmp_path / "metrics" / "models-00000-1.jsonl").exists():
        time.sleep(0.1)
      running.send_signal(getattr(signal, number))
      _, errors = running.communicate(timeout=60)
    finally:
      running.kill()
    assert running.returncode == status
    *lines, told, last = errors.splitlines()
    assert last == "train: stopped; the same command resumes"
    assert "Traceback" not in errors
    (epoch,) = re.findall(
      r"^wrote a checkpoint of models 0 to 0 after epoch (\d+) of 1000000$", told
    )
    if started:
      assert f"resuming models 0 to 0 after epoch {started} of 1000000" in lines
    assert int(epoch) > started
    started = int(epoch)


@pytest.mark.slow
def test_the_seed_of_the_noise_is_drawn_unless_it_is_given(tmp_path):
  private = {**SMALL, "epochs": 1, "defense": "dp_sgd(1.0)"}
  drawn = job.execute(Settings(**private), tmp_path / "drawn", train.run)
  one, other = (
    job.execute(Settings(**private, noise_seed=3), tmp_path / name, train.run)
    for name in ("one", "other")
  )
  assert drawn["noise_seed"] == "drawn from the operating system"
  assert one["noise_seed"] == "given"
  assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_page_is_named_where_it_lies(tmp_path, capsys):
  paged = train.JOB._replace(run=lambda *_: {"report": "page.html"}, show=id)
  job.main(paged, [f"--out={tmp_path / 'run'}"])
  assert capsys.readouterr().out == f"report: {tmp_path / 'run' / 'page.html'}\n"


def test_a_diverged_model_ends_the_job_with_status_2(tmp_path, capsys):
  diverged = train.JOB._replace(run=lambda *_: {"diverged": True}, show=id)
  with pytest.raises(SystemExit) as ended:
    job.main(diverged, [f"--out={tmp_path / 'run'}"])
  assert ended.value.code == 2
  message = "train: the model diverged: reduce --learning_rate\n"
  assert capsys.readouterr().err.endswith(message)

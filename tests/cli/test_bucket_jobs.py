"""Jobs whose run folder and data lie on a bucket."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest

from mixdef.auditing import compare_audits
from mixdef.cli import audit, job, lira, sweep, train
from mixdef.core import files, reading
from mixdef.core.files import path_of

SMALL = ["--model=mlp(8)", "--epochs=2", "--quick", "--learning_rate=0.01"]
SHADOWS = [
  *SMALL,
  "--batch_size=32",
  "--num_shadows=4",
  "--strategy=loop",
  "--train_size=60",
]
ATTACKS = "--attacks=loss_threshold,lira_online_fixed"


@pytest.fixture
def memory():
  """Return a folder of a bucket in memory."""
  return path_of(f"memory://{uuid.uuid4().hex}")


def result(folder):
  return timeless(reading.read_json(folder / "result.json", fix=""))


def timeless(found):
  if not isinstance(found, dict):
    return found
  return {
    name: timeless(value)
    for name, value in found.items()
    if name not in ("seconds", "shadows_per_minute")
  }


@pytest.mark.slow
def test_train_on_a_bucket_gives_the_result_of_a_local_folder(
  memory, tmp_path, monkeypatch, capsys, caplog
):
  monkeypatch.chdir(tmp_path)
  for out in (memory / "run", tmp_path / "run"):
    job.main(train.JOB, [*SMALL, f"--out={out}"])
  assert result(memory / "run") == result(tmp_path / "run")
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
  caplog.clear()
  job.main(train.JOB, [*SMALL, f"--out={memory / 'run'}"])
  assert any("finished before; delete memory://" in line for line in caplog.messages)
  with pytest.raises(SystemExit) as ended:
    job.main(train.JOB, [*SMALL, "--seed=1", f"--out={memory / 'run'}"])
  assert ended.value.code == 2
  assert "belongs to another run: seed was 0, now 1" in capsys.readouterr().err
  config = reading.read_json(memory / "run" / "config.json", fix="")
  assert config["environment"]["out"] == "run"


def test_a_protocol_that_is_unknown_is_one_line(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for flag in ("--out=foo://bucket/run", "--data_dir=foo://bucket/data"):
    with pytest.raises(SystemExit) as ended:
      job.main(train.JOB, [flag])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"train: {flag.split('=')[0]}='foo://bucket/")
    assert told.count("\n") == 1
  assert not list(tmp_path.iterdir())


class EndpointConnectionError(Exception):
  """Stands for an error of a driver, raised by a request that no reader wraps."""

  __module__ = "botocore.exceptions"


def test_a_bucket_that_is_lost_is_one_line(memory, capsys):
  def lost(*_):
    raise EndpointConnectionError("no network")

  with pytest.raises(SystemExit) as ended:
    job.main(train.JOB._replace(run=lost), [f"--out={memory / 'run'}"])
  assert ended.value.code == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last == "train: EndpointConnectionError: no network"
  assert not files.exists(memory / "run" / "config.json")


@pytest.mark.slow
def test_data_are_read_from_a_bucket(memory, small_table, tmp_path):
  local = path_of(small_table(60))
  with files.whole_file(memory / "data" / "location30.npz") as file:
    file.write(files.read_bytes(local / "location30.npz"))
  flags = ["--dataset=location30", "--model=mlp(8)", "--epochs=1", "--train_size=40"]
  found = []
  for place, out in ((memory / "data", "there"), (local, "here")):
    job.main(train.JOB, [*flags, f"--data_dir={place}", f"--out={tmp_path / out}"])
    found.append(result(tmp_path / out))
  assert found[0] == found[1]


def test_missing_data_on_a_bucket_are_one_line(memory, capsys, tmp_path):
  for name in ("location30", "mnist", "texas100", "adult"):
    flags = [f"--dataset={name}", f"--data_dir={memory}", f"--out={tmp_path / name}"]
    with pytest.raises(SystemExit):
      job.main(train.JOB, flags)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(memory) in told


@pytest.mark.slow
@pytest.mark.parametrize("made", [train.JOB, lira.JOB], ids=["train", "lira"])
def test_jobs_end_to_end_on_s3(bucket, tmp_path, made):
  flags = SMALL if made is train.JOB else SHADOWS
  for out in (bucket / "run", tmp_path / "run"):
    job.main(made, [*flags, f"--out={out}"])
  assert result(bucket / "run") == result(tmp_path / "run")
  if made is lira.JOB:
    arrays, expected = (
      reading.read_npz(folder / "run" / "scores.npz", fix="")
      for folder in (bucket, tmp_path)
    )
    assert set(arrays) == set(expected)
    for name in expected:
      np.testing.assert_array_equal(arrays[name], expected[name])
    assert files.read_bytes(bucket / "run" / "roc.png").startswith(b"\x89PNG")
  written = {path.name for path in files.listed(bucket / "run", "*")}
  assert written == {path.name for path in files.listed(tmp_path / "run", "*")}


@pytest.mark.slow
@pytest.mark.heavy
def test_audits_and_sweeps_on_a_bucket(memory):
  audits = {name: memory / name for name in ("none", "smoothed")}
  for name, out in audits.items():
    defense = "none" if name == "none" else "label_smoothing(0.2)"
    flags = [*SHADOWS, ATTACKS, f"--defense={defense}", "--canaries=none"]
    job.main(audit.JOB, [*flags, f"--out={out}"])
    assert files.read_bytes(out / "report.html").startswith(b"<!doctype html>")
    assert json.loads(files.read_bytes(out / "report.json"))["attacks"]
  assert len(compare_audits(audits).rows) == 2
  flags = [*SHADOWS, ATTACKS, f"--out={memory / 'sweep'}"]
  for defenses in ("none; relaxloss([0.5, 1.0])", "none; label_smoothing(0.2)"):
    job.main(sweep.JOB, [*flags, f"--defenses={defenses}"])
  cells = [cell["defense"] for cell in result(memory / "sweep")["cells"]]
  assert cells[:2] == ["none", "label_smoothing(epsilon=0.2)"]
  assert len(cells) == 4
  assert not files.listed(memory / "sweep", "cells/*/*/training-*/*")


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_on_a_bucket(bucket):
  out = bucket / "run"
  command = [sys.executable, "-m", "mixdef.cli", "train", "--epochs=1000000"]
  with subprocess.Popen(
    [*command, f"--out={out}"], stderr=subprocess.PIPE, text=True
  ) as running:
    while not files.listed(out, "metrics/*"):
      assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
  assert running.returncode == 143
  *_, told, last = errors.splitlines()
  assert told.startswith("wrote a checkpoint of models 0 to 0 after epoch ")
  assert last == "train: stopped; the same command resumes"
  (checkpoint,) = files.listed(out, "unfinished/*")
  assert checkpoint.stem.rpartition("-")[2] == told.split()[-3]
  # The lock was released.
  (lock,) = files.listed(out, "lock/*")
  assert files.read_bytes(lock) == b""


@pytest.mark.slow
def test_the_document_goes_from_a_network_and_a_table_to_a_report_on_a_bucket(bucket):
  document = pathlib.Path(__file__).parents[2] / "docs" / "bring_your_own.md"
  setting, example, *_ = re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
  space = {"__name__": "__main__"}
  own = example.replace('out = "runs/patients"', f'out = "{bucket}/patients"')
  assert own != example
  exec(compile(setting + own, str(document), "exec"), space)
  page = path_of(str(space["page"]))
  assert str(page).endswith("/patients/report.html")
  assert files.read_bytes(page).startswith(b"<!doctype html>")
  report = reading.read_json(bucket / "patients" / "report.json", fix="")
  assert report["setting"]["num_models"] == 8
  assert set(report["attacks"]) == {"loss_threshold", "lira_online_fixed", "rmia"}
  assert len(files.listed(bucket / "patients" / "shadows", "models/*")) == 8

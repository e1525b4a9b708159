"""A run folder on a bucket: what a kill leaves is whole, and is taken up."""

import functools
import json
import random
import signal
import subprocess
import sys
import time
import uuid

import apart
import numpy as np
import pytest
import upath
from test_devices import finish, free_port, pair
from training_cases import halves, same, train

from mixdef.core import files
from mixdef.core.files import path_of
from mixdef.training import lock as lock_module
from mixdef.training import loop as loop_module
from mixdef.training.progress import Progress
from mixdef.training.store import Store

KEEP = halves(3)
TASK = {"models": 4, "epochs": 20, "strategy": "loop", "at_once": 2}


@pytest.fixture
def folder():
  """Return a folder of a bucket in memory."""
  return path_of(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def quick_lock(monkeypatch):
  monkeypatch.setattr(lock_module, "_TIMEOUT", 2.0)
  monkeypatch.setattr(lock_module, "_POLL", 0.1)


def names(folder):
  return sorted(str(path)[len(str(folder)) + 1 :] for path in tree(folder))


def tree(folder):
  return [
    path for deep in ("*", "*/*") for path in files.listed(folder, deep) if path.suffix
  ]


def test_a_run_on_a_bucket_is_that_of_a_local_folder(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  options = {"members": KEEP, "signals": {}}
  local, there = tmp_path / "run", str(folder)
  first = train(out=there, **options)
  expected = train(out=local, **options)
  assert same(first.states, expected.states)
  found = names(folder)
  assert found == sorted(name for name in names(local) if name != "lock")
  assert sum(name.startswith("models/") for name in found) == 3
  assert sum(name.startswith("signals-") for name in found) == 3
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
  again = train(out=there, **options)
  assert same(again.states, expected.states)
  assert again.history == first.history
  np.testing.assert_array_equal(again.signals().phi, expected.signals().phi)


def test_a_killed_run_on_a_bucket_resumes(folder, monkeypatch):
  unbroken, epochs = train(members=KEEP), []

  class Killed(BaseException):
    pass

  def advance(self, units, **figures):
    epochs.append(units)
    if len(epochs) == 2:
      raise Killed

  monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", -1.0)
  with monkeypatch.context() as patch:
    patch.setattr(Progress, "advance", advance)
    with pytest.raises(Killed):
      train(members=KEEP, out=folder)
  checkpoint = "unfinished/models-00000-00002-epoch-1.npz"
  assert {checkpoint, "metrics/models-00000-3.jsonl"} <= set(names(folder))
  resumed = train(members=KEEP, out=folder)
  assert same(resumed.states, unbroken.states)
  assert [row["epoch"] for row in resumed.history] == [0, 1]
  assert {name.partition("/")[0] for name in names(folder)} == {
    *("models", "metrics.jsonl", "signature.json", "strategy.json")
  }


def test_damaged_entries_on_a_bucket_are_trained_again(folder, caplog):
  whole = train(members=KEEP, out=folder)
  path = folder / "models" / "00001.npz"
  content = files.read_bytes(path)
  with files.whole_file(path) as file:
    file.write(content[:300])
  assert same(train(members=KEEP, out=folder).states, whole.states)
  (told,) = {line for line in caplog.messages if "cannot be read" in line}
  assert "models/00001.npz" in told
  assert "created again" in told


def test_a_bucket_out_of_reach_costs_no_entry(folder, monkeypatch):
  train(members=KEEP, out=folder)
  before = names(folder)

  def fail(*_, **__):
    raise RuntimeError("no route to host")

  with monkeypatch.context() as patch:
    patch.setattr(folder.fs, "cat_file", fail)
    with pytest.raises(OSError, match="no route to host"):
      train(members=KEEP, out=folder)
  assert names(folder) == before


def test_s3_keeps_entries_and_creates_once(bucket):
  store, tree = Store(bucket / "run"), {"a": np.arange(6.0).reshape(2, 3)}
  assert store.names("models/*") == []
  assert not store.has("models/00001")
  store.save("models/00001", tree, about="a tree")
  assert store.has("models/00001")
  assert store.names("models/*") == ["models/00001"]
  assert store.notes("models/00001")["about"] == "a tree"
  assert same(store.load("models/00001", tree), tree)
  store.forget("models")
  assert store.names("models/*") == []
  assert files.created(bucket / "lock", b"1")
  assert not files.created(bucket / "lock", b"2")


@pytest.fixture
def gcs_folder(monkeypatch):
  """Return a folder of an emulator of GCS, which ignores conditions of requests."""
  reason = "no {0}: pip install {0}"
  monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  pytest.importorskip("gcsfs", reason=reason.format("gcsfs"))
  server = pytest.importorskip(
    "gcp_storage_emulator.server", reason=reason.format("gcp-storage-emulator")
  )
  port = free_port()
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
  running = server.create_server("127.0.0.1", port, in_memory=True)
  running.start()
  folder = path_of(upath.UPath("gs://bucket/run", token="anon"))
  folder.fs.mkdir("bucket")
  yield folder
  running.stop()


@pytest.mark.slow
def test_a_run_on_gcs_resumes(gcs_folder):
  expected = train(members=KEEP)
  train(members=KEEP[:2], out=gcs_folder)
  assert Store(gcs_folder).names("models/*") == ["models/00000", "models/00001"]
  assert same(train(members=KEEP, out=gcs_folder).states, expected.states)
  assert {"lock", "models", "metrics.jsonl"} < {
    path.name for path in files.listed(gcs_folder, "*")
  }


_WRITE = """
import sys
import numpy as np
from mixdef.core.files import path_of
from mixdef.training.store import Store
store = Store(path_of(sys.argv[1]))
tree = {"a": np.random.default_rng(0).random(2**20)}
print("started", flush=True)
for i in range(10**6):
  store.save(f"models/{i % 4:05d}", tree, count=i)
"""


@pytest.mark.slow
def test_a_kill_while_an_object_is_written_leaves_whole_objects(bucket, caplog):
  random_, listed = random.Random(0), 0
  store = Store(bucket / "run")
  for _ in range(6):
    command = [sys.executable, "-c", _WRITE, str(store.folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "started\n"
    time.sleep(random_.uniform(0.5, 1.5))
    writer.kill()
    writer.communicate()
    for name in store.names("models/*"):
      arrays = store.load_arrays(name)
      assert arrays is not None, caplog.messages
      assert len(arrays["a"]) == 2**20
      listed += 1
  assert listed >= 6
  assert all(path.name.endswith(".npz") for path in files.listed(store.folder, "*/*"))


def start(out, **asked):
  return apart.start(**TASK, out=out, beat=[0.2, 0.0], **asked)


def wait_until(process, happened):
  deadline = time.monotonic() + 120
  while not happened():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline, "nothing happened for two minutes"
    time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.heavy
def test_kills_lose_no_model_on_a_bucket(bucket, quick_lock):
  folder, done = bucket / "run", {}
  store = Store(folder)

  def listed(pattern, before):
    return set(store.names(pattern)) - set(before)

  for pattern in ("unfinished/*", "models/*", "signals-*/*"):
    process = start(folder)
    wait_until(process, functools.partial(listed, pattern, done))
    time.sleep(random.Random(pattern).uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = {
      name: (folder / f"{name}.npz").stat().st_mtime
      for name in [*store.names("models/*"), *store.names("signals-*/*")]
    }
    assert done.items() <= found.items(), "a finished entry was lost or written again"
    assert all(store.notes(name) for name in found)
    done = found
  resumed = apart.train(models=4, epochs=20, strategy="loop", out=folder)
  expected = apart.train(models=4, epochs=20, strategy="loop")
  np.testing.assert_array_equal(resumed.phi, expected.phi)
  assert not store.names("unfinished/*")
  lines = files.read_bytes(folder / "metrics.jsonl").splitlines()
  rows = [(row["models"], row["epoch"]) for row in map(json.loads, lines)]
  assert sorted(rows) == [
    (chunk, e) for chunk in ("models-00000", "models-00002") for e in range(20)
  ]


@pytest.mark.slow
@pytest.mark.parametrize("off", [-600.0, 600.0])
def test_another_job_is_refused_whatever_the_clock_of_its_host(
  bucket, off, quick_lock, monkeypatch
):
  folder = bucket / "run"
  first = apart.start(**{**TASK, "epochs": 10**6}, out=folder, beat=[0.2, off])
  wait_until(first, lambda: files.listed(folder, "lock/*"))
  second = start(folder)
  _, errors = second.communicate(timeout=120)
  assert second.returncode == 1
  assert f"is being written by process {first.pid} on" in errors
  assert first.poll() is None
  first.kill()
  first.communicate()
  started = time.monotonic()
  with lock_module.locked(folder):
    assert time.monotonic() - started < 10


@pytest.mark.slow
@pytest.mark.heavy
def test_two_hosts_train_together_on_a_bucket(bucket, tmp_path):
  answer = tmp_path / "answer.npz"
  task = {"models": 5, "epochs": 3, "strategy": "loop", "at_once": 2}
  finish(*pair(**task, out=bucket / "run", answer=answer))
  expected = apart.train(models=5, epochs=3, strategy="loop")
  with np.load(answer) as given:
    np.testing.assert_array_equal(given["phi"], expected.phi)
  store = Store(bucket / "run")
  assert len(store.names("models/*")) == 5
  assert not files.listed(store.folder, "metrics/*")
  processes = {row["process"] for row in store.read_metrics()}
  assert processes == {0, 1}

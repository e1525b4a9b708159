"""Shadows over several devices and hosts: the same models as of one process."""

import json
import pathlib
import signal
import socket
import time

import apart
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from mixdef.training import devices

MODELS, EPOCHS = 5, 3
TASK = {"models": MODELS, "epochs": EPOCHS, "strategy": "loop", "at_once": 2}


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def pair(**asked):
  """Start two processes that train together."""
  address = f"127.0.0.1:{free_port()}"
  return [apart.start(**asked, coordinator=[address, 2, i]) for i in range(2)]


def wait_for(path: pathlib.Path, processes):
  deadline = time.monotonic() + 120
  while not path.exists():
    ended = [p.communicate()[1] for p in processes if p.poll() is not None]
    assert not ended, f"ended before {path} was there: {ended}"
    assert time.monotonic() < deadline, f"no {path} after two minutes"
    time.sleep(0.01)


def finish(*processes):
  errors = [process.communicate(timeout=240)[1] for process in processes]
  assert not any(process.returncode for process in processes), "\n".join(errors)


@pytest.fixture(scope="module")
def expected():
  return apart.train(models=MODELS, epochs=EPOCHS, strategy="loop").phi


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "strategy"), [(4, "vmap"), (8, "scan")])
def test_forced_devices_give_the_models_of_one(tmp_path, expected, devices, strategy):
  answer = tmp_path / "answer.npz"
  task = {**TASK, "strategy": strategy, "at_once": MODELS}
  finish(apart.start(**task, devices=devices, answer=answer))
  with np.load(answer) as given:
    np.testing.assert_allclose(given["phi"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "scan"])
def test_records_streamed_to_two_devices_give_the_models_of_one(
  tmp_path, expected, strategy
):
  answers = {}
  for name, more in (("resident", {}), ("streamed", {"memory_gb": 1e-9})):
    answer = tmp_path / f"{name}.npz"
    task = {**TASK, "strategy": strategy, "at_once": MODELS, **more}
    finish(apart.start(**task, devices=2, answer=answer))
    with np.load(answer) as given:
      answers[name] = given["phi"]
  np.testing.assert_array_equal(answers["streamed"], answers["resident"])
  np.testing.assert_allclose(answers["streamed"], expected, atol=1e-4)


@pytest.mark.slow
def test_two_hosts_give_the_models_of_one(tmp_path, expected):
  out, answer = tmp_path / "run", tmp_path / "answer.npz"
  # What the slow process reads at the end, the other must not be merging meanwhile.
  finish(*pair(**TASK, out=out, answer=answer, slow=1))
  with np.load(answer) as given:
    np.testing.assert_array_equal(given["phi"], expected)
  assert len(list((out / "models").iterdir())) == MODELS
  assert not (out / "metrics").exists()
  lines = (out / "metrics.jsonl").read_text().splitlines()
  chunks = {json.loads(line)["models"] for line in lines}
  assert chunks == {"models-00000", "models-00002", "models-00004"}


@pytest.mark.slow
def test_what_a_lost_host_leaves_is_finished_by_one(tmp_path, expected):
  out, long = tmp_path / "run", 40
  first, second = processes = pair(**{**TASK, "epochs": long}, out=out)
  wait_for(out / "metrics" / "models-00002-2.jsonl", processes)
  second.send_signal(signal.SIGKILL)
  wait_for(out / "models" / "00004.npz", [first])
  done = {path.name: path.stat().st_mtime_ns for path in (out / "models").iterdir()}
  first.kill()
  for process in processes:
    process.communicate()
  assert set(done) == {"00000.npz", "00001.npz", "00004.npz"}
  alone = apart.train(models=MODELS, epochs=long, strategy="loop", out=out)
  for name, written in done.items():
    assert (out / "models" / name).stat().st_mtime_ns == written
  whole = apart.train(models=MODELS, epochs=long, strategy="loop")
  np.testing.assert_array_equal(alone.phi, whole.phi)


@pytest.mark.slow
def test_a_folder_is_taken_up_on_other_devices(tmp_path, expected):
  apart.train(models=2, epochs=EPOCHS, strategy="vmap", out=tmp_path)
  answer = tmp_path / "answer.npz"
  task = {**TASK, "models": 4, "strategy": "vmap", "at_once": 4}
  finish(apart.start(**task, devices=4, out=tmp_path, answer=answer))
  with np.load(answer) as given:
    np.testing.assert_allclose(given["phi"], expected[:4], atol=1e-4)


@pytest.mark.slow
def test_a_host_that_fails_stops_the_others(tmp_path):
  first, second = pair(**TASK, out=tmp_path, full=1)
  for process, told in ((first, "process 1 failed"), (second, "No space left")):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors
    assert told in errors


def test_without_a_folder_each_process_trains_all_models(monkeypatch, expected):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  alone = apart.train(models=MODELS, epochs=EPOCHS, strategy="loop")
  np.testing.assert_array_equal(alone.phi, expected)


def test_a_process_without_a_number_is_one_line():
  with pytest.raises(ValueError, match="process_id=2 of num_processes=2"):
    devices.connect("127.0.0.1:1", 2, 2)
  for address in ("127.0.0.1", "host:x", "host:65536", ":1"):
    with pytest.raises(ValueError, match="pass host:port of process 0"):
      devices.connect(address, 2, 0)


def test_a_lost_process_is_told_unless_this_one_failed_too(monkeypatch):
  def cut(_):
    raise RuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "sync_global_devices", cut)
  with (
    pytest.raises(devices.PeerLost, match="the same command on all hosts again"),
    devices.barrier("here"),
  ):
    pass
  with pytest.raises(ValueError, match="of its own"), devices.barrier("here"):
    raise ValueError("an error of its own")

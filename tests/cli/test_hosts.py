"""Jobs on two hosts: the same results as on one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

COMMON = ["--batch_size=32", "--epochs=2", "--strategy=loop", "--num_shadows=4"]
CLASSIFIER = ["--train_size=60", "--model=mlp(8)", *COMMON]
ATTACKS = "--attacks=loss_threshold,lira_online_fixed"

JOBS = {
  "lira": CLASSIFIER,
  "audit": [*CLASSIFIER, "--canaries=clean:20", ATTACKS],
  "gan": [
    *("--train_size=60", *COMMON, "--samples=100"),
    *("--classifier=mlp(8)", "--attacks=logan,gan_leaks_full_black_box"),
    *("--attack_records=6", "--model=dense_networks(hidden=8, latent=3)"),
  ],
  "sweep": [
    *CLASSIFIER,
    "--defenses=none; relaxloss([0.5, 1.0])",
    ATTACKS,
  ],
}


def start(job, *flags):
  return subprocess.Popen(
    [sys.executable, "-m", "mixdef.cli", job, *flags],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stderr=subprocess.PIPE,
    text=True,
  )


def timeless(result):
  """Return a result without what depends on the machine or the folder."""
  apart = {"seconds", "minute", "strategy", "commit", "report", "command", "devices"}
  apart |= {"date"}
  if isinstance(result, dict):
    return {
      name: timeless(value)
      for name, value in result.items()
      if name.rpartition("_")[2] not in apart
    }
  return [timeless(value) for value in result] if isinstance(result, list) else result


@pytest.mark.slow
@pytest.mark.parametrize(
  "job",
  [
    *("lira", "audit"),
    *(pytest.param(job, marks=pytest.mark.heavy) for job in ("gan", "sweep")),
  ],
)
def test_two_hosts_write_the_results_of_one(tmp_path, job):
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  hosts = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
  started = [
    start(job, *JOBS[job], *hosts, f"--process_id={i}", f"--out={tmp_path}/two")
    for i in (0, 1)
  ]
  started.append(start(job, *JOBS[job], f"--out={tmp_path}/one"))
  errors = [process.communicate(timeout=400)[1] for process in started]
  assert not any(process.returncode for process in started), "\n".join(errors)
  one, two = (
    timeless(json.loads((tmp_path / name / "result.json").read_text()))
    for name in ("one", "two")
  )
  assert two == one
  if job != "sweep":
    with (
      np.load(tmp_path / "one" / "scores.npz") as expected,
      np.load(tmp_path / "two" / "scores.npz") as found,
    ):
      assert set(found) == set(expected)
      for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])

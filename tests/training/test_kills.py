"""Killed at any moment, a run loses no finished shadow and ends as if unbroken."""

import contextlib
import itertools
import json
import random
import signal
import time

import apart
import numpy as np
import pytest
from training_cases import halves, records, same

from mixdef.training import fit_many

TASK = {"models": 6, "epochs": 40, "strategy": "loop"}


@pytest.fixture(scope="module")
def unbroken():
  return fit(None)


def fit(out):
  return fit_many(
    *(apart.LEARNER, records(), halves(TASK["models"])),
    epochs=TASK["epochs"],
    batch_size=6,
    num_members=20,
    strategy=TASK["strategy"],
    out=out,
  )


def finished(folder):
  """When each finished entry, of models and of answers, was written."""
  entries = itertools.chain(folder.glob("models/*"), folder.glob("signals-*/*"))
  return {
    path: path.stat().st_mtime_ns
    for path in entries
    if path.stem.isdigit()  # another name is being written
  }


def events(folder):
  """Count what work leaves behind: a row an epoch, and entries."""
  rows = set()
  with contextlib.suppress(FileNotFoundError):  # merged meanwhile
    for path in [*folder.glob("metrics.jsonl"), *folder.glob("metrics/*.jsonl")]:
      rows.update(path.read_text().splitlines())
  return len(rows) + len(finished(folder))


def kill_after(folder, count, moment):
  """Train until so much more is done and a moment longer, and kill."""
  enough = events(folder) + count
  process = apart.start(**TASK, at_once=2, out=folder)
  while events(folder) < enough and process.poll() is None:
    time.sleep(0.001)
  time.sleep(moment)
  process.send_signal(signal.SIGKILL)
  _, errors = process.communicate()
  assert process.returncode in (0, -signal.SIGKILL), errors


def check(folder, kills, unbroken):
  """Kill so many times, then go on to the end."""
  random_ = random.Random(kills)
  whole = 3 * TASK["epochs"] + 2 * TASK["models"]  # three chunks
  done, found = {}, []
  for _ in range(kills):
    count = random_.randint(1, 2 * whole // (kills + 1))
    kill_after(folder, count, random_.uniform(0, 0.03))
    now = finished(folder)
    assert done.items() <= now.items(), "a finished entry was lost or written again"
    done = now
    found.append((len(done), sorted(path.name for path in folder.glob("unfinished/*"))))
  assert any(checkpoints for _, checkpoints in found), found
  assert any(0 < count < 2 * TASK["models"] for count, _ in found), found
  resumed = fit(folder)
  assert done.items() <= finished(folder).items()
  assert same(resumed.states, unbroken.states)
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [(row["models"], row["epoch"]) for row in map(json.loads, lines)]
  assert len(rows) == len(set(rows)) == 3 * TASK["epochs"]
  answers = apart.train(**TASK, out=folder)
  np.testing.assert_array_equal(answers.phi, apart.train(**TASK).phi)
  assert not (folder / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.heavy)])
def test_kills(tmp_path, unbroken, kills):
  check(tmp_path, kills=kills, unbroken=unbroken)

"""The lock of a run folder on a bucket."""

import os
import threading
import time
import uuid

import pytest

from mixdef.core import files
from mixdef.core.files import path_of, write_text
from mixdef.training import lock as lock_module
from mixdef.training.lock import Lock, locked
from mixdef.training.store import Store


@pytest.fixture
def folder(monkeypatch):
  """Return a folder of a bucket in memory; locks there beat fast."""
  monkeypatch.setattr(lock_module, "_HEARTBEAT", 0.05)
  monkeypatch.setattr(lock_module, "_TIMEOUT", 0.5)
  monkeypatch.setattr(lock_module, "_POLL", 0.01)
  return path_of(f"memory://{uuid.uuid4().hex}/run")


def objects(folder):
  return [path.name for path in files.listed(folder, "lock/*")]


def left_behind(folder, number=1, holder="process 7 on elsewhere"):
  """Leave the lock of a process that was killed."""
  write_text(folder / "lock" / f"{number:09d}", f"{holder}\n3")


def test_a_second_job_is_refused_and_a_later_one_is_not(folder):
  with locked(folder):
    started = time.monotonic()
    with pytest.raises(BlockingIOError, match=f"by process {os.getpid()} on") as raised:
      Lock(folder)
    assert "choose another out folder" in str(raised.value)
    assert time.monotonic() - started < 0.5
  started = time.monotonic()
  with locked(folder):
    assert time.monotonic() - started < 0.05
    assert objects(folder) == ["000000002"]


def test_the_lock_of_a_killed_process_blocks_for_the_stated_time(folder, caplog):
  caplog.set_level("INFO", logger="absl")
  left_behind(folder)
  started = time.monotonic()
  with locked(folder):
    assert 0.5 <= time.monotonic() - started < 2
  (told,) = [line for line in caplog.messages if "waiting up to" in line]
  assert "is locked by process 7 on elsewhere" in told


@pytest.mark.parametrize("off", [-600, 600])
def test_a_clock_that_is_off_neither_steals_nor_blocks(folder, monkeypatch, off):
  with locked(folder):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + off)
    with pytest.raises(BlockingIOError):
      Lock(folder)
  left_behind(folder, number=5)
  started = time.monotonic()
  with locked(folder):
    assert time.monotonic() - started < 2


def test_of_several_that_find_the_holder_dead_one_succeeds_it(folder):
  left_behind(folder)
  taken, refused = [], []

  def take():
    try:
      taken.append(Lock(folder))
    except BlockingIOError as error:
      refused.append(error)

  threads = [threading.Thread(target=take) for _ in range(5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(taken) == 1
  assert len(refused) == 4
  assert objects(folder) == ["000000002"]
  taken[0].release()


def test_who_was_slow_to_succeed_a_dead_holder_gives_way(folder, monkeypatch):
  left_behind(folder, number=1)
  with locked(folder):
    # It looked before the present holder came, and creates a number that was removed.
    looks, newest = [], lock_module._newest

    def old_then_new(folder):
      looks.append(folder)
      return folder / "lock" / "000000000" if len(looks) == 1 else newest(folder)

    monkeypatch.setattr(lock_module, "_newest", old_then_new)
    monkeypatch.setattr(lock_module, "_free", free_once(lock_module._free))
    with pytest.raises(BlockingIOError):
      Lock(folder)
    assert objects(folder) == ["000000002"]


def free_once(free):
  calls = []

  def once(folder, path):
    calls.append(path)
    return True if len(calls) == 1 else free(folder, path)

  return once


def test_a_holder_that_was_silent_too_long_stops_writing(folder):
  with locked(folder) as lock:
    store = Store(folder, lock)
    store.save("models/00000", {})
    left_behind(folder, number=2, holder="process 8 on elsewhere")
    time.sleep(0.3)
    with pytest.raises(BlockingIOError, match="process 8 on elsewhere"):
      store.save("models/00001", {})
  # It leaves the lock of the other alone.
  assert objects(folder)[-1] == "000000002"
  assert files.read_bytes(folder / "lock" / "000000002")


def test_a_bucket_out_of_reach_for_a_moment_keeps_the_lock(folder, monkeypatch, caplog):
  with locked(folder) as lock:
    with monkeypatch.context() as patch:

      def fail(*_, **__):
        raise OSError("no network")

      patch.setattr(lock_module.files, "listed", fail)
      time.sleep(0.2)
    time.sleep(0.2)
    lock.check()
    assert any("was not renewed: no network" in line for line in caplog.messages)
    with pytest.raises(BlockingIOError):
      Lock(folder)

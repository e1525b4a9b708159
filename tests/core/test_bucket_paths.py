"""Paths of buckets: reading and writing them, and what is said if they cannot be."""

import errno
import importlib.util
import os
import uuid

import numpy as np
import pytest
import upath

from mixdef.core import files, reading
from mixdef.core.files import on_bucket, path_of, whole_file, write_text


@pytest.fixture
def folder():
  """Return an empty folder of a bucket in memory."""
  return path_of(f"memory://{uuid.uuid4().hex}/run")


class Like(os.PathLike):
  def __fspath__(self):
    return "memory://bucket/run"


@pytest.mark.parametrize(
  "given",
  [
    "memory://bucket/run",
    "memory://bucket//run",
    upath.UPath("memory://bucket/run"),
    Like(),
  ],
)
def test_a_path_of_a_bucket_keeps_its_text(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = path_of(given)
  assert on_bucket(path)
  assert str(path) == "memory://bucket/run"
  assert str(path / "models" / "00001.npz") == "memory://bucket/run/models/00001.npz"
  assert path.name == "run"
  write_text(path / "text", "ε")
  assert files.read_bytes(path / "text") == "ε".encode()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/a:b", "C:/runs", "file:///tmp/run", "a//b"])
def test_other_paths_are_of_this_machine(path):
  assert not on_bucket(path_of(path))


@pytest.mark.parametrize(
  ("path", "says"),
  [
    ("s3://bucket/run", r"out='s3://bucket/run': s3fs .*'mixdef\[s3\]'"),
    ("gs://bucket/run", r"out='gs://bucket/run': gcsfs .*'mixdef\[gcs\]'"),
    ("foo://bucket/run", "foo:// is unknown: pass a path of this machine, or s3://"),
  ],
)
def test_a_protocol_that_is_missing_is_one_line(path, says, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: None if name in ("s3fs", "gcsfs") else find(name),
  )
  with pytest.raises(ValueError, match=says) as raised:
    path_of(path, "out")
  assert "\n" not in str(raised.value)


def test_an_error_while_a_file_is_written_keeps_the_earlier_one(folder):
  write_text(folder / "text", "earlier")

  def fail():
    with whole_file(folder / "text") as file:
      file.write(b"half")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  assert files.read_bytes(folder / "text") == b"earlier"
  with whole_file(folder / "text") as file:
    file.write(b"all")
  assert files.read_bytes(folder / "text") == b"all"


def test_a_file_is_created_once(folder):
  assert files.created(folder / "lock", b"first")
  assert not files.created(folder / "lock", b"second")
  assert files.read_bytes(folder / "lock") == b"first"


def test_files_are_listed_and_removed_on_either_kind_of_path(folder, tmp_path):
  for place in (folder, tmp_path):
    for name in ("a/1.npz", "a/2.npz", "a/.DS_Store", "b/3.npz"):
      write_text(place / name, name)
    assert [path.name for path in files.listed(place, "a/*")] == ["1.npz", "2.npz"]
    assert files.listed(place / "nothing", "*") == []
    files.remove(place / "a")
    files.remove(place / "b" / "3.npz")
    files.remove(place / "nothing")
    assert files.listed(place, "*/*.npz") == []
    assert not files.exists(place / "a")


def test_only_the_arrays_that_are_asked_for_are_fetched(folder, monkeypatch):
  path = folder / "arrays.npz"
  with whole_file(path) as file:
    np.savez(file, large=np.random.default_rng(0).random(2**18), small=np.arange(3))
  fetched, fetch = [], path.fs.cat_file

  def counted(*args, **options):
    part = fetch(*args, **options)
    fetched.append(len(part))
    return part

  monkeypatch.setattr(path.fs, "cat_file", counted)
  arrays = reading.read_npz(path, fix="", names=["small"])
  assert arrays["small"].tolist() == [0, 1, 2]
  assert sum(fetched) < 2**18
  fetched.clear()
  assert set(reading.read_npz(path, fix="")) == {"large", "small"}
  assert len(fetched) == 1


class NoCredentialsError(Exception):
  """Stands for an error of a driver."""


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (NoCredentialsError("Unable to locate credentials"), errno.EIO),
    (PermissionError("Access Denied"), errno.EACCES),
    (OSError(errno.EINVAL, "token expired"), errno.EIO),
  ],
)
def test_a_bucket_that_cannot_be_reached_is_no_damage(folder, monkeypatch, error, code):
  def fail(*_, **__):
    raise error

  for name in ("size", "cat_file", "pipe_file"):
    monkeypatch.setattr(folder.fs, name, fail)
  for attempt in (
    lambda: reading.read_json(folder / "a.json", fix=""),
    lambda: reading.read_npz(folder / "a.npz", fix=""),
    lambda: reading.read_npz(folder / "a.npz", fix="", names=["x"]),
    lambda: reading.digest_file(folder / "a.npz", fix=""),
    lambda: write_text(folder / "a", "a"),
  ):
    with pytest.raises(OSError, match=r"memory://.*/run/a") as raised:
      attempt()
    assert raised.value.errno == code
    assert "\n" not in str(raised.value)


def test_a_missing_file_of_a_bucket_is_missing(folder):
  for read in (reading.read_json, reading.read_npz, reading.digest_file):
    with pytest.raises(FileNotFoundError, match=r"run/a is missing; make it"):
      read(folder / "a", fix="make it")

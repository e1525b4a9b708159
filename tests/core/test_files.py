import contextlib
import pathlib
import resource

import numpy as np
import pytest
from matplotlib.figure import Figure

from mixdef.auditing import read_report
from mixdef.core.files import (
  path_of,
  save_figure,
  whole_file,
  write_json,
  write_text,
)
from mixdef.data import load


@contextlib.contextmanager
def disk_with_room_for(size):
  """Let no file grow beyond `size` bytes: a write then fails as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  return tmp_path


def test_a_tilde_is_the_home_folder(home):
  assert path_of("~/runs") == home / "runs"
  assert path_of(pathlib.Path("~")) == home


@pytest.mark.parametrize(
  ("path", "error", "says"),
  [
    ("", ValueError, "out is empty: pass the path of a file or folder, or omit it"),
    (3, TypeError, "out=3 must be a path"),
    (None, TypeError, "out=None must be a path"),
    ("~nobody-of-this-name/runs", ValueError, "out='~nobody-of-this-name/runs'"),
    (
      pathlib.Path("s3://bucket/run"),
      ValueError,
      "out='s3:/bucket/run': a slash is missing",
    ),
    ("a\0b", ValueError, "no path can have a null character"),
  ],
)
def test_what_is_no_path_is_refused(path, error, says):
  with pytest.raises(error, match=says):
    path_of(path, "out")


def test_doors_of_the_library_expand_the_home_folder(home):
  with pytest.raises(FileNotFoundError, match=str(home)):
    read_report("~/nothing")
  with pytest.raises(FileNotFoundError, match=str(home)):
    load("mnist", data_dir="~/data")


def write_much(path):
  with whole_file(path) as file:
    np.savez(file, x=np.zeros(10_000))


def draw(path):
  save_figure(Figure(), path)


@pytest.mark.parametrize(
  "write",
  [
    write_much,
    draw,
    lambda path: write_text(path, "much " * 1000),
    lambda path: write_json(path, ["much"] * 1000),
  ],
)
def test_a_full_disk_names_the_file_and_keeps_the_earlier_one(tmp_path, write):
  path = tmp_path / "written.png"
  path.write_text("earlier")
  with disk_with_room_for(1000), pytest.raises(OSError, match=r"/written\.png"):
    write(path)
  assert [file.name for file in tmp_path.iterdir()] == ["written.png"]
  assert path.read_text() == "earlier"
  write(path)
  assert path.read_bytes() != b"earlier"


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="the folder cannot be created; choose another"):
    write_text(tmp_path / "file" / "config.json", "{}")


def test_an_error_of_another_file_is_left_as_it_is(tmp_path):
  with (
    pytest.raises(FileNotFoundError, match="absent"),
    whole_file(tmp_path / "written") as file,
  ):
    file.write((tmp_path / "absent").read_bytes())
  assert not list(tmp_path.iterdir())


def test_text_is_written_as_utf_8(tmp_path):
  write_text(tmp_path / "text", "ε = 1\n")
  assert (tmp_path / "text").read_bytes() == "ε = 1\n".encode()

"""Thousands of damaged files: each is one line, or is told and made again."""

import copy
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import report_case

from mixdef.attacks import Signals
from mixdef.auditing import kept_scores, read_report
from mixdef.auditing import sweep as engine
from mixdef.auditing.pages import compare_page
from mixdef.cli import job
from mixdef.cli.gan_settings import GanSettings
from mixdef.cli.settings import JobSettings
from mixdef.core.reading import seal
from mixdef.training import entry as store_entry
from mixdef.training import signature
from mixdef.training.store import Store

WRONG = (None, True, 0, -1, 2**70, 1.5, "text", "", [], [[]], {}, {"a": 1})


def broken(content, count, seed=0):
  """Yield damaged versions of the bytes of a file."""
  rng = np.random.default_rng(seed)
  yield b""
  yield content[:1]
  yield b"\xff\xfe" + content
  yield content + content
  for _ in range(count):
    first, last = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    flipped = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(flipped), rng.integers(1, 4))
    flipped[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
    block = slice(first, min(last, first + 64))
    zeroed = np.frombuffer(content, np.uint8).copy()
    zeroed[block] = 0
    yield content[:first]
    yield content[first:]
    yield content[:first] + content[last:]
    yield flipped.tobytes()
    yield zeroed.tobytes()


def altered(value):
  """Yield JSON values with one node of another type, or without one."""

  def places(node, path):
    yield path
    if isinstance(node, dict | list):
      node = dict(enumerate(node)) if isinstance(node, list) else node
    for name, inner in node.items() if isinstance(node, dict) else ():
      yield from places(inner, (*path, name))

  for path in places(value, ()):
    if not path:
      yield from WRONG
      continue
    for wrong in (*WRONG, ...):
      whole = copy.deepcopy(value)
      owner = whole
      for name in path[:-1]:
        owner = owner[name]
      if wrong is ...:
        del owner[path[-1]]
      else:
        owner[path[-1]] = wrong
      yield whole


def texts(value, count):
  """Yield the bytes of damaged JSON files."""
  yield from broken(json.dumps(value, indent=1).encode(), count)
  yield b"[" * 100_000
  yield json.dumps(value).encode("utf-16")
  for other in altered(value):
    yield json.dumps(other).encode()


def one_line(path, read):
  """Read a damaged file; an error must be one line that names it."""
  try:
    return read(path)
  except (ValueError, OSError) as error:
    line = "undecoded" if isinstance(error, UnicodeError) else str(error)
  assert path.name in line
  assert "\n" not in line
  assert len(line) < 700
  return None


def outputs():
  rng = np.random.default_rng(0)
  return {
    "logits": rng.normal(size=(3, 8, 3)).astype(np.float32),
    "keep": np.arange(24).reshape(3, 8) % 5 < 2,
    "labels": np.arange(8) % 3,
  }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_arrays_of_a_user(tmp_path, save):
  path = tmp_path / "outputs.npz"
  save(path, **outputs())
  expected, read = Signals.from_npz(path), 0
  for content in broken(path.read_bytes(), 80):
    path.write_bytes(content)
    found = one_line(path, Signals.from_npz)
    if found is not None:  # what was hit says nothing, as a date
      read += 1
      np.testing.assert_array_equal(found.phi, expected.phi)
      np.testing.assert_array_equal(found.members, expected.members)
  assert read < 100


def test_arrays_of_a_user_under_exchanged_names(tmp_path):
  path = tmp_path / "outputs.npz"
  arrays = outputs()
  for one in arrays:
    for other in arrays:
      if one != other:
        np.savez(path, **{**arrays, one: arrays[other], other: arrays[one]})
        assert one_line(path, Signals.from_npz) is None


@pytest.mark.parametrize("place", ["file", "folder", "secret"])
def test_places_that_are_no_file(tmp_path, place, monkeypatch):
  path = tmp_path / "report.npz"
  if place == "folder":
    path.mkdir()
  elif place == "secret":
    path.touch()

    def refuse(*_):
      raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
  assert one_line(path, Signals.from_npz) is None


def test_damaged_reports(tmp_path):
  report = report_case.make(models=4, records=60)[0]
  first = next(iter(report["attacks"]))
  row = {name: report["attacks"][first][name] for name in ("auc", "auc_ci", "tpr")}
  row["tpr"] = {"0.001": row["tpr"]["0.001"]}
  report = {
    **{name: report[name] for name in ("schema", "setting", "strongest")},
    "attacks": {first: row},
    "dp_baseline": {
      "test_accuracy": 0.5,
      "strongest": {"auc": 0.6, "auc_ci": [0.5, 0.7]},
    },
    "generator": {"utility": [{"name": "downstream_accuracy", "value": 0.5}]},
  }
  path = tmp_path / "report.json"
  for content in texts(report, 60):
    path.write_bytes(content)
    found = one_line(path, read_report)
    if found is not None:  # what a comparison reads of it, which is slow to draw
      compare_page._row("a", found)
      compare_page._points({"a": found})


TREE = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.array([True, False])}


def broken_notes(path):
  """Return entries whose notes alone are altered."""
  with np.load(path) as found:
    arrays = dict(found)
  notes = json.loads(arrays["notes.json"].tobytes())
  for text in texts(notes, 60):
    file = io.BytesIO()
    np.savez(file, **arrays | {"notes.json": np.frombuffer(text, np.uint8)})
    yield file.getvalue()


@pytest.mark.parametrize("part", ["file", "notes"])
def test_damaged_entries_of_a_store(tmp_path, part, caplog):
  store = Store(tmp_path)
  store.save("one", TREE, made_from={"learner": "Linear()"}, models=[0, 1])
  path = tmp_path / "one.npz"
  every = broken(path.read_bytes(), 60) if part == "file" else broken_notes(path)
  for content in every:
    path.write_bytes(content)
    caplog.clear()
    found = store.load_arrays("one")
    assert found is None or all((found[n] == TREE[n]).all() for n in TREE)
    assert len(caplog.messages) == (found is None)
    assert path.exists() == (found is not None)
    notes = store.notes("one", {"made_from": dict}) if found else None
    assert notes is None or notes["made_from"] == {"learner": "Linear()"}


def test_damaged_rows_of_metrics(tmp_path):
  store = Store(tmp_path)
  rows = [
    {"models": "models-00000", "count": 2, "epoch": e, "loss": 0.5, "seconds": 0.25}
    for e in range(3)
  ]
  store.write_metrics(rows)
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  lines = [json.dumps(row).encode() + b"\n" + whole for row in altered(rows[0])]
  for content in [*broken(whole, 150), *lines]:
    path.write_bytes(content)
    for row in store.read_metrics():
      assert isinstance(row["models"], str)
      assert row.get("seconds", 0) + row["epoch"] + row["count"] >= -3


def test_damaged_signatures(tmp_path, caplog):
  path = tmp_path / "signature.json"
  found = {"learner": "Linear()", "seed": 0, "sizes": [1, 2]}
  for content in texts(found, 100):
    path.write_bytes(content)
    caplog.clear()

    def compared(path):
      return signature.same_or_refuse(path, found, fix="Choose another out folder.")

    fresh = one_line(path, compared)
    assert len(caplog.messages) == bool(fresh)
    assert fresh is None or json.loads(path.read_bytes().decode("utf-8-sig")) == found


def test_damaged_scores(tmp_path, caplog):
  path, made_from, scores = tmp_path / "a.npz", {"attack": "a"}, np.ones((2, 5))
  kept_scores.write_scores(path, made_from, scores, 0.5)
  for content in broken(path.read_bytes(), 80):
    path.write_bytes(content)
    caplog.clear()
    found = kept_scores.read_scores(path, made_from, (2, 5))
    assert len(caplog.messages) == (found is None)
    assert found is None or (found[0] == scores).all()


@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_damaged_files_of_a_job(tmp_path, monkeypatch, name):
  monkeypatch.setattr(job, "environment", dict)
  result = {"value": 0.25, "rows": [{"a": 1}]}

  def run(settings, folder):
    del settings, folder
    return result

  job.execute(JobSettings(), tmp_path, run)
  whole = (tmp_path / name).read_bytes()
  config = (tmp_path / "config.json").read_bytes()
  for content in texts(json.loads(whole), 30):
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / name).write_bytes(content)
    found = one_line(
      tmp_path / "config.json", lambda _: job.execute(JobSettings(), tmp_path, run)
    )
    assert found in (None, result)
    assert found is not None or name == "config.json"


def test_damaged_cells_of_a_sweep(tmp_path, caplog):
  path = tmp_path / "cell.json"
  cell = seal({"dataset": "digits", "defense": "none", "made_from": {"a": 1}})
  for content in texts(cell, 60):
    path.write_bytes(content)
    caplog.clear()
    found = engine._read_cell(path)
    assert len(caplog.messages) == (found is None)
    assert path.exists() == (found is not None)


def test_damaged_recipes_of_references(tmp_path):
  path = tmp_path / "config.json"
  settings = GanSettings(defense="mixup", undefended=str(tmp_path))
  recipe = {"epochs": 7, "learning_rate": 0.1, "defense": "none", "other": [1]}
  for content in texts(recipe, 60):
    path.write_bytes(content)
    one_line(path, lambda _: settings.undefended_run)


def remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_by_folder(path):
  remove(path)
  path.mkdir()


@pytest.mark.parametrize("act", [remove, replace_by_folder])
@pytest.mark.parametrize("name", ["", "config.json", "result.json", "scores.npz"])
def test_files_that_vanish_while_a_job_runs(tmp_path, monkeypatch, act, name):
  monkeypatch.setattr(job, "environment", dict)
  folder = tmp_path / "run"

  def run(settings, folder):
    del settings
    np.savez(folder / "scores.npz", scores=np.zeros(2))
    if calls.pop():
      (folder / "result.json").touch()
      act(folder / name)
    return {"value": 0.5}

  calls = [False, True]
  one_line(folder, lambda folder: job.execute(JobSettings(), folder, run))
  calls = [False]
  found = one_line(folder, lambda folder: job.execute(JobSettings(), folder, run))
  assert found == {"value": 0.5} or act is replace_by_folder


def test_entries_that_vanish_while_they_are_read(tmp_path, monkeypatch, caplog):
  store = Store(tmp_path)
  store.save("one", TREE)
  whole = store_entry.read_npz

  def read_npz(path, **options):
    path.unlink()
    return whole(path, **options)

  monkeypatch.setattr(store_entry, "read_npz", read_npz)
  assert store.has("one")
  assert store.load_arrays("one") is None
  (told,) = [line for line in caplog.messages if line.endswith("is created again")]
  assert "one.npz cannot be read: it is missing" in told

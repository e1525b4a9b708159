"""A job's result is handed out again only if all it was made from is the same."""

import dataclasses
import json

import numpy as np
import pytest

import mixdef
from mixdef.auditing import sweep as engine
from mixdef.cli import audit, compare, flags, job, release, sweep
from mixdef.cli.settings import Settings
from mixdef.data import Dataset

RESULT = {"value": 0.5}


def written(path, seed=0, gain=2.0):
  """Write outputs of six models that gain on the class of their members."""
  rng = np.random.default_rng(seed)
  members, labels = rng.random((6, 60)) < 0.5, rng.integers(3, size=60)
  logits = rng.normal(size=(6, 60, 3))
  logits[:, np.arange(60), labels] += gain * members
  np.savez(path, logits=logits, keep=members, labels=labels)
  return path


def auditing(path, **options):
  return audit.AuditSettings(arrays=str(path), attacks="gap, loss_threshold", **options)


@pytest.fixture
def run():
  """A job that notes its calls and leaves a result and a page."""
  calls = []

  def work(settings, folder):
    calls.append(settings)
    (folder / "report.html").write_text("page")
    np.savez(folder / "scores.npz", scores=np.zeros(3))
    return {**RESULT, "call": len(calls)}

  work.calls = calls
  return work


def test_rewritten_arrays_do_not_give_the_old_verdict(tmp_path):
  path, folder = written(tmp_path / "outputs.npz"), tmp_path / "run"
  settings = auditing(path)
  first = job.execute(settings, folder, audit.run)
  place = settings.folder("audit", settings.inputs())
  assert job.execute(settings, folder, audit.run) == first
  written(path, seed=1, gain=0.0)
  with pytest.raises(
    ValueError, match=r"content of --arrays was .*Choose another --out"
  ):
    job.execute(settings, folder, audit.run)
  other = job.execute(settings, tmp_path / "other", audit.run)
  assert other["strongest"]["auc"] < first["strongest"]["auc"]
  # Without --out the new content has a folder of its own.
  assert settings.folder("audit", settings.inputs()) != place
  written(path)
  assert settings.folder("audit", settings.inputs()) == place
  assert job.execute(settings, folder, audit.run) == first


def test_records_of_another_folder_do_not_give_the_old_result(
  tmp_path, run, monkeypatch
):
  def load(name, data_dir=None):
    x = np.arange(20.0).reshape(10, 2) + (data_dir == "changed")
    return Dataset.from_arrays(x, np.arange(10) % 2, name=name)

  monkeypatch.setattr(mixdef, "load", load)
  settings = Settings(data_dir="first")
  first = job.execute(settings, tmp_path, run)
  moved = dataclasses.replace(settings, data_dir="moved")
  assert job.execute(moved, tmp_path, run) == first
  changed = dataclasses.replace(settings, data_dir="changed")
  with pytest.raises(ValueError, match="content of --dataset was"):
    job.execute(changed, tmp_path, run)
  assert len(run.calls) == 1


def table(path, seed=0):
  rng = np.random.default_rng(seed)
  rows = [f"{rng.normal():.4f},{rng.normal():.4f},{'ab'[i % 2]}" for i in range(20)]
  path.write_text("\n".join(["one,two,y", *rows]))
  return str(path)


def weights(path, value=1.0):
  np.savez(path, **{"Dense_0/kernel": np.full((2, 2), value, np.float32)})
  return str(path)


def test_other_weights_under_the_same_name_do_not_give_the_old_result(tmp_path, run):
  path = weights(tmp_path / "w.npz")
  settings = Settings(dataset="digits", defense=f"mixup|start_from('{path}')")
  first = job.execute(settings, tmp_path / "run", run)
  assert job.execute(settings, tmp_path / "run", run) == first
  weights(tmp_path / "w.npz", 2.0)
  with pytest.raises(ValueError, match=r"content of w\.npz was"):
    job.execute(settings, tmp_path / "run", run)


@pytest.mark.parametrize("changed", ["data.csv", "test.csv", "w.npz"])
def test_a_release_is_made_from_the_records_too(tmp_path, run, changed):
  files = {name: table(tmp_path / name) for name in ("data.csv", "test.csv")}
  params = weights(tmp_path / "w.npz")
  settings = release.ReleaseSettings(
    params=params, dataset=files["data.csv"], test=files["test.csv"], label="y"
  )
  first = job.execute(settings, tmp_path / "run", run)
  assert job.execute(settings, tmp_path / "run", run) == first
  if changed == "w.npz":
    weights(tmp_path / "w.npz", 2.0)
  else:
    table(tmp_path / changed, seed=1)
  with pytest.raises(ValueError, match=r"content of (--dataset|the model) was"):
    job.execute(settings, tmp_path / "run", run)


def test_a_release_of_a_run_asks_for_records_whose_folder_it_does_not_know(tmp_path):
  """Run folders name files, not places."""
  data, test = table(tmp_path / "data.csv"), table(tmp_path / "test.csv", seed=1)
  folder = tmp_path / "run"
  trained = Settings(dataset=data, test=test, label="y", out=str(folder))
  job.execute(trained, folder, lambda settings, folder: {"num_train": 1})
  named = {"run": str(folder)}
  with pytest.raises(ValueError, match=r"--dataset=data\.csv, .*pass --dataset=PATH"):
    release.ReleaseSettings(**named)
  with pytest.raises(ValueError, match=r"--test=test\.csv, .*pass --test=PATH"):
    release.ReleaseSettings(**named, dataset=data)
  settings = release.ReleaseSettings(**named, dataset=data, test=test)
  content = "content of --dataset"
  assert settings.inputs()[content] == trained.inputs()[content]
  before = settings.inputs()
  with pytest.raises(ValueError, match="has no model: run mixdef train there again"):
    release.model_of(settings)
  (folder / "models").mkdir()
  (folder / "models" / "00000.npz").write_bytes(b"other")
  assert settings.inputs() != before


def test_the_records_are_read_once(tmp_path, monkeypatch):
  seen, whole = [], mixdef.load

  def load(*names, **options):
    seen.append(names)
    return whole(*names, **options)

  def work(settings, folder):
    return {"records": len(settings.load())}

  monkeypatch.setattr(mixdef, "load", load)
  job.execute(Settings(), tmp_path, work)
  assert seen == [("digits",)]


@pytest.mark.slow
def test_a_changed_audit_does_not_give_the_old_comparison(tmp_path):
  folders = []
  for name in ("one", "two"):
    path = written(tmp_path / f"{name}.npz")
    folders.append(tmp_path / name)
    job.execute(auditing(path), folders[-1], audit.run)
  settings = compare.CompareSettings(audits=", ".join(map(str, folders)))
  first = job.execute(settings, tmp_path / "run", compare.run)
  assert job.execute(settings, tmp_path / "run", compare.run) == first
  path = folders[1] / "report.json"
  path.write_text(path.read_text().replace('"auc": 0.', '"auc": 0.1'))
  with pytest.raises(ValueError, match="content of two was"):
    job.execute(settings, tmp_path / "run", compare.run)


def test_another_version_is_told(tmp_path, run, monkeypatch):
  job.execute(Settings(), tmp_path, run)
  whole = flags.metadata.version
  monkeypatch.setattr(
    flags.metadata,
    "version",
    lambda name: "9.9" if name == "mixdef" else whole(name),
  )
  with pytest.raises(ValueError, match=r"mixdef was '[\d.]+', now '9\.9'"):
    job.execute(Settings(), tmp_path, run)
  assert len(run.calls) == 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null"])
def test_without_its_settings_a_result_is_not_handed_out(tmp_path, run, text):
  job.execute(Settings(), tmp_path, run)
  config = tmp_path / "config.json"
  config.unlink()
  if text is not None:
    config.write_text(text)
  again = job.execute(Settings(defense="mixup"), tmp_path, run)
  assert again["call"] == 2
  assert json.loads(config.read_text())["defense"] == "mixup"
  assert job.execute(Settings(defense="mixup"), tmp_path, run) == again


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    *(
      (name, how) for name in ("result.json", "scores.npz") for how in ("cut", "wrong")
    ),
    *((name, "gone") for name in ("result.json", "scores.npz", "report.html")),
  ],
)
def test_a_finished_job_whose_files_are_damaged_runs_again(
  tmp_path, run, name, damage, caplog
):
  first = job.execute(Settings(), tmp_path, run)
  path = tmp_path / name
  if damage == "gone":
    path.unlink()
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[:5])
  else:
    path.write_text("[1, 2]")
  again = job.execute(Settings(), tmp_path, run)
  assert (first["call"], again["call"]) == (1, 2)
  (told,) = [line for line in caplog.messages if name in line and "again" in line]
  assert told.endswith("it is computed again")


def test_damaged_cells_of_a_sweep_are_told_and_computed_again(
  tmp_path, monkeypatch, caplog
):
  trained = []

  def results(of, grid, scratch):
    del of, scratch
    trained.append(grid.texts)
    return [{"value": len(trained)} for _ in grid.texts]

  def flat(cells, folder):
    del cells, folder

  monkeypatch.setattr(engine, "_results", results)
  monkeypatch.setattr("mixdef.auditing.sweep_tables.write", flat)
  settings = sweep.SweepSettings(defenses="none; mixup", quick=True)
  job.execute(settings, tmp_path, sweep.run)
  count = len(trained)
  job.execute(settings, tmp_path, sweep.run)
  assert len(trained) == count
  first, *_ = tmp_path.glob("cells/*/*/*.json")
  cell = json.loads(first.read_text())
  for change in ({"value": 7}, {"made_from": 3}, {"dataset": []}):
    first.write_text(json.dumps({**cell, **change}))
    job.execute(settings, tmp_path, sweep.run)
    assert len(trained) == count + 1
    count += 1
    assert f"{first.name} is damaged" in caplog.text
    caplog.clear()

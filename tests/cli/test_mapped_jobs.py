"""Jobs on records that stay in their file and are streamed, end to end."""

import numpy as np
import pytest

import mixdef
from mixdef.cli import audit, job, train
from mixdef.data.readers import arrays
from mixdef.training import strategy, streaming

SMALL = {"model": "mlp(8)", "epochs": 2, "batch_size": 32, "learning_rate": 0.01}
MEMORY = 1e-6  # GB, less than the records need


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Return a folder of arrays, which stay there."""
  digits = mixdef.load("digits").select(np.arange(300))
  place = tmp_path / "pictures"
  place.mkdir()
  parts = {"x": digits.x[:240], "y": digits.y[:240]}
  held_out = {"x_test": digits.x[240:], "y_test": digits.y[240:]}
  for name, array in {**parts, **held_out}.items():
    np.save(place / f"{name}.npy", array)
  monkeypatch.setattr(arrays, "_MAPPED", 1000)
  return str(place)


@pytest.fixture
def blocks(monkeypatch):
  """Count the blocks of records that trainings read."""
  read, found = streaming._read, []

  def noted(*args):
    found.append(1)
    return read(*args)

  monkeypatch.setattr(streaming, "_read", noted)
  return found


@pytest.mark.slow
def test_train_streams_and_gives_the_model_of_resident_records(
  folder, tmp_path, monkeypatch, blocks
):
  settings = train.JOB.settings(dataset=folder, **SMALL)
  resident = job.execute(settings, tmp_path / "resident", train.run)
  assert not blocks
  monkeypatch.setattr(strategy, "memory_budget", lambda memory_gb: 1e9 * MEMORY)
  streamed = job.execute(settings, tmp_path / "streamed", train.run)
  assert blocks
  for result in (resident, streamed):
    del result["seconds"]
  assert streamed == resident


@pytest.mark.slow
def test_an_audit_streams_and_finds_what_it_finds_on_resident_records(
  folder, tmp_path, blocks
):
  how = {"dataset": folder, "num_shadows": 4, "strategy": "loop", "quick": True}
  how |= {**SMALL, "canaries": "mislabelled:20"}
  reports = {}
  for name, more in (("resident", {}), ("streamed", {"memory_gb": MEMORY})):
    settings = audit.JOB.settings(**how, **more)
    job.execute(settings, tmp_path / name, audit.run)
    reports[name] = np.load(tmp_path / name / "scores.npz")
    assert (tmp_path / name / "report.html").exists()
    assert bool(blocks) == (name == "streamed")
  streamed, resident = reports["streamed"], reports["resident"]
  assert set(streamed.files) == set(resident.files)
  for name in resident.files:
    np.testing.assert_allclose(streamed[name], resident[name], atol=1e-4, err_msg=name)

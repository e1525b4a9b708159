import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from mixdef.data import load


def test_pitfall_83_lfw_pixels_are_scaled_once(tmp_path):
  home = tmp_path / "lfw_home"
  for person, level, count in (("Ann_A", 100, 40), ("Bob_B", 200, 41), ("Eve_E", 9, 3)):
    folder = home / "lfw_funneled" / person
    folder.mkdir(parents=True)
    for i in range(1, count + 1):
      face = PIL.Image.new("RGB", (250, 250), (level, level, level))
      face.save(folder / f"{person}_{i:04d}.jpg")
  for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
    (home / name).write_text("")
  data = load("lfw", data_dir=tmp_path)
  assert (data.x.shape, data.x.dtype) == ((81, 125, 94, 1), np.float32)
  assert np.bincount(data.y).tolist() == [40, 41]
  np.testing.assert_allclose(data.x[data.y == 0], 100 / 255, atol=1e-6)
  np.testing.assert_allclose(data.x[data.y == 1], 200 / 255, atol=1e-6)


def test_missing_faces_are_one_line(tmp_path, monkeypatch):
  def offline(**kwargs):
    raise OSError("no route to host")

  monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", offline)
  with pytest.raises(
    FileNotFoundError, match=r"lfw_home needs lfw_funneled/.*no route"
  ):
    load("lfw", data_dir=tmp_path)

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from mixdef.data import CATALOGUE, load

PEOPLE = (("Ann_A", 100, 40), ("Bob_B", 200, 41), ("Eve_E", 9, 3))


def write(data_dir, people=PEOPLE, *, mode="RGB", size=(250, 250)):
  home = data_dir / "lfw_home"
  home.mkdir()
  for person, level, count in people:
    folder = home / "lfw_funneled" / person
    folder.mkdir(parents=True)
    face = PIL.Image.new("L", size, level).convert(mode)
    for i in range(1, count + 1):
      face.save(folder / f"{person}_{i:04d}.jpg")
  for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
    (home / name).write_text("")
  return home


def read(data_dir):
  return CATALOGUE["lfw"](data_dir, num_records=81)


def test_pitfall_83_lfw_pixels_are_scaled_once(tmp_path):
  write(tmp_path)
  data = read(tmp_path)
  assert (data.x.shape, data.x.dtype) == ((81, 125, 94, 1), np.float32)
  assert np.bincount(data.y).tolist() == [40, 41]
  np.testing.assert_allclose(data.x[data.y == 0], 100 / 255, atol=1e-6)
  np.testing.assert_allclose(data.x[data.y == 1], 200 / 255, atol=1e-6)


def refused(data_dir, message):
  with pytest.raises(ValueError, match=message) as caught:
    read(data_dir)
  assert str(caught.value).startswith(str(data_dir / "lfw_home"))
  assert "\n" not in str(caught.value)


def test_pitfall_151_smaller_faces_never_pass_for_lfw(tmp_path):
  write(tmp_path, size=(64, 64))
  refused(
    tmp_path,
    r"_\d+.jpg is not an image of LFW: it has 64 x 64 x 3 pixels, not 250 x 250",
  )


def test_pitfall_151_files_that_are_no_pictures_are_named(tmp_path):
  home = write(tmp_path)
  (home / "lfw_funneled" / "Bob_B" / "Bob_B_0007.jpg").write_text("<html>")
  refused(tmp_path, r"Bob_B_0007.jpg is damaged: cannot identify")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"people": PEOPLE[2:]}, "people with at least 40 images have 0 in total, not 81"),
    ({"people": PEOPLE[1:]}, "people with at least 40 images have 41 in total, not 81"),
    (
      {"mode": "L"},
      "is not an image of LFW: it has 250 x 250 pixels, not 250 x 250 x 3",
    ),
  ],
)
def test_pitfall_151_other_faces_under_the_right_names_are_named(
  tmp_path, options, message
):
  write(tmp_path, **options)
  refused(tmp_path, message)


def test_pitfall_151_an_archive_that_is_none_is_named(tmp_path):
  (write(tmp_path, ()) / "lfw-funneled.tgz").write_text("<html>")
  refused(tmp_path, "lfw_home is damaged: not a gzip file")


def test_missing_faces_are_one_line(tmp_path, monkeypatch):
  def offline(**kwargs):
    raise OSError("no route to host")

  monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", offline)
  with pytest.raises(
    FileNotFoundError, match=r"lfw_home needs lfw_funneled/.*no route"
  ):
    load("lfw", data_dir=tmp_path)


def test_lfw_is_what_scikit_learn_reads(tmp_path):
  home = write(tmp_path, ())
  random = np.random.default_rng(0)
  # In scikit-learn's order A_B stands before AB.
  for person in ("AB", "A_B"):
    folder = home / "lfw_funneled" / person
    folder.mkdir(parents=True)
    for i in range(40):
      pixels = random.integers(0, 256, (25, 25, 3), dtype=np.uint8)
      face = PIL.Image.fromarray(np.kron(pixels, np.ones((10, 10, 1), np.uint8)))
      face.save(folder / f"{person}_{i:04d}.jpg")
  wanted = sklearn.datasets.fetch_lfw_people(
    data_home=str(tmp_path), min_faces_per_person=40, resize=1.0
  )
  (home / "lfw_funneled" / ".DS_Store").write_text("")
  (home / "lfw_funneled" / "AB" / "._AB_0001.jpg").write_text("")
  data = CATALOGUE["lfw"](tmp_path, num_records=80)
  np.testing.assert_array_equal(data.y, wanted.target)
  np.testing.assert_allclose(data.x[..., 0], wanted.images, atol=1e-6)

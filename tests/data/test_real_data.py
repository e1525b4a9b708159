"""The real sets are what their readers and the notes say they are."""

import csv
import functools
import hashlib

import numpy as np
import pytest

from mixdef.data import load
from mixdef.data.idx import NAMES

# name: file, shape, number of test records, smallest and largest class, digest.
SETS = {
  "mnist": (
    *(f"mnist/{NAMES[0]}", (60_000, 28, 28, 1), 10_000),
    *((5421, 6742), "bab833be44432887"),
  ),
  "fashion_mnist": (
    *(f"fashion_mnist/{NAMES[0]}", (60_000, 28, 28, 1), 10_000),
    *((6000, 6000), "09627107dde20800"),
  ),
  "cifar10": (
    *("cifar10/train_0.webp", (50_000, 32, 32, 3), 10_000),
    *((5000, 5000), "94d3637420ad9561"),
  ),
  "celeba64": (
    *("celeba64/train.webp", (5_120, 64, 64, 3), 1_280),
    *((2135, 2985), "eea9fda98457a47f"),
  ),
  "lfw62": (
    *("lfw62/train.png", (2_442, 64, 64, 1), 581),
    *((16, 424), "edc2a5e657e17be5"),
  ),
  "location30": (
    *("location30.npz", (5_010, 446), 0),
    *((97, 308), "8a403cd8a3c1d818"),
  ),
  "diabetes130_top100dx": (
    *("diabetes130_top100dx.npz", (62_011, 736), 0),
    *((98, 5805), "ff495c9ae959732e"),
  ),
  "mimic3_demo": (
    *("mimic3_demo/DIAGNOSES_ICD.csv", (100, 275), 0),
    *((40, 60), "11382009e65f19f6"),
  ),
}
read = functools.cache(lambda name, folder: load(name, data_dir=folder))


@pytest.fixture(scope="module", autouse=True)
def _forget():
  yield
  read.cache_clear()


@pytest.fixture
def real(real_data):
  return lambda name: read(name, real_data(SETS[name][0]))


def digest(data):
  state = hashlib.sha256()
  for part in (data, data.test):
    if part is not None:
      state.update(np.ascontiguousarray(part.x.astype(np.uint8)))
      state.update(part.y)
  return state.hexdigest()[:16]


@pytest.mark.parametrize("name", SETS)
def test_a_real_set_is_the_known_one(real, name):
  data = real(name)
  _, shape, num_test, sizes, known = SETS[name]
  assert (data.name, data.x.shape) == (name, shape)
  assert data.x.dtype == (np.float32 if len(shape) == 2 else np.uint8)
  assert (len(data.test) if data.test else 0) == num_test
  counts = np.bincount(data.y, minlength=data.num_classes)
  assert (counts.min(), counts.max()) == sizes
  if data.x.dtype == np.float32:
    assert set(np.unique(data.x)) == {0, 1}
  assert digest(data) == known


@pytest.mark.parametrize(
  ("name", "first"),
  [
    ("mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    ("fashion_mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
    ("cifar10", [6, 9, 9, 4, 1, 1]),
    ("location30", [29, 26, 15]),
    ("diabetes130_top100dx", [6, 0, 1]),
  ],
)
def test_the_first_labels_are_the_published_ones(real, name, first):
  assert real(name).y[: len(first)].tolist() == first


def test_cifar10_shows_the_frog_first_and_is_balanced(real):
  data = real("cifar10")
  assert data.x[0, 0, 0].tolist() == [59, 62, 63]
  assert (np.bincount(data.test.y) == 1000).all()


@pytest.mark.parametrize("name", ["celeba64", "lfw62"])
def test_a_mean_face_is_symmetric(real, name):
  mean = real(name).x.mean(axis=(0, 3))
  assert np.corrcoef(mean.ravel(), mean[:, ::-1].ravel())[0, 1] > 0.95
  if name == "celeba64":
    assert np.corrcoef(mean.ravel(), mean[::-1].ravel())[0, 1] < 0.8


def test_lfw62_has_the_people_with_twenty_images(real):
  data = real("lfw62")
  sizes = np.bincount(data.y, minlength=62) + np.bincount(data.test.y, minlength=62)
  # George W. Bush, class 14, has most by far.
  assert (sizes.min() >= 20, int(sizes.argmax()), sizes.size) == (True, 14, 62)


@pytest.mark.parametrize("kind", ["fashion_mnist", "mnist"])
def test_files_of_the_sister_set_are_refused(real_data, tmp_path, kind):
  name = {"mnist": "fashion_mnist", "fashion_mnist": "mnist"}[kind]
  (tmp_path / name).symlink_to(real_data(SETS[kind][0]) / kind)
  with pytest.raises(ValueError, match=f"holds {kind}, not {name}"):
    load(name, data_dir=tmp_path)


def test_the_demo_of_mimic_is_counted_alike_by_other_means(real, real_data):
  data, folder = real("mimic3_demo"), real_data(SETS["mimic3_demo"][0])
  assert data.x.any(axis=0).all()
  # A naive count of distinct pairs (patient, code).
  tables = []
  for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
    with (folder / "mimic3_demo" / f"{name}.csv").open() as file:
      rows = csv.DictReader(
        line.lower() if i == 0 else line for i, line in enumerate(file)
      )
      tables.append(list(rows))
  patient = {row["hadm_id"]: row["subject_id"] for row in tables[0]}
  pairs = {
    (
      patient[row["hadm_id"]],
      row["icd9_code"][: 4 if row["icd9_code"][0] == "E" else 3],
    )
    for row in tables[1]
  }
  assert (data.x.sum(), data.x.shape[1]) == (len(pairs), len({c for _, c in pairs}))
  dead = {row["subject_id"] for row in tables[0] if row["hospital_expire_flag"] == "1"}
  assert data.y.sum() == len(dead)

import logging
import tarfile

import numpy as np
import pytest

from mixdef.data import CATALOGUE, load

LABELS = np.array([1, 100, 7, 1, 42])


def features(width, seed=0):
  return np.random.default_rng(seed).integers(0, 2, (len(LABELS), width))


def read(data_dir, name="texas100"):
  return CATALOGUE[name](data_dir, num_records=len(LABELS))


def write_texts(folder, x, labels=LABELS):
  folder.mkdir(parents=True, exist_ok=True)
  np.savetxt(folder / "feats", x, "%d", ",")
  np.savetxt(folder / "labels", labels, "%d")


def pack(archive, folder, name):
  with tarfile.open(archive, "w:gz") as tar:
    tar.add(folder, name)


def texts(root, x):
  write_texts(root / "texas" / "100", x)


def texts_in_a_folder_of_the_name(root, x):
  write_texts(root / "texas100", x)


def archive(root, x):
  write_texts(root / "elsewhere", x)
  pack(root / "dataset_texas.tgz", root / "elsewhere", "texas/100")


def one_hot(root, x):
  labels = np.eye(100)[LABELS - 1]
  np.savez(root / "texas100.npz", features=x.astype(float), labels=labels)


def from_one(root, x):
  np.savez(root / "texas100.npz", features=x.astype(bool), labels=LABELS)


def from_zero(root, x):
  (root / "texas100").mkdir()
  labels = (LABELS - 1).astype(np.uint8)
  np.savez(root / "texas100" / "texas100.npz", features=x, labels=labels)


WRITERS = [
  *(texts, texts_in_a_folder_of_the_name, archive),
  *(one_hot, from_one, from_zero),
]


@pytest.mark.parametrize("width", [6168, 6169])
@pytest.mark.parametrize("write", WRITERS)
def test_pitfall_152_texas_of_either_width_loads_and_is_reported(
  tmp_path, caplog, write, width
):
  x = features(width)
  write(tmp_path, x)
  logger = logging.getLogger("absl")
  logger.addHandler(caplog.handler)
  try:
    with caplog.at_level(logging.INFO, logger="absl"):
      data = read(tmp_path)
  finally:
    logger.removeHandler(caplog.handler)
  assert f"texas100: 5 records of {width} features in {tmp_path}" in caplog.text
  assert (data.x.dtype, data.num_classes, data.test) == (np.float32, 100, None)
  assert data.name == "texas100"
  np.testing.assert_array_equal(data.x, x)
  np.testing.assert_array_equal(data.y, LABELS - 1)


@pytest.mark.parametrize("width", [600, 736, 6167, 6170])
@pytest.mark.parametrize("write", WRITERS)
def test_pitfall_152_no_other_width_passes_for_texas(tmp_path, write, width):
  write(tmp_path, features(width))
  message = rf"{tmp_path}.* is not texas100: .*\(5, {width}\).* 6168 or 6169\]$"
  with pytest.raises(ValueError, match=message):
    read(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_purchase_has_its_label_first(tmp_path, packed):
  x = features(600)
  text = tmp_path / "dataset_purchase"
  np.savetxt(text, np.column_stack([LABELS, x]), "%d", ",")
  if packed:
    pack(tmp_path / "dataset_purchase.tgz", text, "dataset_purchase")
    text.unlink()
  data = read(tmp_path, "purchase100")
  np.testing.assert_array_equal(data.x, x)
  np.testing.assert_array_equal(data.y, LABELS - 1)
  assert (data.name, data.num_classes) == ("purchase100", 100)


def test_missing_files_are_named(tmp_path):
  for name, archive_name, contents in (
    ("texas100", "dataset_texas.tgz", "labels and feats"),
    ("purchase100", "dataset_purchase.tgz", "dataset_purchase"),
  ):
    with pytest.raises(FileNotFoundError) as caught:
      load(name, data_dir=tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    for part in (f"{name}.npz", archive_name, contents, str(tmp_path)):
      assert part in line
  texts(tmp_path, features(6169))
  (tmp_path / "texas" / "100" / "labels").unlink()
  with pytest.raises(FileNotFoundError, match=r"texas/100 lacks labels; put all 2"):
    read(tmp_path)


def change(place, value):
  x = features(6169)
  x[place] = value
  return x


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({"features": features(6169)}, "no array 'labels'"),
    ({"features": change((2, 9), 3), "labels": LABELS}, "feature 9 of record 2 is 3"),
    ({"features": np.zeros(6169), "labels": LABELS}, r"shape \(6169,\)"),
    ({"features": np.zeros((0, 6169)), "labels": LABELS}, r"shape \(0, 6169\)"),
    (
      {"features": features(6169)[:4], "labels": LABELS[:4]},
      "it has 4 records, not 5; put the official file there",
    ),
    (
      {"features": features(6169), "labels": (LABELS + 1) // 2},
      "is not texas100: it has 50 classes, not 100",
    ),
    ({"features": features(6169), "labels": LABELS[:4]}, "5 records but y has 4"),
    ({"features": features(6169) + 0j, "labels": LABELS}, "have type complex128"),
    ({"features": features(6169).astype("V8"), "labels": LABELS}, "have type |V8"),
    ({"features": features(6169).astype(str), "labels": LABELS}, "have type <U21"),
    ({"features": features(6169), "labels": LABELS / 2}, "type float64"),
    (
      {"features": features(6169), "labels": LABELS + 1},
      r"labels\[1\] is 101; labels run from 1 to 100",
    ),
    (
      {"features": features(6169), "labels": LABELS * (LABELS != 7)},
      r"labels\[1\] is 100; labels run from 0 to 99",
    ),
    (
      {"features": features(6169), "labels": np.eye(30)[:5]},
      r"labels \(5, 30\) are not one-hot rows of 100 classes",
    ),
    ({"features": features(6169), "labels": np.ones((5, 100))}, "not one-hot rows"),
    ({"features": features(6169), "labels": np.full((5, 100), "0")}, "not one-hot"),
  ],
)
def test_a_wrong_npz_is_named(tmp_path, content, message):
  path = tmp_path / "texas100.npz"
  np.savez(path, **content)
  with pytest.raises(ValueError, match=f"^{path}.*{message}") as caught:
    read(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("feats", "<html>\n<p>\n", "feats is damaged: could not convert"),
    ("feats", "", "feats is damaged"),
    ("feats", "0,1\n1\n", "feats is damaged: the number of columns changed"),
    ("labels", "1\n2\n", "100 is damaged: its files have 2 and 5 rows"),
    ("labels", "1,0\n" * 5, r"is not texas100: .*\(5, 6170\)"),
    ("labels", "300\n" * 5, "labels is damaged: could not convert string '300'"),
    ("labels", "101\n" * 5, r"labels\[0\] is 101"),
  ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_text_is_named(tmp_path, name, content, message, packed):
  folder = tmp_path / "texas" / "100"
  write_texts(folder, features(6169))
  (folder / name).write_text(content)
  if packed:
    pack(tmp_path / "dataset_texas.tgz", folder, "texas/100")
    for text in folder.iterdir():
      text.unlink()
    message = message.replace("100 is damaged", "dataset_texas.tgz is damaged")
  with pytest.raises(ValueError, match=message) as caught:
    read(tmp_path)
  assert str(caught.value).startswith(str(tmp_path))
  assert "\n" not in str(caught.value)


def test_a_wrong_archive_is_named(tmp_path):
  path = tmp_path / "dataset_texas.tgz"
  write_texts(tmp_path / "elsewhere", features(6169))
  pack(path, tmp_path / "elsewhere", "texas/10")
  with pytest.raises(
    ValueError, match=r"texas.tgz is damaged: .*texas/100/labels; put"
  ):
    read(tmp_path)
  pack(path, tmp_path / "elsewhere", "texas/100")
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(ValueError, match=r"texas.tgz is damaged"):
    read(tmp_path)
  path.write_bytes(b"<html>")
  with pytest.raises(ValueError, match=r"texas.tgz is damaged"):
    read(tmp_path)
  pack(path, tmp_path, "texas/100/labels")
  with pytest.raises(ValueError, match=r"100/labels is a folder, not a text file"):
    read(tmp_path)

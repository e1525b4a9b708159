import gzip
import struct

import numpy as np
import pytest

from mixdef.data import load
from mixdef.data.idx import NAMES


def _encode(array):
  header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
  return header + array.astype(np.uint8).tobytes()


def _write(folder, *, compress=True, train=12, test=5):
  folder.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng(0)
  arrays = []
  for count in (train, test):
    arrays.append(random.integers(0, 256, (count, 4, 3)))
    arrays.append(np.arange(count) % 10)
  for name, array in zip(NAMES, arrays, strict=True):
    raw = _encode(array)
    if compress:
      (folder / name).write_bytes(gzip.compress(raw))
    else:
      (folder / name.removesuffix(".gz")).write_bytes(raw)
  return arrays


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_the_four_official_files(tmp_path, name, compress, inside):
  x, y, test_x, test_y = _write(
    tmp_path / name if inside else tmp_path, compress=compress
  )
  data = load(name, data_dir=tmp_path)
  assert (data.x.shape, data.x.dtype) == ((12, 4, 3, 1), np.uint8)
  np.testing.assert_array_equal(data.x[..., 0], x)
  np.testing.assert_array_equal(data.y, y)
  np.testing.assert_array_equal(data.test.x[..., 0], test_x)
  np.testing.assert_array_equal(data.test.y, test_y)
  assert (data.num_classes, data.name) == (10, name)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
  _write(tmp_path / "mnist")
  monkeypatch.setenv("MIXDEF_DATA", str(tmp_path))
  assert len(load("mnist")) == 12


def _cut_gzip(path):
  path.write_bytes(path.read_bytes()[:-20])


def _cut_payload(path):
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))


def _no_gzip(path):
  path.write_bytes(b"<html>not found</html>")


def _empty(path):
  path.write_bytes(gzip.compress(b""))


@pytest.mark.parametrize("harm", [_cut_gzip, _cut_payload, _no_gzip, _empty])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named(tmp_path, name, harm):
  _write(tmp_path / "mnist")
  harm(tmp_path / "mnist" / name)
  with pytest.raises(ValueError, match=f"{name} is damaged") as caught:
    load("mnist", data_dir=tmp_path)
  assert "\n" not in str(caught.value)


def test_images_in_place_of_labels_are_named(tmp_path):
  _write(tmp_path)
  (tmp_path / NAMES[1]).write_bytes((tmp_path / NAMES[0]).read_bytes())
  with pytest.raises(ValueError, match="starts with 00000803, not 00000801"):
    load("mnist", data_dir=tmp_path)


def test_labels_of_another_length_are_named(tmp_path):
  _write(tmp_path)
  (tmp_path / NAMES[1]).write_bytes(gzip.compress(_encode(np.zeros(3))))
  with pytest.raises(ValueError, match=f"{NAMES[1]} holds 3 labels for 12 images"):
    load("mnist", data_dir=tmp_path)


def test_pitfall_151_other_images_under_the_right_names_are_named(tmp_path):
  _write(tmp_path)
  # The letters of EMNIST come in files of the same names, with labels 1 to 26.
  (tmp_path / NAMES[3]).write_bytes(gzip.compress(_encode(np.arange(1, 6) * 5)))
  with pytest.raises(ValueError, match=rf"{NAMES[3]}\[4\] is 25 but num_classes is 10"):
    load("mnist", data_dir=tmp_path)
  _write(tmp_path)
  (tmp_path / NAMES[2]).write_bytes(gzip.compress(_encode(np.zeros((5, 4, 4)))))
  with pytest.raises(ValueError, match=rf"^{tmp_path}: test x holds uint8 \(4, 4, 1\)"):
    load("mnist", data_dir=tmp_path)
  (tmp_path / NAMES[0]).write_bytes(gzip.compress(_encode(np.zeros((0, 4, 3)))))
  with pytest.raises(ValueError, match=rf"{NAMES[0]} is damaged: .* holds no record"):
    load("mnist", data_dir=tmp_path)


def test_a_missing_file_is_named(tmp_path):
  _write(tmp_path)
  (tmp_path / NAMES[3]).unlink()
  with pytest.raises(FileNotFoundError, match=f"lacks {NAMES[3]}; put all 4 files"):
    load("mnist", data_dir=tmp_path)


def test_one_set_is_not_taken_for_the_other(tmp_path):
  _write(tmp_path)
  labels = np.array([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5])
  (tmp_path / NAMES[1]).write_bytes(gzip.compress(_encode(labels)))
  assert len(load("mnist", data_dir=tmp_path)) == 12
  with pytest.raises(ValueError, match="holds mnist, not fashion_mnist"):
    load("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
  ("name", "first", "counts"),
  [
    ("mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], (5421, 6742)),
    ("fashion_mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], (6000, 6000)),
  ],
)
def test_real_files(real_data, name, first, counts):
  data = load(name, data_dir=real_data(f"{name}/{NAMES[0]}"))
  assert (data.x.shape, data.x.dtype) == ((60_000, 28, 28, 1), np.uint8)
  assert data.test.x.shape == (10_000, 28, 28, 1)
  assert data.y[:10].tolist() == first
  sizes = np.bincount(data.y)
  assert (sizes.min(), sizes.max()) == counts

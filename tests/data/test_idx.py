import gzip
import hashlib
import struct

import numpy as np
import pytest

from mixdef.data import CATALOGUE, load
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


def read(data_dir, name="mnist", digests=None):
  return CATALOGUE[name](data_dir, digests=digests or {})


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_the_four_official_files(tmp_path, name, compress, inside):
  x, y, test_x, test_y = _write(
    tmp_path / name if inside else tmp_path, compress=compress
  )
  data = read(tmp_path, name)
  assert (data.x.shape, data.x.dtype) == ((12, 4, 3, 1), np.uint8)
  np.testing.assert_array_equal(data.x[..., 0], x)
  np.testing.assert_array_equal(data.y, y)
  np.testing.assert_array_equal(data.test.x[..., 0], test_x)
  np.testing.assert_array_equal(data.test.y, test_y)
  assert (data.num_classes, data.name) == (10, name)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
  _write(tmp_path / "mnist")
  monkeypatch.setenv("MIXDEF_DATA", str(tmp_path))
  with pytest.raises(
    ValueError, match=f"^{tmp_path}/mnist/{NAMES[0]} is not the offic"
  ):
    load("mnist")


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
    read(tmp_path)
  (tmp_path / NAMES[0]).write_bytes(gzip.compress(_encode(np.zeros((0, 4, 3)))))
  with pytest.raises(ValueError, match=rf"{NAMES[0]} is damaged: .* has no record"):
    load("mnist", data_dir=tmp_path)


def test_a_missing_file_is_named(tmp_path):
  _write(tmp_path)
  (tmp_path / NAMES[3]).unlink()
  with pytest.raises(FileNotFoundError, match=f"lacks {NAMES[3]}; put all 4 files"):
    load("mnist", data_dir=tmp_path)


def digests(folder):
  return tuple(
    hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest()
    for name in NAMES
  )


def test_one_set_is_not_taken_for_the_other(tmp_path):
  for name in ("mnist", "fashion_mnist"):
    _write(tmp_path / name, train=12 if name == "mnist" else 14)
  known = {name: digests(tmp_path / name) for name in ("mnist", "fashion_mnist")}
  assert len(read(tmp_path, "mnist", known)) == 12
  assert len(read(tmp_path, "fashion_mnist", known)) == 14
  with pytest.raises(
    ValueError, match="holds mnist, not fashion_mnist: it is train-im"
  ):
    read(tmp_path / "mnist", "fashion_mnist", known)


def test_content_that_is_not_the_official_one_is_named(tmp_path):
  _write(tmp_path)
  known = {"mnist": digests(tmp_path)}
  raw = bytearray(gzip.decompress((tmp_path / NAMES[2]).read_bytes()))
  raw[30] ^= 1
  (tmp_path / NAMES[2]).write_bytes(gzip.compress(bytes(raw)))
  with pytest.raises(
    ValueError, match=f"{NAMES[2]} is not the official file of mnist: SHA-256"
  ):
    read(tmp_path, digests=known)


def test_files_that_swapped_their_names_are_told(tmp_path):
  _write(tmp_path)
  known = {"mnist": digests(tmp_path)}
  for one, two in ((0, 2), (1, 3)):
    first, second = ((tmp_path / NAMES[i]).read_bytes() for i in (one, two))
    (tmp_path / NAMES[one]).write_bytes(second)
    (tmp_path / NAMES[two]).write_bytes(first)
  with pytest.raises(ValueError, match="is t10k-images-idx3-ubyte; restore"):
    read(tmp_path, digests=known)


@pytest.mark.parametrize("place", ["MNIST/raw", "mnist", "mnist/raw"])
@pytest.mark.parametrize("dots", [True, False])
def test_layouts_of_other_libraries_are_found(tmp_path, place, dots):
  _write(tmp_path)
  (tmp_path / place).mkdir(parents=True)
  for name in NAMES:
    other = name.replace("-idx", ".idx") if dots else name
    (tmp_path / name).rename(tmp_path / place / other)
  assert len(read(tmp_path)) == 12


def test_files_in_folders_of_their_names_are_found(tmp_path):
  _write(tmp_path, compress=False)
  for name in NAMES:
    kept = (tmp_path / name.removesuffix(".gz")).rename(tmp_path / "kept")
    folder = tmp_path / "mnist" / kept.with_name(name.removesuffix(".gz")).name
    folder.mkdir(parents=True)
    kept.rename(folder / folder.name)
  assert len(read(tmp_path)) == 12


def test_bytes_behind_the_end_of_a_compressed_file_are_told(tmp_path):
  _write(tmp_path)
  path = tmp_path / NAMES[0]
  path.write_bytes(path.read_bytes() + b"garbage")
  with pytest.raises(ValueError, match=f"^{path} is damaged: Not a gzipped file"):
    read(tmp_path)

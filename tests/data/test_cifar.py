import logging

import numpy as np
import PIL.Image
import pytest

from mixdef.data import CATALOGUE, counts, load
from mixdef.data.cifar import CIFAR10_NAMES, CIFAR100_NAMES


def _records(count, label_bytes, seed):
  random = np.random.default_rng(seed)
  planes = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
  # As officially, all classes have as many records: 10 classes, or 100 fine ones.
  fine = (
    random.permutation(count) if label_bytes == 2 else seed * count + np.arange(count)
  )
  labels = random.integers(0, 10, (count, label_bytes), dtype=np.uint8)
  labels[:, -1] = fine % 10**label_bytes
  return planes, labels


def _write_binary(folder, names, label_bytes, counts):
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for seed, (name, count) in enumerate(zip(names, counts, strict=True)):
    planes, labels = _records(count, label_bytes, seed)
    rows = np.concatenate([labels, planes.reshape(count, -1)], axis=1)
    (folder / name).write_bytes(rows.tobytes())
    written.append((planes, labels))
  return written


def write10(folder):
  return _write_binary(folder, CIFAR10_NAMES, 1, (2,) * 5 + (10,))


def write100(folder):
  return _write_binary(folder, CIFAR100_NAMES, 2, (200, 100))


def read10(data_dir, num_records=(10, 10), content=None):
  return CATALOGUE["cifar10"](data_dir, num_records=num_records, content=content)


def read100(data_dir):
  return CATALOGUE["cifar100"](data_dir, num_records=(200, 100))


@pytest.mark.parametrize(
  "folder",
  [
    "cifar10",
    "cifar-10-batches-bin",
    "cifar10/cifar-10-batches-bin",
    "CIFAR10",
    ".",
  ],
)
def test_reads_the_official_batches_in_order(tmp_path, folder):
  written = write10(tmp_path / folder)
  data = read10(tmp_path)
  assert (data.x.shape, data.x.dtype) == ((10, 32, 32, 3), np.uint8)
  assert (len(data.test), data.num_classes) == (10, 10)
  for i in range(10):
    planes, labels = written[i // 2]
    for channel in range(3):
      np.testing.assert_array_equal(data.x[i, :, :, channel], planes[i % 2, channel])
    assert data.y[i] == labels[i % 2, 0]


def test_cifar100_takes_the_fine_label(tmp_path):
  written = write100(tmp_path / "cifar-100-binary")
  data = read100(tmp_path)
  np.testing.assert_array_equal(data.y, written[0][1][:, 1])
  np.testing.assert_array_equal(data.test.x[..., 2], written[1][0][:, 2])
  assert data.num_classes == 100


def test_a_damaged_batch_is_named(tmp_path):
  write10(tmp_path / "cifar10")
  path = tmp_path / "cifar10" / "data_batch_3.bin"
  raw = path.read_bytes()
  path.write_bytes(raw[:-1])
  with pytest.raises(ValueError, match=r"data_batch_3.bin is damaged: 6145 bytes"):
    read10(tmp_path)
  path.write_bytes(bytes([200]) + raw[1:])
  with pytest.raises(ValueError, match=r"data_batch_3.bin .* record 0 has label 200"):
    read10(tmp_path)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3.bin"):
    read10(tmp_path)


def test_a_batch_that_lost_whole_records_is_named(tmp_path):
  write10(tmp_path / "cifar10")
  with pytest.raises(
    ValueError, match=r"data_batch_1.bin .*: it has 2 records, not 10,000"
  ):
    load("cifar10", data_dir=tmp_path)
  path = tmp_path / "cifar10" / "test_batch.bin"
  path.write_bytes(path.read_bytes()[:-3073])
  with pytest.raises(ValueError, match=r"test_batch.bin .*: it has 9 records, not 10"):
    read10(tmp_path)


def test_a_batch_in_the_place_of_another_is_told(tmp_path):
  write10(tmp_path / "cifar10")
  first = (tmp_path / "cifar10" / "data_batch_1.bin").read_bytes()
  (tmp_path / "cifar10" / "data_batch_4.bin").write_bytes(first)
  with pytest.raises(
    ValueError, match=r"0 training records are of class 6 and 2 of class 0.*each off"
  ):
    read10(tmp_path)


def test_one_cifar_is_not_taken_for_the_other(tmp_path):
  folder = tmp_path / "cifar100"
  write10(folder)
  with pytest.raises(
    FileNotFoundError, match=r"cifar100.*it contains data_batch_1.bin, "
  ):
    read100(tmp_path)
  for new, old in zip(CIFAR100_NAMES, CIFAR10_NAMES, strict=False):
    (folder / old).rename(folder / new)
  with pytest.raises(
    ValueError, match=r"train.bin has records of 3073 .* like cifar10"
  ):
    read100(tmp_path)


def _write_sheets(folder, suffix):
  """Write sheets of one row of 100 tiles; the test sheet is padded by 30."""
  folder.mkdir(parents=True)
  random = np.random.default_rng(0)
  tiles = random.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
  for i, stem in enumerate([*(f"train_{i}" for i in range(5)), "test"]):
    sheet = np.concatenate(list(tiles[100 * i : 100 * (i + 1)]), axis=1)
    PIL.Image.fromarray(sheet).save(folder / f"{stem}.{suffix}", lossless=True)
  labels = random.integers(0, 10, 570).astype(np.uint8)
  np.savez(folder / "labels.npz", train=labels[:500], test=labels[500:])
  return tiles[:570], labels


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_reads_lossless_sheets(tmp_path, suffix):
  tiles, labels = _write_sheets(tmp_path / "cifar10", suffix)
  data = read10(tmp_path, (500, 70))
  np.testing.assert_array_equal(data.x, tiles[:500])
  np.testing.assert_array_equal(data.test.x, tiles[500:])
  np.testing.assert_array_equal(np.concatenate([data.y, data.test.y]), labels)


def test_a_damaged_sheet_is_named(tmp_path):
  folder = tmp_path / "cifar10"
  _write_sheets(folder, "webp")
  whole = (folder / "train_2.webp").read_bytes()
  (folder / "train_2.webp").write_bytes(whole[:1000])
  with pytest.raises(ValueError, match=r"train_2.webp is damaged"):
    load("cifar10", data_dir=tmp_path)
  PIL.Image.new("RGB", (3200, 33)).save(folder / "train_2.webp", lossless=True)
  with pytest.raises(ValueError, match=r"train_2.webp is 33 x 3200 pixels"):
    load("cifar10", data_dir=tmp_path)
  PIL.Image.new("RGB", (3200, 64)).save(folder / "train_2.webp", lossless=True)
  with pytest.raises(ValueError, match="holds 600 train tiles for 500 labels"):
    load("cifar10", data_dir=tmp_path)


def test_damaged_labels_are_named(tmp_path):
  folder = tmp_path / "cifar10"
  _write_sheets(folder, "png")
  (folder / "labels.npz").write_bytes(b"nothing")
  with pytest.raises(ValueError, match=r"labels.npz is damaged"):
    load("cifar10", data_dir=tmp_path)
  np.savez(folder / "labels.npz", train=np.zeros(500, np.uint8))
  with pytest.raises(
    ValueError, match=r"labels.npz is damaged: it has no array 'test'"
  ):
    load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    (np.zeros((500, 1), np.uint8), r"y has shape \(500, 1\)"),
    (np.zeros(500), "y has type float64"),
    (np.array(3), r"y has shape \(\)"),
    (np.full(500, 10, np.uint8), r"y\[0\] is 10 but num_classes is 10"),
  ],
)
def test_pitfall_151_other_labels_under_the_right_name_are_named(
  tmp_path, labels, message
):
  folder = tmp_path / "cifar10"
  _write_sheets(folder, "png")
  np.savez(folder / "labels.npz", train=labels, test=np.zeros(70, np.uint8))
  with pytest.raises(ValueError, match=f"^{folder}/labels.npz: {message}"):
    load("cifar10", data_dir=tmp_path)


def test_pitfall_151_larger_tiles_under_the_right_name_are_named(tmp_path):
  folder = tmp_path / "cifar10"
  _write_sheets(folder, "png")
  PIL.Image.new("RGB", (64 * 64, 128)).save(folder / "train_0.png")
  with pytest.raises(ValueError, match=r"train_0.png is 128 x 4096 pixels; a sheet is"):
    load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("official", [True, False])
def test_pitfall_151_sheets_in_place_of_the_official_files_are_told(
  tmp_path, caplog, official
):
  folder = tmp_path / "cifar10"
  if official:
    write10(folder)
  else:
    _write_sheets(folder, "png")
  logger = logging.getLogger("absl")
  logger.addHandler(caplog.handler)
  try:
    with caplog.at_level(logging.INFO, logger="absl"):
      read10(tmp_path, (10, 10) if official else (500, 70))
  finally:
    logger.removeHandler(caplog.handler)
  told = f"cifar10: image sheets in {folder}, not the official files"
  assert (told in caplog.text) != official


def test_sheets_in_the_places_of_each_other_are_told(tmp_path):
  folder = tmp_path / "cifar10"
  _write_sheets(folder, "png")
  content = counts.digest(read10(tmp_path, (500, 70)))
  assert len(read10(tmp_path, (500, 70), content)) == 500
  (folder / "train_1.png").rename(folder / "kept.png")
  (folder / "train_3.png").rename(folder / "train_1.png")
  (folder / "kept.png").rename(folder / "train_3.png")
  with pytest.raises(
    ValueError, match=f"{folder}.* does not have the records of cifar10: their"
  ):
    read10(tmp_path, (500, 70), content)

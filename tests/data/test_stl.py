import numpy as np
import pytest

from mixdef.data import load, stl


def write(folder, train=10, test=20):
  """Write random images byte by byte, as their documentation says."""
  folder.mkdir()
  random = np.random.default_rng(0)
  arrays = []
  for part, count in (("train", train), ("test", test)):
    x = random.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    y = np.arange(count) % 10 + 1
    raw = b"".join(
      x[i, :, column, channel].tobytes()
      for i in range(count)
      for channel in range(3)
      for column in range(96)
    )
    (folder / f"{part}_X.bin").write_bytes(raw)
    (folder / f"{part}_y.bin").write_bytes(y.astype(np.uint8).tobytes())
    arrays += [x, y]
  return arrays


def read(data_dir):
  return stl.read(data_dir, num_records=(10, 20))


@pytest.mark.parametrize("folder", ["stl10_binary", "stl10"])
def test_images_stand_upright_and_labels_start_at_0(tmp_path, folder):
  x, y, test_x, test_y = write(tmp_path / folder)
  data = read(tmp_path)
  assert (data.name, data.num_classes, data.x.dtype) == ("stl10", 10, np.uint8)
  np.testing.assert_array_equal(data.x, x)
  np.testing.assert_array_equal(data.test.x, test_x)
  np.testing.assert_array_equal(data.y, y - 1)
  np.testing.assert_array_equal(data.test.y, test_y - 1)


def test_a_damaged_file_is_named(tmp_path):
  folder = tmp_path / "stl10_binary"
  write(folder)
  with pytest.raises(ValueError, match=r"train_X.bin .* has 10 images, not 5,000"):
    load("stl10", data_dir=tmp_path)
  (folder / "test_y.bin").write_bytes(bytes([1, 2]))
  with pytest.raises(ValueError, match=r"test_y.bin .* has 2 labels, not 20"):
    read(tmp_path)
  for label in (0, 11):
    (folder / "test_y.bin").write_bytes(bytes([1, 2, label] + [3] * 17))
    with pytest.raises(ValueError, match=rf"test_y.bin .* label 2 is {label}; labels"):
      read(tmp_path)
  (folder / "train_X.bin").write_bytes(b"<html>")
  with pytest.raises(ValueError, match=r"train_X.bin is damaged: 6 bytes.*a web page"):
    read(tmp_path)
  (folder / "train_X.bin").unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks train_X.bin; put all 4 files"):
    read(tmp_path)

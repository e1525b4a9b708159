import numpy as np
import pytest

from mixdef.data import CATALOGUE, load


def _write(path, num_features=446):
  random = np.random.default_rng(0)
  bits = random.integers(0, 2, (30, num_features), dtype=np.uint8)
  y = np.arange(30, dtype=np.uint8)
  np.savez(path, x=np.packbits(bits, axis=1), y=y, n_features=num_features)
  return bits, y


def read(data_dir):
  return CATALOGUE["location30"](data_dir, num_records=30)


@pytest.mark.parametrize("folder", [".", "location30"])
def test_unpacks_the_bits(tmp_path, folder):
  (tmp_path / folder).mkdir(exist_ok=True)
  bits, y = _write(tmp_path / folder / "location30.npz")
  data = read(tmp_path)
  assert data.x.dtype == np.float32
  np.testing.assert_array_equal(data.x, bits)
  np.testing.assert_array_equal(data.y, y)
  assert (data.num_classes, data.test) == (30, None)


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"location30.npz is missing; put it"):
    load("location30", data_dir=tmp_path)
  path = tmp_path / "location30.npz"
  _write(path)
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(ValueError, match=r"location30.npz is damaged"):
    load("location30", data_dir=tmp_path)
  np.savez(path, x=np.zeros((20, 9), np.uint8), y=np.zeros(20, int), n_features=446)
  with pytest.raises(ValueError, match="446 features pack into 56 bytes per record"):
    load("location30", data_dir=tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({"n_features": 736}, "is not location30: n_features is 736, not 446"),
    ({"n_features": [446, 736]}, "is not location30: n_features is "),
    ({"y": np.full(30, 30)}, r"y\[0\] is 30 but num_classes is 30"),
    ({"y": np.zeros((30, 30), int)}, r"y has shape \(30, 30\)"),
    ({"y": np.zeros(29, int)}, "x has 30 records but y has 29"),
    ({"y": np.arange(30) % 20}, "is not location30: it has 20 classes, not 30"),
    ({"x": np.zeros((30, 446))}, "is damaged: x is float64"),
    ({"x": np.zeros((29, 56), np.uint8)}, "it has 29 records, not 30"),
  ],
)
def test_pitfall_151_another_table_under_the_right_name_is_named(
  tmp_path, content, message
):
  path = tmp_path / "location30.npz"
  right = {"x": np.zeros((30, 56), np.uint8), "y": np.arange(30), "n_features": 446}
  np.savez(path, **right)
  assert len(read(tmp_path)) == 30
  np.savez(path, **(right | content))
  with pytest.raises(ValueError, match=f"^{path}.*{message}") as caught:
    read(tmp_path)
  assert "\n" not in str(caught.value)

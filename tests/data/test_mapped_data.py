"""Data sets whose records stay in a file: readers, and what must not load them."""

import numpy as np
import pytest

from mixdef import auditing
from mixdef.attacks.views import content_hash
from mixdef.core.mapped import MappedRecords
from mixdef.data import Dataset, duplicate_records, load
from mixdef.data.readers import arrays
from mixdef.training.signature import digest_data

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
Y = np.arange(60) % 3


@pytest.fixture
def folder(tmp_path):
  """Return a folder of records, labels and held-out records."""
  folder = tmp_path / "large"
  folder.mkdir()
  parts = {"x": X, "y": Y, "x_test": X[:9], "y_test": Y[:9]}
  for name, array in parts.items():
    np.save(folder / f"{name}.npy", array)
  return folder


@pytest.fixture
def data(folder, monkeypatch):
  """Return the data set of the folder, which stays there."""
  monkeypatch.setattr(arrays, "_MAPPED", 1000)
  return load(folder)


@pytest.fixture
def reads(monkeypatch):
  """Count the records that are read from files."""
  counts = []
  take, item = MappedRecords.take, MappedRecords.__getitem__

  def noted(read):
    def run(self, *args, **options):
      counts.append(1)
      return read(self, *args, **options)

    return run

  monkeypatch.setattr(MappedRecords, "take", noted(take))
  monkeypatch.setattr(MappedRecords, "__getitem__", noted(item))
  return counts


def test_a_folder_is_mapped_if_it_is_large(folder, data):
  small = Dataset.from_arrays(X, Y, test=(X[:9], Y[:9]))
  assert isinstance(data.x, MappedRecords)
  assert not isinstance(data.test.x, MappedRecords), "its 432 bytes are few"
  for name in ("x", "y", "ids"):
    np.testing.assert_array_equal(getattr(data, name), getattr(small, name))
  np.testing.assert_array_equal(data.test.x, X[:9])
  assert str(data).startswith("Dataset(large: 60 x (4, 4, 3) uint8, 3 classes")


def test_an_uncompressed_npz_is_mapped_at_its_place(tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, "_MAPPED", 1000)
  np.savez(tmp_path / "own.npz", y=Y, x=X)
  np.savez_compressed(tmp_path / "packed.npz", y=Y, x=X)
  data, packed = load(tmp_path / "own.npz"), load(tmp_path / "packed.npz")
  assert isinstance(data.x, MappedRecords)
  assert not isinstance(packed.x, MappedRecords)
  np.testing.assert_array_equal(data.x, X)
  np.testing.assert_array_equal(packed.x, X)


def test_examples_are_written_to_a_file_once(tmp_path):
  source = [{"image": X[i], "label": int(Y[i]), "who": f"p{i // 2}"} for i in range(60)]
  how = {"group": "who", "file": tmp_path / "made.npy", "test": source[50:]}
  data, usual = (
    Dataset.from_grain(source[:50], **how),
    Dataset.from_grain(source[:50], group="who"),
  )
  assert isinstance(data.x, MappedRecords)
  assert isinstance(data.test.x, MappedRecords)
  np.testing.assert_array_equal(data.x, usual.x)
  np.testing.assert_array_equal(data.groups, usual.groups)
  np.testing.assert_array_equal(np.load(tmp_path / "made.npy"), X[:50])
  halves = [(X[i] / 2, Y[i]) for i in range(60)]
  floats = Dataset.from_grain(halves, file=tmp_path / "f.npy")
  np.testing.assert_array_equal(floats.x, (X / 2).astype(np.float32))


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (
      [(X[0], 0), (X[0, 1:], 1)],
      r"example 1 is uint8 \(3, 4, 3\), and example 0",
    ),
    ([{"a": X[0], "b": X[0], "y": 0}], r"example 0 has 2 arrays \(a, b\); with file="),
    ([(["a", "b"], 0), (["a", "b"], 1)], "has arrays of type <U1; pass numbers"),
  ],
)
def test_examples_that_fit_no_file_are_refused(source, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    Dataset.from_grain(source, file=tmp_path / "x.npy")
  assert not list(tmp_path.iterdir()), "nothing remains"


def test_a_damaged_file_is_one_line(folder):
  whole = (folder / "x.npy").read_bytes()
  (folder / "x.npy").write_bytes(whole[:500])
  with pytest.raises(ValueError, match=r"x\.npy is not an npy file") as caught:
    load(folder)
  assert "\n" not in str(caught.value)


def test_selections_read_nothing(data, reads):
  data = Dataset(data.x, data.y, 3, groups=Y[::-1])
  held = data.hold_out(0.4).with_auxiliary(20)
  held.select(np.arange(len(held))[::-2])
  assert not reads


def test_digests_twins_and_hashes_are_those_in_memory(data):
  usual = Dataset.from_arrays(X, Y, ids=data.ids, name="large", test=(X[:9], Y[:9]))
  assert digest_data(data) == digest_data(usual.select(np.arange(60)))
  twins = duplicate_records(data, data.test)
  assert twins == duplicate_records(usual, usual.test)
  assert len(twins) == 9
  rows = np.array([8, 3, 50])
  np.testing.assert_array_equal(content_hash(data.x, rows), content_hash(X[rows]))


def test_canaries_leave_the_file_alone(data):
  usual = Dataset.from_arrays(X, Y, ids=data.ids)
  for kind in ("mislabelled", "duplicates"):
    planted = auditing.plant(data, kind, 10)
    expected = auditing.plant(usual, kind, 10)
    assert isinstance(planted.x, MappedRecords)
    np.testing.assert_array_equal(planted.x, expected.x)
    np.testing.assert_array_equal(planted.y, expected.y)
  np.testing.assert_array_equal(data.x, X)


@pytest.mark.parametrize(
  "use",
  [
    lambda data: data.standardize(),
    lambda data: auditing.plant(data, "blank", 5),
    lambda data: auditing.plant(data, "ood", 5),
  ],
)
def test_what_needs_all_records_is_refused_in_one_line(use, data):
  with pytest.raises(ValueError, match=r"needs all records in memory, .*x\.npy: "):
    use(data)

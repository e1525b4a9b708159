import numpy as np
import pytest

from mixdef.data import Dataset
from mixdef.data.duplicates import duplicate_records
from mixdef.data.synthetic import synthetic_clusters


def images(seed, count):
  random = np.random.default_rng(seed)
  x = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
  return Dataset.from_arrays(x, np.arange(count) % 3)


def test_pitfall_148_duplicates_across_splits_are_found():
  data, population, test = images(0, 60), images(1, 30), images(2, 20)
  x = [np.array(part.x) for part in (data, population, test)]
  x[1][4] = x[0][7]
  x[2][0], x[2][9] = x[0][7], x[1][11]
  parts = [Dataset.from_arrays(v, np.zeros(len(v), int)) for v in x]
  expected = [((0, 7), (1, 4)), ((0, 7), (2, 0)), ((1, 11), (2, 9))]
  assert duplicate_records(*parts) == expected


def test_duplicates_equal_a_loop_over_pairs():
  random = np.random.default_rng(0)
  x = random.integers(0, 3, (40, 3)).astype(np.float32)
  parts = [Dataset.from_arrays(v, np.zeros(20, int)) for v in (x[:20], x[20:])]
  expected = []
  for i in range(40):
    earlier = [j for j in range(i) if (x[j] == x[i]).all()]
    if earlier:
      expected.append((divmod(earlier[0], 20), divmod(i, 20)))
  assert len(expected) > 10
  assert duplicate_records(*parts) == expected


def test_splits_of_continuous_records_share_none():
  data = synthetic_clusters(200)
  assert duplicate_records(data, data.test) == []


def test_labels_are_not_compared_and_minus_zero_is_zero():
  data = Dataset.from_arrays([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]], [0, 1, 2])
  assert duplicate_records(data) == [((0, 0), (0, 1))]


def test_sets_of_different_records_are_refused():
  table = Dataset.from_arrays(np.eye(3), [0, 1, 2])
  with pytest.raises(
    ValueError, match=r"set 1 has records uint8 \(4, 4, 3\) but data set 0"
  ):
    duplicate_records(table, images(0, 5))

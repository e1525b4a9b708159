"""Synthetic sets with known leakage, as controls for attacks and defenses."""

import numpy as np

from mixdef.core.randomness import stream
from mixdef.data.dataset import Dataset


def synthetic_memorize(
  num_records: int = 1000,
  *,
  num_features: int = 20,
  num_classes: int = 4,
  num_test: int = 1000,
  seed: int = 0,
) -> Dataset:
  """Draw labels independent of the inputs, so that accuracy requires memorization.

  x ~ N(0, I), y ~ Uniform{0..K-1}, independent.

  Known leakage: every model has expected accuracy 1/K on unseen records, so its
  accuracy A on its members is due to memorization alone, and the gap attack has
  expected balanced accuracy 1/2 + (A - 1/K) / 2. A model that fits its members leaks
  almost fully; a defense that hides them keeps A at 1/K. This is the positive control
  for every attack.

  Args:
    num_records: N.
    num_features: D.
    num_classes: K.
    num_test: held-out records of the same distribution.
    seed: non-negative int.

  Returns:
    A `Dataset` of float32 [N, D].

  >>> data = synthetic_memorize()
  >>> len(data), data.x.shape, data.num_classes
  (1000, (1000, 20), 4)
  """
  random = stream(seed, "synthetic_memorize")
  total = num_records + num_test
  x = random.standard_normal((total, num_features)).astype(np.float32)
  y = random.integers(num_classes, size=total)
  return _cut(x, y, num_records, num_classes, "synthetic_memorize")


def synthetic_clusters(
  num_records: int = 1000,
  *,
  num_features: int = 20,
  num_classes: int = 4,
  separation: float = 8.0,
  num_test: int = 1000,
  seed: int = 0,
) -> Dataset:
  """Draw well separated Gaussian classes, which can be learned without memorization.

  y ~ Uniform{0..K-1}, x | y ~ N(c e_y, I) with c = separation / sqrt(2), so that any
  two centers are `separation` apart.

  Known leakage: the best rule errs with probability at most (K-1) Phi(-separation / 2),
  1e-4 at the defaults, on members and non-members alike, so a simple model has no
  accuracy gap, and the gap attack stays near 1/2. This is the negative control: an
  attack that reports high leakage here has a bug. A large model trained to zero loss
  can still leak through confidences.

  Args:
    num_records: N.
    num_features: D >= K.
    num_classes: K.
    separation: distance between two centers, in standard deviations.
    num_test: held-out records of the same distribution.
    seed: non-negative int.

  Returns:
    A `Dataset` of float32 [N, D].

  Raises:
    ValueError: there are fewer features than classes.
  """
  if num_features < num_classes:
    raise ValueError(
      f"num_features={num_features} is below num_classes={num_classes}; each class "
      "needs its own axis"
    )
  random = stream(seed, "synthetic_clusters")
  total = num_records + num_test
  y = random.integers(num_classes, size=total)
  centres = separation / np.sqrt(2) * np.eye(num_classes, num_features)
  x = centres[y] + random.standard_normal((total, num_features))
  return _cut(x.astype(np.float32), y, num_records, num_classes, "synthetic_clusters")


def _cut(
  x: np.ndarray, y: np.ndarray, num_records: int, num_classes: int, name: str
) -> Dataset:
  test = (x[num_records:], y[num_records:])
  return Dataset.from_arrays(
    x[:num_records], y[:num_records], name=name, test=test, num_classes=num_classes
  )

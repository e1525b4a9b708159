"""Sample from a generator: sets of samples, grids, and interpolations."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import stream
from mixdef.training import Run


def samples(run: Run, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Sample records from a generator, with labels uniformly at random.

  Sample i depends only on the seed and on i: a smaller set is a prefix of a larger one,
  and models sampled with the same seed use the same latents and labels.

  Args:
    run: a trained GAN.
    count: M >= 1.
    seed: random seed of the latents and the labels.

  Returns:
    x float32 [M,...], in the generator's range, and labels int64 [M].

  Raises:
    ValueError: if the model is not a generator, or for a count below 1.
  """
  if count < 1:
    raise ValueError(f"count={count} draws no samples; pass at least 1")
  labels = stream(seed, "sample_labels").integers(_classes(run), size=count)
  return generate(run, labels, seed=seed), labels


def generate(run: Run, y: ArrayLike, *, seed: int = 0) -> np.ndarray:
  """Sample one record for each condition.

  Args:
    run: a trained GAN.
    y: labels int [M], or conditions [M,K], rows of the simplex.
    seed: random seed of the latents; row i uses the i-th.

  Returns:
    float32 [M,...].

  Raises:
    ValueError: if the model is not a generator, or the conditions do not fit it.
  """
  y = np.asarray(y)
  return _made(run, _latents(run, len(y), seed), y)


def grid(run: Run, columns: int, *, seed: int = 0) -> np.ndarray:
  """Sample a grid: one row per class in order, one column per latent.

  Args:
    run: a trained GAN.
    columns: C >= 1; column c uses one latent in all rows.
    seed: random seed of the latents.

  Returns:
    float32 [K,C,...].

  Raises:
    ValueError: if the model is not a generator.
  """
  return _rows_of_classes(run, _latents(run, columns, seed))


def interpolations(run: Run, columns: int, *, seed: int = 0) -> np.ndarray:
  """Generate an interpolation between two latents, with one row per class.

  The path is the arc of a great circle along which the norm changes linearly from one
  latent's to the other's. Points on the straight line have smaller norms than any
  latent seen in training.

  Args:
    run: a trained GAN.
    columns: C >= 2, including the two ends.
    seed: random seed of the two latents, which all rows share.

  Returns:
    float32 [K,C,...].

  Raises:
    ValueError: if the model is not a generator, or for fewer than two columns.
  """
  if columns < 2:
    raise ValueError(f"columns={columns} cannot include both ends; pass at least 2")
  ends = _latents(run, 2, seed)
  lengths = np.linalg.norm(ends, axis=1)
  first, last = ends / lengths[:, None]
  angle = np.arccos(np.clip(first @ last, -1, 1))
  share = np.linspace(0, 1, columns)[:, None]
  ways = np.sin((1 - share) * angle) * first + np.sin(share * angle) * last
  ways *= ((1 - share) * lengths[0] + share * lengths[1]) / np.sin(angle)
  return _rows_of_classes(run, ways.astype(np.float32))


def conditions(run: Run, y: ArrayLike) -> np.ndarray:
  """Return labels int [M] as one-hot rows float32 [M,K]; keep such rows unchanged.

  Raises:
    ValueError: if the model is not a generator, or y does not fit it.
  """
  y, classes = np.asarray(y), _classes(run)
  if y.ndim == 2 and y.shape[1] == classes:
    return y.astype(np.float32)
  whole = y.ndim == 1 and np.issubdtype(y.dtype, np.integer)
  if not whole or not len(y) or not 0 <= y.min() <= y.max() < classes:
    raise ValueError(
      f"y is {y.dtype} {y.shape}; pass labels int [M] of 0 to {classes - 1}, or "
      f"conditions [M,{classes}]"
    )
  return np.eye(classes, dtype=np.float32)[y]


def refuse_diverged(made: np.ndarray) -> np.ndarray:
  """Return generated records, or values derived from them, if all are finite.

  Raises:
    ValueError: if a value is NaN or infinite.
  """
  if not np.isfinite(made).all():
    raise ValueError(
      "the generator outputs values that are not finite because it diverged; train it "
      "with a lower learning rate, or exclude it"
    )
  return made


def _rows_of_classes(run, z):
  classes = _classes(run)
  made = _made(run, np.tile(z, (classes, 1)), np.repeat(np.arange(classes), len(z)))
  return made.reshape(classes, len(z), *made.shape[1:])


def _made(run, z, y):
  made = run.query(_generate, z, conditions(run, y))
  return refuse_diverged(made)


def _generate(learner: Any, state, z, y):
  return learner.generate(state, z, y)


def _latents(run, count, seed):
  _classes(run)
  normal = stream(seed, "sample_latents").standard_normal
  return normal((count, run.learner.latent), np.float32)


def _classes(run):
  if run.learner.kind != "generators":
    raise ValueError(
      f"{run.learner.text or 'the model'} does not generate records; pass a trained GAN"
    )
  return run.learner.num_classes

"""Frechet distance between Gaussians fitted to the features of two sets."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.utility._arrays import feature_pair
from mixdef.utility.extractors import OFFICIAL, Extractor, features


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
  """Return the Frechet distance between the features of two sets.

      |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^{1/2}),   S with ddof 1

  Fitted moments are noisy, which increases the distance: two samples of one
  distribution are further apart with fewer records and with more features. Compare only
  distances with equal N, M and extractor; 2,048 records are the usual minimum, 10,000
  or more are customary.

  Args:
    a: features [N,F], N >= 2. N < F is allowed.
    b: features [M,F], M >= 2.

  Returns:
    The distance, >= 0 up to rounding.

  Raises:
    ValueError: for unequal widths, too few rows, or values that are not finite.

  Reference: Dowson, Landau, "The Frechet Distance between Multivariate Normal
    Distributions", 1982; Heusel et al., "GANs Trained by a Two Time-Scale Update Rule
    Converge to a Local Nash Equilibrium", 2017, arXiv 1706.08500.

  >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 6)
  9.0
  """
  a, b = feature_pair(a, b, ("a", "b"))
  return frechet_distance_of_moments(moments(a), moments(b))


def frechet_distance_of_moments(
  first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> float:
  """Return the Frechet distance between two Gaussians.

  Args:
    first: mean [F] and covariance [F,F], symmetric and positive semi-definite.
    second: the same.

  Returns:
    The distance, >= 0 up to rounding.

  Raises:
    ValueError: for shapes that do not fit together.

  Deviation: with roots S = L L^T of numerical rank, Tr (S_1 S_2)^{1/2} is the sum of
    the singular values of L_1^T L_2. It equals the sum over the roots of the
    eigenvalues of S_1^{1/2} S_2 S_1^{1/2}, which is the usual form; but the square root
    there turns rounding errors of 1e-16 into 1e-8 for each of the directions that a
    singular covariance (N < F) lacks.

  >>> one = np.zeros(2), np.diag([4.0, 1.0])
  >>> two = np.array([1.0, 2.0]), np.diag([1.0, 9.0])
  >>> round(frechet_distance_of_moments(one, two), 6)
  10.0
  """
  (mean_a, cov_a), (mean_b, cov_b) = (
    [np.asarray(part, np.float64) for part in pair] for pair in (first, second)
  )
  shapes = [part.shape for part in (mean_a, cov_a, mean_b, cov_b)]
  width = mean_a.size
  if shapes != 2 * [(width,), (width, width)]:
    raise ValueError(f"moments have shapes {shapes}; pass two pairs of [F] and [F,F]")
  common = np.linalg.svd(_root(cov_a).T @ _root(cov_b), compute_uv=False).sum()
  apart = ((mean_a - mean_b) ** 2).sum()
  return float(apart + np.trace(cov_a) + np.trace(cov_b) - 2 * common)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the mean [F] and the covariance [F,F], ddof 1, of float64 features [N,F]."""
  mean = x.mean(0)
  centred = x - mean
  return mean, centred.T @ centred / (len(x) - 1)


def _root(covariance: np.ndarray) -> np.ndarray:
  """Return L [F,r] with L L^T = S, where r is the numerical rank."""
  values, vectors = np.linalg.eigh(covariance)
  noise = len(values) * np.finfo(float).eps * values[-1]
  return vectors[:, values > noise] * np.sqrt(values[values > noise])


def metric_name(extractor: Extractor) -> str:
  """Return `fid` for the true Inception weights and `fd_<name>` for all others."""
  return "fid" if extractor.name == OFFICIAL else f"fd_{extractor.name}"


def fd(extractor: Extractor, real: ArrayLike, fake: ArrayLike) -> dict[str, Any]:
  """Return the Frechet distance of two sets of records, under its proper name.

  See `frechet_distance` for the distances that it can be compared with.

  Args:
    extractor: the feature extractor; see `classifier_features` and
      `inception_features`.
    real: images [N,H,W,C] in [0,1] or table rows [N,D], float.
    fake: the same for fakes, [M,...].

  Returns:
    {`fid` or `fd_<name>`: distance, num_real, num_fake, weights: SHA-256}.

  Raises:
    ValueError: for records that the extractor does not take.
  """
  distance = frechet_distance(features(extractor, real), features(extractor, fake))
  return {
    metric_name(extractor): distance,
    "num_real": len(np.asarray(real)),
    "num_fake": len(np.asarray(fake)),
    "weights": extractor.weights,
  }


def fid(extractor: Extractor, real: ArrayLike, fake: ArrayLike) -> dict[str, Any]:
  """Return the Frechet Inception distance, as `fd` does; reject any other network.

  Args:
    extractor: result of `inception_features`, with the true weights.
    real: images [N,H,W,C] in [0,1], float.
    fake: the same for fakes, [M,H,W,C].

  Returns:
    {fid, num_real, num_fake, weights}.

  Raises:
    ValueError: for another extractor, or records that it does not take.

  Deviation: images go in as they are. Published values often come from files of 8 bits
    or of JPEG, and from images that were resized before; each of these changes FID.
  """
  if metric_name(extractor) != "fid":
    raise ValueError(
      f"{extractor.name} is not the network of FID: use fd, whose metric is then "
      f"named {metric_name(extractor)}, or inception_features with the original "
      "weights"
    )
  return fd(extractor, real, fake)

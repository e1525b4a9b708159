"""Density and coverage: fidelity and diversity of generated records."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.utility._arrays import feature_pair

_ENTRIES = 4_000_000  # entries per block of distances: 32 MB
_ROUNDING = 16 * np.finfo(float).eps  # of a squared distance, by the squared lengths


def density_coverage(
  real: ArrayLike, fake: ArrayLike, *, k: int = 5
) -> dict[str, float]:
  """Return density and coverage of fakes around real records.

      ball_i = {x: |x - r_i| < distance of r_i to its k-th nearest other real record}
      density = sum_ij [f_j in ball_i] / (k M),   coverage = mean_i [any f_j in ball_i]

  Density is >= 0 and may exceed 1, where fakes cluster among real records that cluster;
  coverage is in [0,1]. For fakes of the real distribution, density is 1 on average, and
  coverage 1 - prod_{m=0}^{k-1} (N-1-m) / (N+M-1-m), about 1 - 2^-k at N = M. Report N
  and M with the metrics, because coverage increases with M / N. A generator that copies
  its training records has density 1 and coverage 1 against them; use records that it
  has not seen.

  Args:
    real: features [N,F], N > k.
    fake: features [M,F], M >= 1.
    k: number of neighbours, >= 1; 5 as in the paper.

  Returns:
    {density, coverage}.

  Raises:
    ValueError: for k out of range, unequal widths, or values that are not finite.

  Deviation: none in the definition. Distances that differ by rounding count as equal,
    so that a copy of a k-th neighbour lies on the ball and not, by chance, inside.

  Reference: Naeem, Oh, Uh, Choi, Yoo, "Reliable Fidelity and Diversity Metrics for
    Generative Models", 2020, arXiv 2002.09797.

  >>> density_coverage([[0], [1], [3], [6]], [[0.5], [2], [10]], k=1)
  {'density': 1.0, 'coverage': 0.75}
  """
  real, fake = feature_pair(real, fake, ("real", "fake"), at_least=1)
  if not 1 <= k < len(real):
    raise ValueError(f"k={k} of {len(real)} real records; pass 1 to {len(real) - 1}")
  lengths_real, lengths_fake = _squared_lengths(real), _squared_lengths(fake)
  rows = max(1, _ENTRIES // max(len(real), len(fake)))
  hits = covered = 0
  for first in range(0, len(real), rows):
    block = slice(first, first + rows)
    own, lengths = real[block], lengths_real[block, None]
    among = lengths + lengths_real - 2 * own @ real.T
    radius = np.partition(among, k, 1)[:, k, None]  # index 0 is the record itself
    away = lengths + lengths_fake
    inside = away - 2 * own @ fake.T < radius - _ROUNDING * away
    hits += int(inside.sum())
    covered += int(inside.any(1).sum())
  return {"density": hits / (k * len(fake)), "coverage": covered / len(real)}


def _squared_lengths(x: np.ndarray) -> np.ndarray:
  return np.einsum("nf,nf->n", x, x)

"""Kernel distance: the squared maximum mean discrepancy of a cubic kernel."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core.randomness import stream
from mixdef.utility._arrays import feature_pair

_SUBSET = 1000


def squared_mmd(a: ArrayLike, b: ArrayLike, *, unbiased: bool = True) -> float:
  """Return the squared maximum mean discrepancy with the kernel (x.y / F + 1)^3.

      mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i,j} k(a_i, b_j)

  Args:
    a: features [N,F], N >= 2.
    b: features [M,F], M >= 2.
    unbiased: whether to exclude i = j, so that the estimate is unbiased at every size
      and may be negative; otherwise it is >= 0 and too large at small N, M.

  Returns:
    The estimate.

  Raises:
    ValueError: for unequal widths, too few rows, or values that are not finite.

  Reference: Gretton et al., "A Kernel Two-Sample Test", 2012.

  >>> a, b = [[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [2, 1]]
  >>> round(squared_mmd(a, b), 6), round(squared_mmd(a, b, unbiased=False), 6)
  (-2.472222, 2.444444)
  """
  a, b = feature_pair(a, b, ("a", "b"))
  return _squared_mmd(a, b, unbiased)


def kid(
  a: ArrayLike,
  b: ArrayLike,
  *,
  subsets: int = 100,
  subset_size: int | None = None,
  seed: int = 0,
) -> dict[str, float]:
  """Return the kernel inception distance of two sets of features.

  This is the mean of `squared_mmd` over random subsets. Unlike that of the Frechet
  distance, its expectation does not depend on N and M. A sample's value may be
  negative, which means that the sets are no further apart than by chance, and is not
  clipped.

  Args:
    a: features [N,F].
    b: features [M,F].
    subsets: number of pairs of subsets, >= 1.
    subset_size: rows per subset, drawn without replacement, 2 to min(N, M); None uses
      1,000, or min(N, M) if that is less.
    seed: random seed of the subsets.

  Returns:
    {kid: mean, kid_std: standard deviation over the subsets}. The subsets overlap, so
    the deviation is not a standard error of the mean; it is 0 if a subset is the whole
    of both sets.

  Raises:
    ValueError: for an argument out of range, or features as in `squared_mmd`.

  Reference: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018, arXiv
    1801.01401.

  >>> x = np.random.default_rng(0).normal(size=(200, 4))
  >>> near, far = kid(x[:100], x[100:]), kid(x[:100], x[100:] + 2)
  >>> abs(near["kid"]) < 0.1 < far["kid"]
  True
  """
  a, b = feature_pair(a, b, ("a", "b"))
  most = min(len(a), len(b))
  size = min(_SUBSET, most) if subset_size is None else subset_size
  if subsets < 1:
    raise ValueError(f"subsets={subsets}; pass at least 1")
  if not 2 <= size <= most:
    raise ValueError(
      f"subset_size={size} of {len(a)} and {len(b)} rows; pass 2 to {most}"
    )
  rng = stream(seed, "kid")

  def draw(x: np.ndarray) -> np.ndarray:
    return x[rng.choice(len(x), size, replace=False)]

  values = [_squared_mmd(draw(a), draw(b), True) for _ in range(subsets)]
  return {"kid": float(np.mean(values)), "kid_std": float(np.std(values))}


def _squared_mmd(a: np.ndarray, b: np.ndarray, unbiased: bool) -> float:
  def within(x: np.ndarray) -> float:
    kernel = _kernel(x, x)
    if not unbiased:
      return kernel.mean()
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2 * _kernel(a, b).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return (a @ b.T / a.shape[1] + 1) ** 3

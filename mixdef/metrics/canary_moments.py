"""Moments of the noise that canaries saw in a run of DP-SGD.

A bound on epsilon shows only that there is too little noise, and coarsely. The moments
of the same observations also show noise of the wrong scale by a percent, noise that is
used twice, and the wrong kind of sampling.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate

_LEAST_P = 1e-300


class Moments(NamedTuple):
  """Deviations of a run from its claim, in standard errors.

  Each is a z-score, about standard normal if the claim is true, and NaN where the run
  has too few canaries or steps, or the claim has no noise. The worst leaf and the worst
  pair are corrected for their number, so their scores are nearer to 0 if the claim is
  true, and at most 37 if it is not.

  Attributes:
    variance: squared observations of canaries that are out, over all leaves.
    leaf_variance: the same in the leaf where it deviates most.
    lag_step: products of consecutive observations of the canaries that are out; large
      if steps share their noise.
    lag_epoch: the same one epoch apart.
    pairs: correlation of the two canaries, both out, where it deviates most; large if
      leaves share their noise at the coordinates of these canaries. The canaries of two
      models side by side show whether the models share theirs.
    mean: mean observation of the canaries that are in, against the sampling
      probability.
    epoch_sums: squared deviation of the sums over an epoch, of the canaries that are
      in; too small if records are dealt by epoch instead of drawn independently.
    run_sums: the same over the whole run.
  """

  variance: float
  leaf_variance: float
  lag_step: float
  lag_epoch: float
  pairs: float
  mean: float
  epoch_sums: float
  run_sums: float


def canary_moments(
  observed: ArrayLike,
  members: ArrayLike,
  leaves: ArrayLike,
  *,
  noise_multiplier: float,
  sampling_probability: float,
  steps_per_epoch: int,
) -> Moments:
  """Compare the moments of a run's observations with those of its claim.

  Under the claim an observation is [the canary took part] + z N(0, 1), independently
  over canaries and steps, where a canary that is in takes part with probability q.
  With x = observed/z for canaries that are out, and s for sums over k steps of those
  that are in, the z-scores are

      mean(x^2 - 1) / sqrt(2/n),   sum(x_t x_{t+lag}) / sqrt(n),
      (mean(observed) - q) / sqrt(v/n),   mean((s - k q)^2/(k v) - 1) / sqrt(c/n),
      v = z^2 + q(1-q),   c = 2 + q(1-q)(1 - 6q(1-q))/(k v^2),

  for n terms each.

  Args:
    observed: [T, m] what step t shows of canary j, less everything that is neither the
      canary nor noise, in units of the clipping norm.
    members: bool [m], the canaries that are in.
    leaves: int [m], the parameter array of each canary.
    noise_multiplier: z >= 0 of the claim.
    sampling_probability: q of the claim, in (0, 1].
    steps_per_epoch: steps in which a record is drawn once on average, >= 1.

  Returns:
    The `Moments`.

  Raises:
    ValueError: for arrays that do not fit each other, observations that are not finite,
      or a number out of range.

  Deviation: no paper tests these moments [ours]. All pairs of canaries are compared,
    not only those at equal positions of equal leaves, because the positions are not
    known here. Standard errors are those of the claim, with the fourth cumulant of the
    sampling in c.

  Reference: compare with Nasr et al., "Tight Auditing of Differentially Private
    Machine Learning", 2023, arXiv 2302.07956, which bounds epsilon from the same
    observations.

  >>> rng = np.random.default_rng(0)
  >>> members = rng.random(100) < 0.5
  >>> seen = (rng.random((50, 100)) < 0.1) * members + 2.0 * rng.normal(size=(50, 100))
  >>> claim = dict(sampling_probability=0.1, steps_per_epoch=10)
  >>> leaves = np.arange(100) // 25
  >>> found = canary_moments(seen, members, leaves, noise_multiplier=2.0, **claim)
  >>> max(found) < 5
  True
  >>> half = canary_moments(seen, members, leaves, noise_multiplier=4.0, **claim)
  >>> round(half.variance)
  -28
  """
  seen = checked_observations(observed)
  inside = validate.mask(members, seen.shape[1:], "members")
  leaf = checked_leaves(leaves, seen.shape[1])
  q, z = sampling_probability, noise_multiplier
  if not 0 < q <= 1:
    raise ValueError(f"sampling_probability={q}; pass a probability in (0, 1]")
  if not 0 <= z < np.inf:
    raise ValueError(f"noise_multiplier={z}; pass a finite number >= 0")
  epoch = validate.integer(steps_per_epoch, "steps_per_epoch", least=1)
  own = seen[:, inside].astype(np.float64)
  spread = z**2 + q * (1 - q)
  noise = seen[:, ~inside].astype(np.float64) / z if z else np.empty((0, 0))
  return Moments(
    variance=_standardized((noise**2 - 1).sum(), 2 * noise.size),
    leaf_variance=_worst_leaf(noise, leaf[~inside]),
    lag_step=_lagged(noise, 1),
    lag_epoch=_lagged(noise, epoch),
    pairs=_pairs(noise),
    mean=_standardized((own - q).sum(), own.size * spread),
    epoch_sums=_sums(own, epoch, q, spread),
    run_sums=_sums(own, len(own), q, spread),
  )


def checked_observations(observed: ArrayLike) -> np.ndarray:
  """Return the observations of a run, [T, m], or raise."""
  seen = validate.numbers(observed, "observed")
  if seen.ndim != 2 or not seen.size:
    raise ValueError(
      f"observed has shape {seen.shape}; pass [steps, canaries] of one run, none 0"
    )
  if not np.isfinite(seen).all():
    step, canary = (int(i) for i in np.argwhere(~np.isfinite(seen))[0])
    raise ValueError(
      f"observed[{step}, {canary}] is {seen[step, canary]}; a run that diverged cannot "
      "be audited: lower the learning rate"
    )
  return seen


def checked_leaves(leaves: ArrayLike, canaries: int) -> np.ndarray:
  """Return the leaf of each canary, numbered from 0, or raise."""
  leaf = np.asarray(leaves)
  if leaf.shape != (canaries,):
    raise ValueError(f"leaves has shape {leaf.shape}; pass one per canary, {canaries}")
  return np.unique(leaf, return_inverse=True)[1]


def _standardized(total: float, variance: float) -> float:
  return float(total / np.sqrt(variance)) if variance > 0 else np.nan


def _worst_of(p: float, number: int, sign: float) -> float:
  """Return the signed z-score of the smallest of several two-sided p-values."""
  from scipy.special import ndtri

  corrected = min(1.0, max(number * p, _LEAST_P))
  return float(np.copysign(ndtri(corrected / 2), sign)) + 0.0


def _worst_leaf(noise: np.ndarray, leaf: np.ndarray) -> float:
  """Return the z-score of the leaf whose squares deviate most, by their exact law."""
  from scipy.special import gammainc, gammaincc

  if not noise.size:
    return np.nan
  terms = len(noise) * np.bincount(leaf)
  squares = np.bincount(leaf, (noise**2).sum(axis=0))[terms > 0] / 2
  half = terms[terms > 0] / 2
  below, above = gammainc(half, squares), gammaincc(half, squares)
  p = 2 * np.minimum(below, above)
  worst = p.argmin()
  return _worst_of(p[worst], len(p), below[worst] - above[worst])


def _lagged(noise: np.ndarray, lag: int) -> float:
  products = noise[lag:] * noise[:-lag]
  return _standardized(products.sum(), products.size)


def _pairs(noise: np.ndarray) -> float:
  """Return the z-score of the largest correlation, by its exact law.

  The squared cosine of two independent Gaussian vectors has the law
  Beta(1/2, (T - 1)/2), whatever their lengths.
  """
  from scipy.special import betaincc

  lengths = np.linalg.norm(noise, axis=0)
  directions = (noise[:, lengths > 0] / lengths[lengths > 0]).astype(np.float32)
  steps, number = directions.shape
  if steps < 2 or number < 2:
    return np.nan
  cosines = directions.T @ directions
  np.fill_diagonal(cosines, 0)
  at = np.unravel_index(np.abs(cosines).argmax(), cosines.shape)
  squared = min(float(cosines[at]) ** 2, 1.0)
  p = betaincc(0.5, (steps - 1) / 2, squared)
  return _worst_of(p, number * (number - 1) // 2, cosines[at])


def _sums(own: np.ndarray, steps: int, q: float, spread: float) -> float:
  """Return the z-score of the squared sums over `steps` consecutive steps."""
  periods = len(own) // steps
  whole = own[: periods * steps]
  sums = whole.reshape(periods, steps, own.shape[1]).sum(axis=1)
  variance = steps * spread
  if not variance:
    return np.nan
  squares = (sums - steps * q) ** 2 / variance
  drawn = q * (1 - q)
  cumulant = drawn * (1 - 6 * drawn) / (steps * spread**2)
  return _standardized((squares - 1).sum(), squares.size * (2 + cumulant))

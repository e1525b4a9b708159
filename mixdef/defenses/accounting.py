"""Privacy accounting of the Poisson-subsampled Gaussian mechanism.

Neighbouring training sets differ by one added or removed record. Two accountants bound
the same mechanism, T steps with noise multiplier z and sampling probability q, and the
smaller epsilon is stated:

  PLD  composes the distribution of the privacy loss, exact up to its grid.
  RDP  sums Renyi divergences R(order) and converts them:
       epsilon = min over orders of T R(order) + conversion(order, delta).

With b bands of correlated noise, the members are in b random groups that take turns.
The mechanism is then that of ceil(T/b) steps with probability b q.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from numpy.typing import ArrayLike

# Vacuous budgets (noise far below 1) have their best order just above 1.
_ORDERS = (
  *(1 + x / 100 for x in range(1, 10)),
  *(1 + x / 10 for x in range(1, 100)),
  *range(11, 64),
  128,
  256,
  512,
  1024,
)
_GRID = 1e-4  # of privacy losses, at noise of at least 0.5
_COARSE = 10  # times this grid in searches, and for few steps
_TYPICAL = 1e-5  # delta at which it is seen whether the noise is that small
_VACUOUS = 1e4  # RDP's epsilon above which the other accountant is not asked
_SPENT = 0.999  # fraction of the budget at which a search stops
_ENOUGH = 0.995  # and at which the calibration does
_SEARCHES = 4
_APART = 1 + 1e-6  # or the ratio of its bounds, because epsilon has a jump below 0.01
_MOST_NOISE = 1e6
_EPSILONS = np.linspace(0.0, 60.0, 6001)  # of the curve that bounds an attack
_TINY = 0.1  # an epsilon below it needs the fine grid
_ROUNDED = 1 + 1e-9  # a probability of 1 in spite of rounding


class Spent(NamedTuple):
  """What DP-SGD spends at a delta.

  Attributes:
    epsilon: the smaller of the two bounds, which are both valid.
    pld: bound from the privacy-loss distribution; infinite if it was not computed,
      because RDP's exceeds 10,000.
    rdp: bound from Renyi divergences.
  """

  epsilon: float
  pld: float
  rdp: float


def spent(
  noise_multiplier: float,
  *,
  sampling_probability: float,
  steps: int,
  delta: float,
  bands: int = 1,
) -> Spent:
  """Return what DP-SGD spends at `delta`, by both accountants.

  Args:
    noise_multiplier: ratio of the noise's standard deviation to the clipping norm, >=
      0.
    sampling_probability: probability that a record is in a batch, in (0, 1].
    steps: number of noisy steps, >= 1.
    delta: in (0, 1).
    bands: b in [1, 1/q], the number of bands of the noise; 1 if it is independent.

  Returns:
    `Spent`, all infinite without noise.

  Raises:
    ValueError: for an argument outside its range.

  Deviation: the grid of privacy losses is 1e-4 max(1, (0.5/z)^2), because the losses
    grow as 1/z^2; a fixed grid needs minutes and gigabytes at small noise. It is up to
    ten times coarser for fewer than 1,000 steps, whose errors add up to less [ours].

  Reference: Koskela, Jalko & Honkela, "Computing Tight Differential Privacy Guarantees
    Using FFT", 2020, arXiv 1906.03049; Doroshenko et al., "Connect the Dots", 2022,
    arXiv 2207.04380; Mironov, Talwar & Zhang, "Renyi Differential Privacy of the
    Sampled Gaussian Mechanism", 2019, arXiv 1908.10530; Choquette-Choo et al.,
    "(Amplified) Banded Matrix Factorization", 2023, arXiv 2306.08153 (bands).

  >>> found = spent(1.0, sampling_probability=0.01, steps=1000, delta=1e-5)
  >>> round(found.pld, 3), round(found.rdp, 3)
  (1.828, 2.101)
  """
  sampled = draws(sampling_probability, steps, bands)
  _check_delta(delta)
  return _spent(noise_multiplier, *sampled, delta)


def epsilon(
  noise_multiplier: float,
  *,
  sampling_probability: float,
  steps: int,
  delta: float,
  bands: int = 1,
) -> float:
  """Return `Spent.epsilon`; see `spent`.

  >>> config = dict(sampling_probability=4096 / 50_000, steps=875, delta=1e-5)
  >>> round(epsilon(10.0, **config), 3)  # De et al. state 1, by RDP
  0.903
  """
  return spent(
    noise_multiplier,
    sampling_probability=sampling_probability,
    steps=steps,
    delta=delta,
    bands=bands,
  ).epsilon


def largest_tpr(
  fpr: ArrayLike,
  noise_multiplier: float,
  *,
  sampling_probability: float,
  steps: int,
  bands: int = 1,
) -> np.ndarray:
  """Return the largest TPR of any attack on a record, at false-positive rates.

      TPR(a) <= min over eps of min(e^eps a + d(eps), 1 - e^-eps (1 - a - d(eps)))

  where d(eps) is the delta at which DP-SGD spends eps. It is much tighter than the
  bound through a single epsilon and delta, and depends on neither.

  Args:
    fpr: [...] in [0, 1].
    noise_multiplier: as in `spent`, like the others.
    sampling_probability: see above.
    steps: see above.
    bands: see above.

  Returns:
    [...] in [0, 1]; 1 without noise, or if RDP's epsilon exceeds 10,000.

  Raises:
    ValueError: for an argument outside its range.

  Guarantee: holds for each record, and for the mean over records and models of a common
    threshold. It covers no duplicates of a record, and no choices tuned on the records.

  Reference: Dong, Roth & Su, "Gaussian Differential Privacy", 2019, arXiv 1905.02383.

  >>> largest_tpr([0.001, 0.01], 1.0, sampling_probability=1.0, steps=1).round(4)
  array([0.0183, 0.0924])
  """
  sampled = draws(sampling_probability, steps, bands)
  rates = np.asarray(fpr, np.float64)
  if not ((rates >= 0) & (rates <= 1)).all():
    raise ValueError(f"fpr={fpr} must be in [0, 1]")
  return _largest_tpr(rates, noise_multiplier, *sampled, 1)


def largest_advantage(
  noise_multiplier: float, *, sampling_probability: float, steps: int, bands: int = 1
) -> float:
  """Return the largest TPR - FPR of any attack on a record, the delta at epsilon 0.

  A guess of the membership of a record that is in with probability 1/2 therefore errs
  with probability (1 - advantage)/2 at least. The arguments and errors are those of
  `spent`; without noise the advantage is 1.

  >>> config = dict(sampling_probability=0.01, steps=1000)
  >>> round(largest_advantage(1.0, **config), 4)
  0.161
  """
  sampled = draws(sampling_probability, steps, bands)
  _check_noise(noise_multiplier)
  if _renyi(noise_multiplier, *sampled, _TYPICAL) > _VACUOUS:
    return 1.0
  losses = _losses(noise_multiplier, *sampled, 1)
  return float(losses.get_delta(0.0))


@functools.lru_cache(maxsize=1024)
def noise_multiplier(
  epsilon: float,
  *,
  sampling_probability: float,
  steps: int,
  delta: float,
  bands: int = 1,
) -> float:
  """Return the noise multiplier that spends at most `epsilon`.

  It is found by bisection and spends 99.5 to 100% of a budget above 0.01.

  Args:
    epsilon: budget, finite and > 0.
    sampling_probability: probability that a record is in a batch, in (0, 1].
    steps: number of noisy steps, >= 1.
    delta: in (0, 1).
    bands: as in `spent`.

  Raises:
    ValueError: for an argument outside its range, or a budget below what the
      accountants can certify.

  >>> config = dict(sampling_probability=256 / 60_000, steps=14_063, delta=1e-5)
  >>> round(noise_multiplier(1.0, **config), 2)
  2.03
  """
  sampled = draws(sampling_probability, steps, bands)
  _check_delta(delta)
  if not 0 < epsilon < math.inf:
    raise ValueError(f"epsilon={epsilon} must be finite and > 0")

  def of(noise, coarse=_COARSE):
    return _spent(noise, *sampled, delta, coarse).epsilon

  def refusal(least):
    return (
      f"epsilon={epsilon} is smaller than can be certified at delta={delta}: pass more "
      f"than {least:.2g}"
    )

  return _least_noise(of, epsilon, refusal)


@functools.lru_cache(maxsize=1024)
def noise_for_tpr(
  max_tpr: float,
  at_fpr: float,
  *,
  sampling_probability: float,
  steps: int,
  bands: int = 1,
) -> float:
  """Return the noise multiplier at which no attack has a larger TPR at an FPR.

  Args:
    max_tpr: largest TPR of any attack, in (`at_fpr`, 1).
    at_fpr: the FPR, in (0, 1).
    sampling_probability: as in `spent`, like the others.
    steps: see above.
    bands: see above.

  Raises:
    ValueError: for an argument outside its range.

  Deviation: the noise is calibrated on the whole trade-off curve; through the epsilon
    ln(max_tpr/at_fpr) it would be a third larger [ours].

  >>> round(noise_for_tpr(0.05, 0.01, sampling_probability=1.0, steps=1), 2)
  1.47
  """
  sampled = draws(sampling_probability, steps, bands)
  if not 0 < at_fpr < max_tpr < 1:
    raise ValueError(
      f"max_tpr={max_tpr} at at_fpr={at_fpr}: pass 0 < at_fpr < max_tpr < 1, because "
      "guessing has a TPR equal to its FPR"
    )

  def of(noise, coarse=_COARSE):
    rates = np.float64(at_fpr)
    return float(_largest_tpr(rates, noise, *sampled, coarse))

  def refusal(least):
    return f"max_tpr={max_tpr} cannot be certified: pass more than {least:.4g}"

  return _least_noise(of, max_tpr, refusal)


def _least_noise(of: Callable, budget: float, refusal: Callable) -> float:
  """Return the least noise that is found with `of(noise, 1) <= budget`.

  The coarse grid overstates what is spent. What it overstates at the noise found is
  granted to the next search.
  """
  granted, best = budget, math.inf
  for _ in range(_SEARCHES):
    found = _bisected(of, granted, refusal)
    exact = of(found, 1)
    if exact <= budget:
      best = min(best, found)
      if exact == 0 or exact >= _ENOUGH * budget:
        break
    granted *= _SPENT * budget / exact
  return best


def _bisected(of, budget, refusal):
  low = high = 1.0
  while of(high) > budget:
    high *= 2
    if high > _MOST_NOISE:
      raise ValueError(refusal(of(high)))
  while of(low) <= budget:
    low /= 2
  while of(high) < _SPENT * budget and high > _APART * low:
    middle = math.sqrt(low * high)
    low, high = (low, middle) if of(middle) <= budget else (middle, high)
  return high


@functools.lru_cache(maxsize=1024)
def _spent(noise, probability, steps, delta, coarse=1) -> Spent:
  _check_noise(noise)
  rdp, pld = _renyi(noise, probability, steps, delta), math.inf
  if rdp <= _VACUOUS:
    if rdp > _TINY:
      coarse = max(coarse, min(_COARSE, 1000 / steps))
    pld = float(_losses(noise, probability, steps, coarse).get_epsilon(delta))
  return Spent(min(pld, rdp), pld, rdp)


@functools.lru_cache(maxsize=1024)
def _renyi(noise, probability, steps, delta) -> float:
  """Return the epsilon by Renyi divergences, infinite without noise."""
  if noise == 0:
    return math.inf
  import dp_accounting  # slow to import
  from dp_accounting.rdp import RdpAccountant

  relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  accountant = RdpAccountant(_ORDERS, relation)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # it warns about every order it omits
  try:
    spent = accountant.compose(_step(noise, probability), steps)
    return float(spent.get_epsilon(delta))
  finally:
    logging.set_verbosity(verbosity)


def _largest_tpr(rates, noise, probability, steps, coarse):
  _check_noise(noise)
  if _renyi(noise, probability, steps, _TYPICAL) > _VACUOUS:
    return np.ones_like(rates)
  losses = _losses(noise, probability, steps, coarse)
  delta = np.asarray(losses.get_delta(_EPSILONS))
  grown, rate = np.exp(_EPSILONS), rates[..., None]
  low = (grown * rate + delta).min(-1)
  high = (1 - (1 - rate - delta) / grown).min(-1)
  return np.clip(np.minimum(low, high), 0.0, 1.0)


@functools.lru_cache(maxsize=8)
def _losses(noise, probability, steps, coarse) -> Any:
  """Return the accountant of the privacy losses of all steps."""
  import dp_accounting
  from dp_accounting.pld import PLDAccountant

  relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  grid = _GRID * coarse * max(1.0, (0.5 / noise) ** 2)
  accountant = PLDAccountant(relation, value_discretization_interval=grid)
  return accountant.compose(_step(noise, probability), steps)


def _step(noise, probability) -> Any:
  import dp_accounting

  return dp_accounting.PoissonSampledDpEvent(
    probability, dp_accounting.GaussianDpEvent(noise)
  )


def draws(sampling_probability, steps, bands):
  """Return the probability and the number of steps at which a record has its turn."""
  if not 0 < sampling_probability <= 1:
    raise ValueError(f"sampling_probability={sampling_probability} must be in (0, 1]")
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1")
  most = math.floor(_ROUNDED / sampling_probability)
  if not 1 <= bands <= most:
    raise ValueError(
      f"bands={bands} with a sampling probability of {sampling_probability:g} must be "
      f"in [1, {most}], because a record is drawn bands times as often at its turns"
    )
  return min(1.0, bands * sampling_probability), -(-steps // bands)


def _check_noise(noise):
  if not 0 <= noise < math.inf:
    raise ValueError(f"noise_multiplier={noise} must be finite and >= 0")


def _check_delta(delta):
  if not 0 < delta < 1:
    raise ValueError(f"delta={delta} must be in (0, 1): pass at most 1 / num_members")

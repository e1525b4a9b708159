"""Privacy accounting of the Poisson-subsampled Gaussian mechanism (Renyi DP).

Neighbouring training sets differ by one added or removed record. If one step with noise
multiplier z and sampling probability q has Renyi divergence R(order), T steps have T
R(order), and

  epsilon = min over orders of T R(order) + conversion(order, delta).
"""

import functools
import math

from absl import logging

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
_SPENT = 0.999  # fraction of the budget at which the calibration stops
_APART = 1 + 1e-6  # or the ratio of its bounds, because epsilon has a jump below 0.01
_MOST_NOISE = 1e6


@functools.lru_cache(maxsize=1024)
def epsilon(
  noise_multiplier: float, *, sampling_probability: float, steps: int, delta: float
) -> float:
  """Return the epsilon spent by DP-SGD at `delta`.

  Args:
    noise_multiplier: ratio of the noise's standard deviation to the clipping norm, >=
    0.
    sampling_probability: probability that a record is in a batch, in (0, 1].
    steps: number of noisy steps, >= 1.
    delta: in (0, 1).

  Returns:
    epsilon > 0; `inf` without noise, never a finite number.

  Raises:
    ValueError: for an argument outside its range.

  Deviation: Renyi accounting is an upper bound. A privacy-loss distribution is about 10
    % tighter, but at noise 0.1, which high-utility DP-SGD uses, it needs minutes and
    gigabytes; a single accountant keeps all epsilons comparable.

  Reference: Mironov, Talwar & Zhang, "Renyi Differential Privacy of the Sampled
    Gaussian Mechanism", 2019, arXiv 1908.10530.

  >>> config = dict(sampling_probability=4096 / 50_000, steps=875, delta=1e-5)
  >>> round(epsilon(10.0, **config), 3)  # the epsilon = 1 run of De et al.
  0.988
  """
  _check(sampling_probability, steps, delta)
  if not 0 <= noise_multiplier < math.inf:
    raise ValueError(f"noise_multiplier={noise_multiplier} must be finite and >= 0")
  if noise_multiplier == 0:
    return math.inf
  import dp_accounting  # slow to import
  from dp_accounting.rdp import RdpAccountant

  step = dp_accounting.PoissonSampledDpEvent(
    sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  accountant = RdpAccountant(
    _ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # it warns about every order it omits
  try:
    return float(accountant.compose(step, steps).get_epsilon(delta))
  finally:
    logging.set_verbosity(verbosity)


@functools.lru_cache(maxsize=1024)
def noise_multiplier(
  epsilon: float, *, sampling_probability: float, steps: int, delta: float
) -> float:
  """Return the noise multiplier that spends at most `epsilon`.

  It is found by bisection and spends 99.9 to 100 % of a budget above 0.01.

  Args:
    epsilon: budget, finite and > 0.
    sampling_probability: probability that a record is in a batch, in (0, 1].
    steps: number of noisy steps, >= 1.
    delta: in (0, 1).

  Raises:
    ValueError: for an argument outside its range, or a budget below what the
      accountant can certify.

  >>> config = dict(sampling_probability=128 / 10_520, steps=100 * 83, delta=1e-5)
  >>> round(noise_multiplier(1.0, **config), 2)
  4.56
  """
  _check(sampling_probability, steps, delta)
  if not 0 < epsilon < math.inf:
    raise ValueError(f"epsilon={epsilon} must be finite and > 0")

  def spent(noise):
    return _epsilon(
      noise, sampling_probability=sampling_probability, steps=steps, delta=delta
    )

  low = high = 1.0
  while spent(high) > epsilon:
    high *= 2
    if high > _MOST_NOISE:
      raise ValueError(
        f"epsilon={epsilon} is smaller than can be certified at delta={delta}: pass "
        f"more than {spent(high):.2g}"
      )
  while spent(low) <= epsilon:
    low /= 2
  while spent(high) < _SPENT * epsilon and high > _APART * low:
    middle = math.sqrt(low * high)
    low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
  return high


_epsilon = epsilon  # the name is an argument of `noise_multiplier`


def _check(sampling_probability, steps, delta):
  if not 0 < sampling_probability <= 1:
    raise ValueError(f"sampling_probability={sampling_probability} must be in (0, 1]")
  if steps < 1:
    raise ValueError(f"steps={steps} must be at least 1")
  if not 0 < delta < 1:
    raise ValueError(f"delta={delta} must be in (0, 1): pass at most 1 / num_members")

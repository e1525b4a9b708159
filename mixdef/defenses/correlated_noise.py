"""Correlated noise by banded matrix factorization: `dp_sgd(bands=b)`.

The noise x_t of a step cancels a part of the noise of the steps before it,

  C x = z,    x_t = (z_t - sum_{0<j<b} c_j x_{t-j}) / c_0,    z_t ~ N(0, I),

where C is the lower-triangular Toeplitz matrix of the coefficients c_0, ..., c_{b-1},
which have unit norm. A record that is in steps at least b apart meets columns of C that
are orthogonal and have a norm of at most 1, so each of them costs as much as a step of
independent noise. What the cancellation gains is the error of the sums of gradients.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mixdef.defenses import accounting

_ITERATIONS = 500
_TOLERANCE = 1e-11  # of the error, relative
_LEAST = 1e-6  # ratio of a coefficient to the one before it


@functools.lru_cache(maxsize=64)
def coefficients(steps: int, bands: int) -> tuple[float, ...]:
  """Return the coefficients c, of unit norm, with the least `error`.

  Args:
    steps: T >= 1, the number of noisy steps.
    bands: b >= 1.

  Returns:
    b numbers, decreasing, found by L-BFGS from those of the square root of the matrix
    of sums.

  Deviation: the search is over the ratios of neighbouring coefficients, in (0, 1], and
    not over the coefficients: C is then never so ill-conditioned that the error
    overflows [ours].

  Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A Unified
    Approach to Private Training", 2023, arXiv 2306.08153; McKenna, "Scaling up the
    Banded Matrix Factorization Mechanism for Differentially Private ML", 2024, arXiv
    2405.15913.

  >>> [round(c, 6) for c in coefficients(64, 4)]
  [0.708061, 0.474553, 0.397745, 0.339483]
  """
  from scipy.optimize import Bounds, minimize

  place = np.arange(1, bands)
  found = minimize(
    _log_error,
    (2 * place - 1) / (2 * place),
    (steps,),
    method="L-BFGS-B",
    jac=True,
    bounds=Bounds(_LEAST, 1.0),
    options={"maxiter": _ITERATIONS, "ftol": _TOLERANCE, "gtol": 0.0},
  )
  c = np.cumprod([1.0, *found.x])
  return tuple((c / np.linalg.norm(c)).tolist())


def error(c: ArrayLike, steps: int) -> float:
  """Return the mean variance of the sums x_0 + ... + x_t of the noise.

  It is a mean over the steps t < `steps`, and (`steps` + 1)/2 for independent noise.

  Args:
    c: the coefficients [b], of any scale.
    steps: T >= 1.

  >>> round(error((1.0,), 1000), 1), round(error(coefficients(1000, 16), 1000), 4)
  (500.5, 39.4153)
  """
  scaled = np.asarray(c, np.float64)
  return math.exp(_log_error(scaled[1:] / scaled[:-1], steps)[0])


def best_bands(
  epsilon: float, *, sampling_probability: float, steps: int, delta: float
) -> int:
  """Return the number of bands with the least error of the sums, a power of two.

  More bands cancel more noise, but each step then needs more of it, because records are
  drawn more often at their turns. The gain grows with epsilon and with the number of
  steps, and falls with the sampling probability. Each band but the first costs a copy
  of the parameters.

  Args:
    epsilon: budget, finite and > 0.
    sampling_probability: q in (0, 1], as in `accounting.spent`.
    steps: T >= 1.
    delta: in (0, 1).

  Returns:
    b <= 1/q. It takes about ten seconds, most of them for the accounting.

  Raises:
    ValueError: for an argument outside its range.
  """
  training = {"sampling_probability": sampling_probability, "steps": steps}

  def expected(bands):
    noise = accounting.noise_multiplier(epsilon, delta=delta, bands=bands, **training)
    return noise**2 * error(coefficients(steps, bands), steps)

  best, least = 1, expected(1)
  while 2 * best * sampling_probability <= 1 and 2 * best <= steps:
    following = expected(2 * best)
    if following >= least:
      break
    best, least = 2 * best, following
  return best


def start(params: Any, steps: int, bands: int) -> dict[str, Any]:
  """Return the state of the noise before the first step.

  Args:
    params: the parameters; only their shapes are read.
    steps: T, the number of steps.
    bands: b >= 2.

  Returns:
    `coefficients` [b] and `past`, the noises of the last b-1 steps: [b-1, ...] for each
    parameter, in float32.
  """
  past = jax.tree.map(lambda p: jnp.zeros((bands - 1, *p.shape), jnp.float32), params)
  return {"coefficients": jnp.float32(coefficients(steps, bands)), "past": past}


def correlate(fresh: Any, state: dict[str, Any], step: Any) -> tuple[Any, Any]:
  """Return the noise of a step, and the state of the next one.

  Args:
    fresh: z_t, independent standard normal numbers in the shapes of the parameters.
    state: the state, as returned by `start`.
    step: t, counted from 0 over the whole training.

  Returns:
    `(x_t, state)`.
  """
  c, earlier = state["coefficients"], state["past"]
  count = len(c) - 1
  # The noise of step t is at place t mod (b-1), where it replaces the oldest.
  weights = c[1 + (step - 1 - jnp.arange(count)) % count]

  def noise(z, past):
    return (z - jnp.tensordot(weights, past, 1, precision="highest")) / c[0]

  x = jax.tree.map(noise, fresh, earlier)
  past = jax.tree.map(lambda p, new: p.at[step % count].set(new), earlier, x)
  return x, {**state, "past": past}


def _log_error(ratios, steps):
  """Return the logarithm of the error, at unit norm, and its gradient in the ratios."""
  from scipy.signal import lfilter

  c = np.cumprod([1.0, *ratios])
  left = np.arange(steps, 0, -1) / steps
  response = np.asarray(lfilter([1.0], c, np.ones(steps)))  # of the sums to one z
  variance, squared = left @ response**2, c @ c
  adjoint = np.asarray(lfilter([1.0], c, (left * response)[::-1]))[::-1]
  slope = c / squared - [
    adjoint[j:] @ response[: max(0, steps - j)] / variance for j in range(len(c))
  ]
  later = np.cumsum((slope * c)[:0:-1])[::-1]
  return math.log(variance * squared), 2 * later / ratios

"""Rules of per-record clipping: flat, automatic, and adaptive with a private count.

A rule is a function `clip -> (norms -> factors)`. Whatever the norms are, a record
scaled by its factor has a norm of at most C, and its factor depends on no other record.
"""

import math

import jax
import jax.numpy as jnp

from mixdef.core.check import check_choice, is_static
from mixdef.core.randomness import fold_in_name

_CLIPPINGS = ("flat", "automatic", "adaptive")
_GAMMA = 0.01  # of automatic clipping, on the scale of gradients, not of C
_RATE = 0.2  # of adaptive clipping
_QUANTILE = 0.5
_SHARE = 20  # the count's noise is a 20th of the batch
_RANGE = 1e3  # most by which C leaves its start, as a factor


def flat(clip):
  """Return the factors that clip norms at C: `norms -> min(1, C / norms)`."""

  def factor(norms):
    return jnp.minimum(1.0, clip / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))

  return factor


def automatic(clip):
  """Return the factors that scale every record to about C: `C / (norms + 0.01)`.

  A gradient of zero remains zero. C acts as a factor of the learning rate of SGD, and
  not at all with Adam, so the norm need not be tuned.

  Reference: Bu et al., "Automatic Clipping: Differentially Private Deep Learning Made
    Easier and Stronger", 2022, arXiv 2206.07136 (AUTO-S).
  """
  return lambda norms: clip / (norms + _GAMMA)


def check(clipping: str, clip, bands: int) -> None:
  """Raise unless a rule exists and can be used with C and with bands of noise.

  Raises:
    ValueError: for another name, for an infinite C except in flat clipping, and for
      adaptive clipping with correlated noise.
  """
  check_choice("dp_sgd: clipping", clipping, _CLIPPINGS)
  if clipping != "flat" and is_static(clip) and clip == math.inf:
    raise ValueError(
      f"dp_sgd: clip=inf clips nothing, but clipping={clipping!r} needs a norm: pass a "
      "finite clip"
    )
  if clipping == "adaptive" and bands > 1:
    raise ValueError(
      f"dp_sgd: bands={bands} need one clipping norm for all steps, because noise is "
      "carried over: pass clipping='flat' or 'automatic'"
    )


def rule(clipping: str):
  """Return the rule of a name; adaptive clipping is flat at its norm of the moment."""
  return automatic if clipping == "automatic" else flat


def count_below(norms, clip):
  """Return how many norms are at most C, less half of all; NaN (padding) is left out.

  Adding or removing a record changes it by 1/2.

  >>> float(count_below(jnp.array([0.5, 2.0, jnp.nan, 0.1]), 1.0))
  0.5
  """
  return jnp.where(jnp.isnan(norms), 0.0, jnp.where(norms <= clip, 0.5, -0.5)).sum()


def gradient_noise(noise_multiplier, batch_size):
  r"""Return the noise multiplier of the gradient if the count is paid for, too.

  $$z_g = (z^{-2} - (2 \sigma_b)^{-2})^{-1/2}, \qquad \sigma_b = B / 20$$

  Gradient and count together are then one Gaussian mechanism with multiplier z, because
  the count changes by 1/2 at most.

  Args:
    noise_multiplier: z in [0, B/10); NaN is returned above.
    batch_size: B.

  >>> round(float(gradient_noise(1.0, 256)), 4)
  1.0008
  """
  ratio = noise_multiplier * _SHARE / (2 * batch_size)
  return noise_multiplier / jnp.sqrt(1 - ratio**2)


def check_noise(noise_multiplier, batch_size: int) -> None:
  """Raise if the count alone would spend more than the noise grants.

  Raises:
    ValueError: for a noise multiplier of a tenth of the batch, or more.
  """
  if is_static(noise_multiplier) and noise_multiplier >= 2 * batch_size / _SHARE:
    raise ValueError(
      f"dp_sgd: clipping='adaptive' needs a noise multiplier below batch_size / 10 = "
      f"{2 * batch_size / _SHARE:g}, not {noise_multiplier:.4g}: increase batch_size, "
      "or use clipping='automatic'"
    )


def next_clip(clip, start, count, key, batch_size):
  r"""Return the clipping norm of the next step, from a noised count.

  $$\tilde b = \frac{1}{B} \Big(\sum_i b_i + \mathcal{N}(0, \sigma_b^2)\Big)
    + \frac{1}{2}, \qquad C_{t+1} = C_t \exp(-0.2\,(\tilde b - 0.5))$$

  The estimated fraction is limited to [0, 1], and C to a factor of 1000 of its start.

  Args:
    clip: C_t, float.
    start: C_0.
    count: result of `count_below` at C_t.
    key: random key of the noise.
    batch_size: B, the public batch size, even if another number was drawn.

  Reference: Andrew et al., "Differentially Private Learning with Adaptive Clipping",
    2019, arXiv 1905.03871.
  """
  noise = batch_size / _SHARE * jax.random.normal(fold_in_name(key, "count"))
  fraction = jnp.clip((count + noise) / batch_size + 0.5, 0.0, 1.0)
  moved = clip * jnp.exp(-_RATE * (fraction - _QUANTILE))
  return jnp.clip(moved, start / _RANGE, start * _RANGE)

"""Sanitized gradients of private generators: clipping, noise and accounting."""

import functools
import math

import jax
import jax.numpy as jnp

from mixdef.core.check import is_static
from mixdef.defenses import accounting

_ORDERS = tuple(range(2, 65))  # the bound holds for integer orders


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def sanitise(fakes, key, clip: float, noise_multiplier: float):
  r"""Return the fakes unchanged, with their gradient clipped and noised.

  $$\tilde g_i = g_i \min\Big(1, \frac{C/B}{\lVert g_i \rVert_2}\Big)
    + \mathcal{N}\big(0, (\sigma \cdot 2 C / B)^2 I\big)$$

  for the gradient $g_i$ of a mean over the B fakes, so that 2C/B bounds the change of a
  fake's gradient when the critic that scores it changes. Gradients of the critic's
  parameters are not affected. A non-finite gradient is treated as zero.

  Args:
    fakes: [B, *shape].
    key: random key of the noise.
    clip: C > 0.
    noise_multiplier: sigma >= 0; 0 adds none.
  """
  del key, clip, noise_multiplier
  return fakes


def _forward(fakes, key, clip, noise_multiplier):
  del clip, noise_multiplier
  return fakes, key


def _backward(clip, noise_multiplier, key, gradient):
  bound = clip / len(gradient)
  norms = jnp.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)
  # If the norm is 0, the quotient is infinite and the factor is 1.
  factors = jnp.minimum(1.0, bound / norms)
  factors, norms = (
    v.reshape(-1, *(1,) * (gradient.ndim - 1)) for v in (factors, norms)
  )
  clipped = jnp.where(jnp.isfinite(norms), gradient * factors, 0.0)
  noise = jax.random.normal(key, gradient.shape, gradient.dtype)
  return clipped + noise_multiplier * 2 * bound * noise, None


sanitise.defvjp(_forward, _backward)


@functools.lru_cache(maxsize=1024)
def drawn_shard_epsilon(
  noise_multiplier: float, *, shards: int, count: int, delta: float
) -> float:
  """Return the epsilon of noised outputs, each from an independently drawn shard.

  Neighboring data sets replace one record by another. For each output, the shard that
  holds the record is drawn with probability 1 / shards, independently and secretly.

  Args:
    noise_multiplier: standard deviation of the noise divided by the sensitivity of an
      output, >= 0.
    shards: number of shards, drawn with equal probability.
    count: number of outputs, >= 1.
    delta: in (0, 1).

  Returns:
    epsilon > 0; `inf` without noise.

  Deviation: the accounting of Poisson sampling with records added or removed assumes
    that the alternative to a query is no query, and would give about half the epsilon.
    Here, another shard is queried instead.

  Reference: Wang, Balle & Kasiviswanathan, "Subsampled Renyi Differential Privacy and
    Analytical Moments Accountant", 2019, arXiv 1808.00087, Theorem 27.

  >>> config = dict(shards=1000, count=20_000 * 32, delta=1e-5)
  >>> round(drawn_shard_epsilon(1.07, **config), 2)  # the official setting of GS-WGAN
  9.24
  """
  if noise_multiplier == 0:
    return math.inf
  if shards == 1:
    return known_shard_epsilon(noise_multiplier, count=count, delta=delta)
  import dp_accounting  # slow to import
  from dp_accounting.rdp import RdpAccountant

  event = dp_accounting.SampledWithoutReplacementDpEvent(
    shards, 1, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  relation = dp_accounting.NeighboringRelation.REPLACE_ONE
  drawn = RdpAccountant(_ORDERS, relation).compose(event, count).get_epsilon(delta)
  # Sampling never increases epsilon, but at low noise the bound above can exceed this.
  known = known_shard_epsilon(noise_multiplier, count=count, delta=delta)
  return min(float(drawn), known)


def known_shard_epsilon(noise_multiplier: float, *, count: int, delta: float) -> float:
  """Return the epsilon of noised outputs of a shard if the queried shard is public.

  Args:
    noise_multiplier: as in `drawn_shard_epsilon`.
    count: number of outputs of the most queried shard, >= 1.
    delta: in (0, 1).

  >>> round(known_shard_epsilon(1.07, count=32, delta=1e-5), 2)
  35.79
  """
  return accounting.epsilon(
    noise_multiplier, sampling_probability=1.0, steps=count, delta=delta
  )


def stated(epsilon: float, delta: float) -> dict:
  """Return the state of a learner that states an epsilon."""
  return {"epsilon": jnp.float32(epsilon), "delta": jnp.float32(delta)}


def check_delta(name: str, delta) -> None:
  """Raise unless `delta` is a probability known before training."""
  if not is_static(delta) or not 0 < delta < 1:
    raise ValueError(f"{name}: delta is {delta}; pass a plain number in (0, 1)")


def check_plain(what: str, value) -> None:
  """Raise if a number is swept, because the accountant needs a concrete number."""
  if not is_static(value):
    raise ValueError(
      f"{what} cannot be swept, because epsilon depends on it: pass a number"
    )


def noisy_steps(
  name: str, spec, delta: float, warm_epochs: int, critic_steps: int
) -> int:
  """Return the number of generator steps of a training.

  Raises:
    ValueError: if there are none, or delta is too large to be meaningful for this
      number of members.
  """
  if delta >= 1 / spec.num_members:
    raise ValueError(
      f"{name}: delta is {delta}, which is not a guarantee for {spec.num_members} "
      f"members: pass a value below {1 / spec.num_members:.2g}"
    )
  steps = (spec.epochs - warm_epochs) * spec.steps_per_epoch // critic_steps
  if steps < 1:
    raise ValueError(
      f"{name}: the generator takes no step in {spec.epochs} epochs of "
      f"{spec.steps_per_epoch} steps with warm_epochs={warm_epochs}: increase epochs, "
      f"or reduce warm_epochs or critic_steps={critic_steps}"
    )
  return steps

"""DataLens' votes: each teacher's gradient as a few signs, their noised sum as one."""

import jax
import jax.numpy as jnp


def top_signs(gradient, key, *, top: int, largest: float):
  r"""Compress a teacher's gradient to the stochastic signs of its largest entries.

  $$\Pr[+1] = \min\Big(1, \max\Big(0, \frac{1}{2} + \frac{g}{2b}\Big)\Big),
  \qquad b = \min(\max |g|, \text{largest})$$

  Args:
    gradient: [D], one teacher's for one fake; b is its own, for what one teacher votes
      must not depend on the others.
    key: of the signs.
    top: k, how many entries of largest absolute value vote; the others are 0.
    largest: bound of b.

  Returns:
    [D] with k entries of -1 or 1; all zeros for a gradient that is not finite.
  """
  size = jnp.abs(gradient)
  bound = jnp.minimum(size.max(), largest)
  # A gradient of zeros has no scale; its signs are even.
  positive = 0.5 + gradient / jnp.where(bound > 0, 2 * bound, 1.0)
  sign = jnp.where(jax.random.uniform(key, gradient.shape) < positive, 1.0, -1.0)
  _, chosen = jax.lax.top_k(size, top)
  votes = jnp.zeros_like(gradient).at[chosen].set(sign[chosen])
  return jnp.where(jnp.isfinite(gradient).all(), votes, 0.0)


def agreed_direction(votes, key, *, noise: float, threshold: float):
  r"""Sum the votes, add N(0, noise^2) to each entry, and keep what most agree on.

  Args:
    votes: [T,D], entries -1, 0 or 1.
    key: of the noise.
    noise: its standard deviation, in votes.
    threshold: the share of the T teachers that a sum must exceed.

  Returns:
    [D], entries -1, 0 or 1.
  """
  counts = votes.sum(0)
  counts = counts + noise * jax.random.normal(key, counts.shape)
  needed = threshold * len(votes)
  return jnp.where(jnp.abs(counts) > needed, jnp.sign(counts), 0.0)

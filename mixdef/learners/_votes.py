"""The voting of DataLens: compress gradients to signs, aggregate them with noise."""

import jax
import jax.numpy as jnp


def top_signs(gradient, key, *, top: int, largest: float):
  r"""Compress a teacher's gradient to stochastic signs of its largest entries.

  $$\Pr[+1] = \min\Big(1, \max\Big(0, \frac{1}{2} + \frac{g}{2b}\Big)\Big),
  \qquad b = \min(\max |g|, \text{largest})$$

  Args:
    gradient: [D], the gradient of one teacher for one fake. Each teacher has its own b,
      because its vote must not depend on the other teachers.
    key: random key of the signs.
    top: k, the number of entries of largest absolute value that vote; the others are 0.
    largest: upper bound of b.

  Returns:
    [D] with k entries of -1 or 1; all zeros for a non-finite gradient.
  """
  size = jnp.abs(gradient)
  bound = jnp.minimum(size.max(), largest)
  # A zero gradient has no scale; its signs are equally likely.
  positive = 0.5 + gradient / jnp.where(bound > 0, 2 * bound, 1.0)
  sign = jnp.where(jax.random.uniform(key, gradient.shape) < positive, 1.0, -1.0)
  _, chosen = jax.lax.top_k(size, top)
  votes = jnp.zeros_like(gradient).at[chosen].set(sign[chosen])
  return jnp.where(jnp.isfinite(gradient).all(), votes, 0.0)


def agreed_direction(votes, key, *, noise: float, threshold: float):
  r"""Sum the votes, add N(0, noise^2) per entry, and return signs above a threshold.

  Args:
    votes: [T,D], entries -1, 0 or 1.
    key: random key of the noise.
    noise: standard deviation of the noise, in votes.
    threshold: fraction of the T teachers that the absolute sum must exceed.

  Returns:
    [D], entries -1, 0 or 1.
  """
  counts = votes.sum(0)
  counts = counts + noise * jax.random.normal(key, counts.shape)
  needed = threshold * len(votes)
  return jnp.where(jnp.abs(counts) > needed, jnp.sign(counts), 0.0)

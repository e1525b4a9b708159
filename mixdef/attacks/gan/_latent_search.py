"""Search for the latent that generates a record, independently for each row.

A loss maps latents z [B,L] to `(objective [B], reconstruction [B])`; row b of either
depends only on row b of z. A search returns `Met`, both values at the lowest objective
found, including the start.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Loss = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

POPULATION = 16
"""Samples per row in one generation of `evolve`."""

_TRIES = 15  # of a line search


class Met(NamedTuple):
  """The lowest objective [B] found per row, and the reconstruction [B] at it."""

  objective: jax.Array
  reconstruction: jax.Array


def adam(loss: Loss, z: jax.Array, *, steps: int, rate: float = 0.3) -> Met:
  """Minimize by Adam with a cosine decay of the learning rate to 0.

  Args:
    loss: see the module docstring.
    z: starting points [B,L].
    steps: number of gradients per row.
    rate: initial learning rate, in units of the latent's standard deviation.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def step(_, carry):
    z, state, best = carry
    slope, met = _slopes(loss, z)
    updates, state = optimizer.update(slope, state, z)
    return optax.apply_updates(z, updates), state, _lower(best, met)

  start = z, optimizer.init(z), Met(*loss(z))
  z, _, best = jax.lax.fori_loop(0, steps, step, start)
  return _lower(best, Met(*loss(z)))


def lbfgs(
  loss: Callable[..., tuple[jax.Array, jax.Array]], z: jax.Array, rows, *, steps: int
) -> Met:
  """Minimize by L-BFGS with a zoom line search, with a separate solver per row.

  Args:
    loss: `(z [B,L], rows)`, as in the module docstring; also called with one row.
    z: starting points [B,L].
    rows: arrays [B,...] that the loss needs in addition to the latents.
    steps: number of iterations, each of at most 15 gradients.
  """
  search = optax.scale_by_zoom_linesearch(_TRIES)
  solver = optax.lbfgs(linesearch=search)

  def descend(z, row):
    row = jax.tree.map(lambda leaf: leaf[None], row)

    def objective(z):
      return loss(z[None], row)[0][0]

    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(_, carry):
      z, state, best, at = carry
      value, slope = value_and_grad(z, state=state)
      at = jnp.where(value < best, z, at)
      updates, state = solver.update(
        slope, state, z, value=value, grad=slope, value_fn=objective
      )
      return optax.apply_updates(z, updates), state, jnp.fmin(best, value), at

    z, _, best, at = jax.lax.fori_loop(0, steps, step, (z, solver.init(z), jnp.inf, z))
    return jnp.where(objective(z) < best, z, at)

  return Met(*loss(jax.vmap(descend)(z, rows), rows))


def evolve(loss: Loss, z: jax.Array, keys: jax.Array, *, steps: int) -> Met:
  """Minimize without gradients by separable CMA-ES started from N(z, I).

  Of 16 samples from N(m, s^2 diag(c)), the better half updates m, and the evolution
  paths of m update s and c, all with the authors' constants.

  Args:
    loss: see the module docstring; called with the samples of all rows, [B*16,L].
    z: initial means m [B,L].
    keys: one per row [B].
    steps: number of generations.

  Reference: Ros, Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and
    Space Complexity", 2008.
  """
  count, size = z.shape
  half = POPULATION // 2
  weights = math.log(half + 0.5) - np.log(np.arange(1, half + 1))
  weights /= weights.sum()
  mass = float(1 / (weights**2).sum())
  c_s = (mass + 2) / (size + mass + 3)
  damping = 1 + 2 * max(0, math.sqrt(max(mass - 1, 0) / (size + 1)) - 1) + c_s
  c_c = 4 / (size + 4)
  # The rates of a full matrix, scaled up as fewer parameters allow.
  one = 2 / (size + math.sqrt(2)) ** 2 / mass
  rest = min(1.0, (2 * mass - 1) / ((size + 2) ** 2 + mass)) * (1 - 1 / mass)
  c_cov = min(1.0, (one + rest) * (size + 2) / 3)
  usual = math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))

  def draw(key, m, s, c):
    noise = jax.random.normal(key, (POPULATION, size))
    return noise, m + s * jnp.sqrt(c) * noise

  def tell(noise, values, m, s, c, p_s, p_c):
    chosen = noise[jnp.argsort(values)[:half]]
    mean = weights @ chosen
    y = jnp.sqrt(c) * mean
    p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mass) * mean
    length = jnp.linalg.norm(p_s)
    steady = length < (1.4 + 2 / (size + 1)) * usual
    p_c = (1 - c_c) * p_c + steady * math.sqrt(c_c * (2 - c_c) * mass) * y
    spread = weights @ (c * chosen**2)
    c_new = (1 - c_cov) * c + c_cov * (p_c**2 / mass + (1 - 1 / mass) * spread)
    s_new = s * jnp.exp(jnp.minimum(1.0, c_s / damping * (length / usual - 1)))
    return m + s * y, s_new, c_new, p_s, p_c

  def generation(t, carry):
    state, best = carry
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
    noise, points = jax.vmap(draw)(own, *state[:3])
    met = Met(*(v.reshape(count, -1) for v in loss(points.reshape(-1, size))))
    best = _lower(best, lowest(met))
    return jax.vmap(tell)(noise, met.objective, *state), best

  still = jnp.zeros_like(z)
  state = z, jnp.ones(count), jnp.ones_like(z), still, still
  worst = jnp.full(count, jnp.inf)
  return jax.lax.fori_loop(0, steps, generation, (state, Met(worst, worst)))[1]


def lowest(met: Met) -> Met:
  """Return the try with the lowest objective [B] out of tries [B,R]."""
  first = met.objective.argmin(1)[:, None]
  return Met(*(jnp.take_along_axis(leaf, first, 1)[:, 0] for leaf in met))


def _slopes(loss, z):
  def total(z):
    met = Met(*loss(z))
    return met.objective.sum(), met

  return jax.grad(total, has_aux=True)(z)


def _lower(best, met):
  better = met.objective < best.objective
  return Met(*(jnp.where(better, new, old) for new, old in zip(met, best, strict=True)))

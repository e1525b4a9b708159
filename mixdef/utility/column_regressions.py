"""Logistic regressions for all columns of a binary table, solved together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_AT_ONCE = 256  # columns per block: wide enough for fast matrix products
_DECREMENT = 1e-7  # of a column's objective, which is a sum over records, in nats
_STEPS = 2000


def fit_columns(x: np.ndarray, columns: np.ndarray, *, c: float = 1.0) -> np.ndarray:
  """Predict columns of a binary table from all its other columns.

      min_{w,b} |w|^2 / 2 + C sum_i log(1 + exp(-t_ik (w x_i + b))),  w_k = 0,
      t_ik = 2 x_ik - 1

  The curvature of all these problems is at most B = C/4 Z^T Z + diag(1, .., 1, 0), with
  Z = [x, 1]. Accelerated gradient steps in the metric of B therefore need no line
  search, one inverse serves all columns, and a step costs two matrix products per block
  of columns. Each column restarts its own momentum where it points uphill.

  Args:
    x: float32 zeros and ones [N,D].
    columns: int [C], columns of x that hold both values.
    c: C > 0, the weight of a record.

  Returns:
    The weights w followed by the intercept b: float32 [D+1,C].

  Reference: Nesterov, "A method of solving a convex programming problem with
    convergence rate O(1/k^2)", 1983; Boehning, Lindsay, "Monotonicity of
    quadratic-approximation algorithms", 1988 (the bound); O'Donoghue, Candes, "Adaptive
    Restart for Accelerated Gradient Schemes", 2015, arXiv 1204.3982.

  >>> x = np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.float32)
  >>> fit_columns(x, np.array([1])).round(3).ravel()
  array([ 0.802,  0.   , -0.401], dtype=float32)
  """
  z = np.concatenate([x, np.ones((len(x), 1))], 1, dtype=np.float64)
  bound = c / 4 * z.T @ z + np.diag(np.append(np.ones(x.shape[1]), 0.0))
  inverse = jnp.asarray(np.linalg.inv(bound), jnp.float32)
  table = jnp.asarray(x)
  width = min(_AT_ONCE, len(columns))
  blocks = []
  for first in range(0, len(columns), width):
    own = columns[first : first + width]
    filled = np.append(own, np.repeat(own[:1], width - len(own)))
    blocks.append(
      np.asarray(_solve(table, inverse, jnp.asarray(filled), c))[:, : len(own)]
    )
  return np.concatenate(blocks, 1)


@functools.partial(jax.jit, static_argnames="c")
def _solve(x, inverse, columns, c):
  own = columns, jnp.arange(len(columns))
  positive = x[:, columns]
  # Along this direction of the metric, a column's weight for itself returns to 0.
  back = inverse[:, columns] / inverse[columns, columns]

  def gradient(weights):
    error = c * (jax.nn.sigmoid(x @ weights[:-1] + weights[-1]) - positive)
    slope = jnp.concatenate([x.T @ error + weights[:-1], error.sum(0)[None]])
    return slope.at[own].set(0.0)

  def step(carry):
    count, weights, ahead, t, _ = carry
    slope = gradient(ahead)
    move = inverse @ slope
    move -= back * move[own]
    new = ahead - move
    uphill = (slope * (new - weights)).sum(0) > 0
    t = jnp.where(uphill, 1.0, t)
    t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    momentum = jnp.where(uphill, 0.0, (t - 1) / t_new)
    ahead = new + momentum * (new - weights)
    return count + 1, new, ahead, t_new, (slope * move).sum(0).max()

  def unfinished(carry):
    return (carry[0] < _STEPS) & (carry[-1] > _DECREMENT)

  start = jnp.zeros((x.shape[1] + 1, len(columns)))
  first = 0, start, start, jnp.ones(len(columns)), jnp.inf
  return jax.lax.while_loop(unfinished, step, first)[1]

"""Averages of the weights over training."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.traits import Traits


@defense(neutral="ema(0.0)")
def ema(decay=0.999) -> Defense:
  """Release an exponential moving average of the weights.

  ```
  d_t = min(decay, (1 + t) / (10 + t)),   e <- d_t e + (1 - d_t) theta_t,   t = 0, 1..
  ```

  Args:
    decay: in [0, 1]; 0.999 as in LiRA's training. 0 releases the last weights.

  Returns:
    The defense. The average covers parameters and BatchNorm's running statistics; the
    weights that are trained are never released.

  Guarantee: none by itself. After `dp_sgd` it is post-processing.

  Deviation: the warm-up of d_t reduces the influence of the initial weights [recalled].

  Reference: Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging,
    1992; Carlini et al., Membership Inference Attacks From First Principles, 2022.

  >>> str(ema())
  'ema'
  """
  check_number("ema: decay", decay, 0, 1)

  def init(key, spec):
    del key
    return spec.variables

  def update(state, ctx):
    kept = jnp.minimum(decay, (1 + ctx.step) / (10 + ctx.step))
    return jax.tree.map(lambda e, v: kept * e + (1 - kept) * v, state, ctx.variables)

  def release_params(variables, state, ctx):
    del variables, ctx
    return state

  return Defense(
    "",
    init=init,
    update=update,
    release_params=release_params,
    traits=Traits(post_processing=True),
  )

"""Adam for noised gradients: the variance of the noise is taken out of its moments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import tree

from mixdef.core.check import checked, number, optional


class CorrectedState(NamedTuple):
  """Number of steps, and moving averages: gradient, its square, the noise's square."""

  count: Any
  mu: Any
  nu: Any
  noise: Any


@checked(
  noise_std=optional(number(0)),
  b1=number(0, below=1),
  b2=number(0, below=1),
  eps=number(0),
  floor=number(0),
)
def adam_corrected(
  learning_rate: optax.ScalarOrSchedule,
  noise_std: float | None = None,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  floor: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
  r"""Make Adam's step from the second moment without the noise of `dp_sgd`.

  $$\Delta = -\eta \frac{\hat m}{\sqrt{\max(\hat v - \Phi, \text{floor}\, \Phi)} + eps},
  \qquad \Phi = (z C / B)^2$$

  Under noise, Adam's second moment is about Phi wherever the gradient is small, so
  that its steps are those of SGD with momentum. Without noise this is `optax.adam`.

  Args:
    learning_rate: > 0, or an optax schedule. As without noise; Adam under noise needs a
      rate that is three to ten times as large.
    noise_std: sqrt(Phi), standard deviation of the noise on an entry of the gradient,
      >= 0, may be traced. None takes it from the defense of `classifier` in every step,
      adaptive clipping included; Phi is then the moving average of what v has seen.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: >= 0, as in Adam.
    floor: least corrected moment in units of Phi, >= 0. The deviation of the noise in v
      is sqrt(2 (1 - b2) / (1 + b2)) Phi, 0.03 Phi by default. With floor 0, entries
      with negative corrected moments take steps of 1/eps.

  Returns:
    The optimizer, which learns nothing about the records but the noised gradient.

  Raises:
    ValueError: for an argument out of range, and at the start of training, without
      `noise_std` and a defense that adds noise.

  Deviation: the paper's floor is a number of its own for every task, 1e-9 to 7e-9 on
    squared mean gradients; as a multiple of Phi it fits every batch size, clip and
    noise [ours]. What other parts of the chain add to the noised gradient, such as
    weight decay, is taken for signal; pass `noise_std` if a part scales it or
    `optax.MultiSteps` averages it.

  Reference: Tang, Shpilevskiy & Lecuyer, "DP-AdamBC: Your DP-Adam Is Actually DP-SGD
    (Unless You Apply Bias Correction)", 2023, arXiv 2312.14334.

  >>> optimizer = adam_corrected(0.1, noise_std=0.0)
  >>> state = optimizer.init(jnp.ones(()))
  >>> updates, _ = optimizer.update(jnp.float32(5.0), state)
  >>> round(float(updates), 4)
  -0.1
  """

  def init(params):
    zeros = tree.zeros_like(params)
    return CorrectedState(jnp.int32(0), zeros, zeros, jnp.float32(0))

  def update(updates, state, params=None, **known):
    del params
    if noise_std is None and "noise_std" not in known:
      raise ValueError(
        "adam_corrected has no noise to correct for: use dp_sgd in a classifier, or "
        "pass noise_std"
      )
    std = known["noise_std"] if noise_std is None else noise_std
    count = state.count + 1
    mu = tree.update_moment(updates, state.mu, b1, 1)
    nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    noise = b2 * state.noise + (1 - b2) * jnp.square(jnp.float32(std))
    m, v = tree.bias_correction(mu, b1, count), tree.bias_correction(nu, b2, count)
    phi = tree.bias_correction(noise, b2, count)

    def step(m, v):
      return m / (jnp.sqrt(jnp.maximum(v - phi, floor * phi)) + eps)

    steps = jax.tree.map(step, m, v)
    return steps, CorrectedState(count, mu, nu, noise)

  corrected = optax.GradientTransformationExtraArgs(init, update)
  return optax.chain(corrected, optax.scale_by_learning_rate(learning_rate))

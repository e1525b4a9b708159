"""Penalties on the parameters."""

import jax
import jax.numpy as jnp

from mixdef.core.check import check_flag, check_number
from mixdef.core.hooks import Defense, defense


@defense(aliases={"l2": "weight_decay"}, neutral="weight_decay(0.0)")
def weight_decay(coefficient=5e-4, *, biases=False) -> Defense:
  """Add an L2 penalty to the loss, through its gradient.

  ```
  g <- g + coefficient theta        the gradient of (coefficient / 2) ||theta||^2
  ```

  Args:
    coefficient: at least 0; 5e-4 is usual on CIFAR. Sweep 1e-5..1e-2.
    biases: whether to decay biases and normalization parameters, too (leaves of rank
      below 2).

  Returns:
    The defense.

  Guarantee: none by itself. After `dp_sgd` it is post-processing: it acts on the noised
    gradient and reads parameters only.

  Deviation: written as wd ||theta||^2 the gradient is 2 wd theta; here the factor is
    that of `optax.add_decayed_weights` and of SGD's usual `weight_decay`. The decay is
    coupled: Adam rescales it. For the decoupled kind, use `optax.adamw`.

  Reference: Krogh, Hertz, A Simple Weight Decay Can Improve Generalization, 1991; Kaya,
    Hong, Dumitras, On the Effectiveness of Regularization Against Membership Inference
    Attacks, 2020, arXiv 2006.05336.

  >>> str(weight_decay(1e-3))
  'weight_decay(coefficient=0.001)'
  """
  check_number("weight_decay: coefficient", coefficient, 0)
  check_flag("weight_decay: biases", biases)
  return _penalty(lambda leaf: coefficient * leaf, biases)


@defense(neutral="l1(0.0)")
def l1(coefficient=1e-5, *, biases=False) -> Defense:
  """Add an L1 penalty to the loss, through its gradient.

  ```
  g <- g + coefficient sign(theta)        the subgradient of coefficient ||theta||_1
  ```

  Args:
    coefficient: at least 0. Sweep 1e-5..1e-3.
    biases: whether to penalize biases and normalization parameters, too (leaves of rank
      below 2).

  Returns:
    The defense.

  Guarantee: none by itself. After `dp_sgd` it is post-processing.

  Deviation: the subgradient at 0 is 0. AdaMixup compares with L1 and does not report
    the coefficient; the default is the weakest of our sweep [ours].

  Reference: Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996.

  >>> str(l1(name="sparse"))
  "l1(name='sparse')"
  """
  check_number("l1: coefficient", coefficient, 0)
  check_flag("l1: biases", biases)
  return _penalty(lambda leaf: coefficient * jnp.sign(leaf), biases)


def _penalty(gradient, biases):
  def add(grad, leaf):
    return grad + gradient(leaf) if biases or leaf.ndim >= 2 else grad

  def grads(grads, state, ctx):
    return jax.tree.map(add, grads, ctx.variables["params"]), state

  return Defense("", grads=grads)

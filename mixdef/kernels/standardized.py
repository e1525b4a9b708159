"""A convolution whose kernel is standardised before it is used."""

import flax.linen as nn
import jax
import jax.numpy as jnp

_LEAST_SQUARE = 1e-4


class Conv(nn.Conv):
  """`nn.Conv` on `standardize(kernel)`, with the same fields and parameters.

  The class is called as linen's own, so a network names its parameters the same with
  and without it, and starts from the same draws. It is another type, because rules for
  per-example gradients of `nn.Conv` would be wrong for this kernel.
  """

  @nn.nowrap
  def param(self, name, *args, **kwargs):
    """Return a parameter as the layer uses it; it is stored as it was drawn."""
    value = super().param(name, *args, **kwargs)
    return standardize(value) if name == "kernel" else value


def standardize(kernel: jax.Array) -> jax.Array:
  """Give each output channel of a kernel mean 0 and norm 1 over its fan-in.

  ```
  w' = (w - mean w) / sqrt(max(I var w, 1e-4)),   mean and variance over the I inputs
  ```

  Args:
    kernel: `[...,C,O]`, with I = the product of all axes but the last.

  Returns:
    The same shape. Inputs of mean square 1 then have outputs of about mean square 1.

  Deviation: the first paper divides by the standard deviation alone, which multiplies
    the outputs by sqrt(I) and relies on a normalisation behind; this is the scaled form
    that De et al. use. They also learn a gain a channel; here there is none, so that
    the parameters stay those of the plain network.

  Reference: Qiao, Wang, Liu, Shen, Yuille, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, 2019, arXiv 1903.10520; Brock, De, Smith,
    Simonyan, High-Performance Large-Scale Image Recognition Without Normalization,
    2021, arXiv 2102.06171; De, Berrada, Hayes, Smith, Balle, 2022, arXiv 2204.13650.

  >>> [round(float(w), 4) for w in standardize(jnp.array([[1.0], [2.0], [3.0]]))[:, 0]]
  [-0.7071, 0.0, 0.7071]
  """
  axes = tuple(range(kernel.ndim - 1))
  centred = kernel - kernel.mean(axes, keepdims=True)
  square = (centred**2).sum(axes, keepdims=True)  # of all inputs: I times the variance
  return centred * jax.lax.rsqrt(jnp.maximum(square, _LEAST_SQUARE))

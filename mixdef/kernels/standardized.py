"""A convolution with weight standardization."""

import flax.linen as nn
import jax
import jax.numpy as jnp

_LEAST_SQUARE = 1e-4


class Conv(nn.Conv):
  """`nn.Conv` on `standardize(kernel)`, with the same fields and parameters.

  The class has the same name as linen's, so a network has the same parameter names and
  the same initial values with and without it. It is a separate type, because rules for
  per-example gradients of `nn.Conv` would be wrong for this kernel.
  """

  @nn.nowrap
  def param(self, name, *args, **kwargs):
    """Return a parameter as used by the layer; the stored kernel stays unchanged."""
    value = super().param(name, *args, **kwargs)
    return standardize(value) if name == "kernel" else value


def standardize(kernel: jax.Array) -> jax.Array:
  """Standardize each output channel of a kernel to mean 0 and norm 1 over its fan-in.

  ```
  w' = (w - mean w) / sqrt(max(I var w, 1e-4)),   mean and variance over the I inputs
  ```

  Args:
    kernel: `[...,C,O]`, with I = the product of all axes but the last.

  Returns:
    A kernel of the same shape. Inputs of mean square 1 then give outputs of mean square
    about 1.

  Deviation: the first paper divides only by the standard deviation, which multiplies
    the outputs by sqrt(I) and relies on a subsequent normalization; this is the scaled
    form of De et al. They also learn a gain per channel; here there is none, so that
    the parameters are those of the plain network.

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

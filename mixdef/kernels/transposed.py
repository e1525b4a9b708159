"""The transposed convolution: the input gradient of a convolution, as a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.kernels.convolution import convolution


class ConvTranspose(nn.Module):
  """Enlarge feature maps by the transpose of a strided convolution.

  It maps `[B,h,w,I]` to `[B,H,W,O]` if a convolution of the same kernel, stride and
  padding takes maps of `size` = (H, W) to (h, w). The size of the result, which the
  stride does not determine, is given directly instead of an output padding.

  Attributes:
    features: number O of output channels.
    size: output rows and columns (H, W).
    window: kernel size.
    strides: strides of the convolution.
    padding: padding of the convolution in pixels.
    use_bias: add one bias per channel.
    lowering: how the convolution is lowered; see `mixdef.kernels.convolution`.

  Reference: Dumoulin, Visin, A guide to convolution arithmetic for deep learning, 2016,
    arXiv 1603.07285.
  """

  features: int
  size: tuple[int, int]
  window: tuple[int, int] = (5, 5)
  strides: int = 2
  padding: int = 2
  use_bias: bool = True
  lowering: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return `[B,H,W,O]` for `x [B,h,w,I]`."""
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(in_axis=-1, out_axis=-2),
      (*self.window, self.features, x.shape[-1]),
    )

    def shrink(image):
      return convolution(
        image, kernel, self.strides, self.padding, lowering=self.lowering
      )

    image = jnp.zeros((x.shape[0], *self.size, self.features), x.dtype)
    small, transpose = jax.vjp(shrink, image)
    if small.shape != x.shape:
      raise ValueError(
        f"maps of {x.shape[1:3]} cannot be enlarged to {self.size}: a convolution with "
        f"stride {self.strides} reduces that size to {small.shape[1:3]}"
      )
    (y,) = transpose(x)
    if self.use_bias:
      y = y + self.param("bias", nn.initializers.zeros, (self.features,))
    return y

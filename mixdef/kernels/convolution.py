"""Two-dimensional convolution with a choice of lowerings for XLA.

The lowerings agree in value and gradient and differ only in speed. On CPU, the
gradients of a plain `lax.conv_general_dilated` do not use XLA's fast kernel inside
`scan`, `while` or `cond` (28-70 times slower), which is exactly where a compiled epoch
places them; `canonical` expresses them so that they use it.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax

from mixdef.core.platform import platform
from mixdef.kernels.convolution_cpu import (
  Geometry,
  Pads,
  Pair,
  canonical,
  im2col,
  native,
)
from mixdef.kernels.onednn import onednn

LOWERINGS = ("auto", "native", "canonical", "im2col", "onednn")

Padding = str | int | Sequence[int | Pair]


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  *,
  lowering: str = "auto",
  feature_group_count: int = 1,
) -> jax.Array:
  """Convolve images with a kernel.

  `y[b,p,q,o] = sum_{i,j,c} x_pad[b, p*s+i, q*s+j, c] kernel[i,j,c,o]` (the
  cross-correlation that is called convolution in neural networks).

  Lowerings:
    native: one `lax.conv_general_dilated`, differentiated by JAX.
    canonical: the forward pass and both gradients in forms that XLA compiles to
      its fastest kernels on CPU, also inside `scan`; see
      `mixdef.kernels.convolution_cpu`. `vmap` over kernels runs them one after another.
      Reverse mode only, to any order.
    im2col: patches and one matrix product, so `vmap` over kernels becomes a
      batched product. Slower than `canonical` on CPU.
    onednn: float32 convolutions by the library oneDNN, with the derivatives and the
      `vmap` of `canonical`; CPU only, requires `pip install 'mixdef[onednn]'`. It is
      compiled on first use, which needs a C++ compiler and a few seconds.
    auto: `canonical` in programs for a CPU, `native` in others (see
      `mixdef.core.platform`). The choice for GPU and TPU is the conservative one; it
      has not been measured yet.

  Args:
    x: images `[B,H,W,C]`.
    kernel: `[kh,kw,C/g,O]`, of the same dtype as `x`.
    strides: step between windows, one number or one per axis.
    padding: `"SAME"`, `"VALID"`, a number of pixels for all sides, or one number
      or `(low, high)` pair per axis.
    lowering: one of `LOWERINGS`.
    feature_group_count: groups `g` of input and output channels. Grouped
      convolutions are always lowered as `native`.

  Returns:
    `[B,H',W',O]`.

  Raises:
    ValueError: for an unknown lowering, shapes that do not fit together, a kernel
      larger than the padded image, or `onednn` if it is not available.

  >>> x = jax.numpy.arange(9.0).reshape(1, 3, 3, 1)
  >>> convolution(x, jax.numpy.ones((2, 2, 1, 1)), padding="VALID")[0, :, :, 0]
  Array([[ 8., 12.],
         [20., 24.]], dtype=float32)
  """
  if lowering not in LOWERINGS:
    raise ValueError(f"lowering {lowering!r} is unknown; choose from {LOWERINGS}")
  _check_shapes(x, kernel, feature_group_count)
  strides = (strides,) * 2 if isinstance(strides, int) else tuple(strides)
  pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  geometry = Geometry(x.shape[1:3], kernel.shape[:2], strides, pads)
  if min(geometry.output) < 1:
    raise ValueError(
      f"a {kernel.shape[0]}x{kernel.shape[1]} kernel does not fit a map of"
      f" {x.shape[1]}x{x.shape[2]} with padding {padding}; use padding='SAME'"
    )
  if lowering == "auto":
    lowering = "canonical" if platform() == "cpu" else "native"
  if lowering == "native" or feature_group_count != 1:
    return native(x, kernel, strides, pads, feature_group_count=feature_group_count)
  rewritten = {"canonical": canonical, "im2col": im2col, "onednn": onednn}
  return rewritten[lowering](x, kernel, geometry)


def linen_conv(lowering: str) -> Callable[..., jax.Array]:
  """Make a stand-in for `lax.conv_general_dilated` inside a plain `nn.Conv`.

  Args:
    lowering: one of `LOWERINGS`. Dilated layers, and layers that request a precision,
      always use `lax.conv_general_dilated`.

  Returns:
    A function that accepts the arguments that `nn.Conv` passes; construct the layer
    with `conv_general_dilated_cls=functools.partial(linen_conv, lowering)`.
  """

  def conv(
    x,
    kernel,
    strides,
    padding,
    *,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count=1,
    precision=None,
  ):
    if max(*lhs_dilation, *rhs_dilation) > 1 or precision is not None:
      return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
      )
    return convolution(
      x,
      kernel,
      strides,
      padding,
      lowering=lowering,
      feature_group_count=feature_group_count,
    )

  return conv


def _check_shapes(x: jax.Array, kernel: jax.Array, groups: int) -> None:
  if x.ndim != 4 or kernel.ndim != 4:
    raise ValueError(
      f"x {x.shape} and kernel {kernel.shape} must be [B,H,W,C] and [kh,kw,C/g,O]"
    )
  if x.shape[3] != kernel.shape[2] * groups:
    raise ValueError(
      f"x has {x.shape[3]} channels, but the kernel {kernel.shape} with {groups} "
      f"groups expects {kernel.shape[2] * groups}"
    )


def _pads(image: Pair, window: Pair, strides: Pair, padding: Padding) -> Pads:
  if isinstance(padding, str):
    if padding not in ("SAME", "VALID"):
      raise ValueError(f"padding {padding!r} is unknown; use 'SAME' or 'VALID'")
    return tuple(map(tuple, lax.padtype_to_pads(image, window, strides, padding)))
  if isinstance(padding, int):
    padding = (padding, padding)
  return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)

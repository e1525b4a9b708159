"""Two-dimensional convolution with a choice of how XLA sees it.

The lowerings agree in value and gradient and differ only in speed. On CPU the
gradients of a plain `lax.conv_general_dilated` leave XLA's fast kernel when they
are inside `scan`, `while` or `cond` (28-70 times slower), which is exactly where
a compiled epoch puts them; `canonical` writes them so that they stay on it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

LOWERINGS = ("auto", "native", "canonical", "im2col")

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# A chunk's patches stay in cache; all patches of a batch at once do not.
_CHUNK = 4

_Pair = tuple[int, ...]  # (height, width)
_Pads = tuple[_Pair, ...]
Padding = str | int | Sequence[int | _Pair]


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
  cross-correlation that networks call convolution).

  Lowerings:
    native: one `lax.conv_general_dilated`, differentiated by JAX.
    canonical: the forward pass and the input gradient are plain NHWC / HWIO
      convolutions, the kernel gradient a scan of patch products over a few images
      at a time. Fast on CPU inside `scan`. Reverse mode only, to any order.
    im2col: patches and one matrix product, so `vmap` over kernels becomes a
      batched product. On CPU about twice as fast as `canonical` for vmapped `cnn`
      models, and slower than it for a single one.
    auto: `canonical` on CPU, `native` elsewhere. The choice for GPU and TPU is
      the conservative one; it has not been measured yet.

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
    ValueError: for an unknown lowering, shapes that do not fit together, or a
      kernel larger than the padded image.

  >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  >>> convolution(x, jnp.ones((2, 2, 1, 1)), padding="VALID")[0, :, :, 0]
  Array([[ 8., 12.],
         [20., 24.]], dtype=float32)
  """
  if lowering not in LOWERINGS:
    raise ValueError(f"lowering {lowering!r} is unknown; choose from {LOWERINGS}")
  _check_shapes(x, kernel, feature_group_count)
  strides = (strides,) * 2 if isinstance(strides, int) else tuple(strides)
  pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  if min(_output_size(x.shape[1:3], kernel.shape[:2], strides, pads)) < 1:
    raise ValueError(
      f"a {kernel.shape[0]}x{kernel.shape[1]} kernel does not fit a map of"
      f" {x.shape[1]}x{x.shape[2]} with padding {padding}; use padding='SAME'"
    )
  if lowering == "auto":
    lowering = "canonical" if jax.default_backend() == "cpu" else "native"
  if lowering == "native" or feature_group_count != 1:
    return _native(x, kernel, strides, pads, feature_group_count=feature_group_count)
  return {"canonical": _canonical, "im2col": _im2col}[lowering](
    x, kernel, strides, pads
  )


def linen_conv(lowering: str) -> Callable[..., jax.Array]:
  """Make a stand-in for `lax.conv_general_dilated` inside a plain `nn.Conv`.

  Args:
    lowering: one of `LOWERINGS`. Dilated layers, and layers that ask for a
      precision, keep `lax.conv_general_dilated` whatever it says.

  Returns:
    A function with the arguments `nn.Conv` passes; give the layer
    `conv_general_dilated_cls=functools.partial(linen_conv, lowering)`.
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
      f"x has {x.shape[3]} channels, but the kernel {kernel.shape} with"
      f" {groups} groups takes {kernel.shape[2] * groups}"
    )


def _pads(image: _Pair, window: _Pair, strides: _Pair, padding: Padding) -> _Pads:
  if isinstance(padding, str):
    if padding not in ("SAME", "VALID"):
      raise ValueError(f"padding {padding!r} is unknown; use 'SAME' or 'VALID'")
    return tuple(map(tuple, lax.padtype_to_pads(image, window, strides, padding)))
  if isinstance(padding, int):
    padding = (padding, padding)
  return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


def _output_size(image: _Pair, window: _Pair, strides: _Pair, pads: _Pads) -> _Pair:
  return tuple(
    (size + low + high - k) // stride + 1
    for size, k, stride, (low, high) in zip(image, window, strides, pads, strict=True)
  )


def _native(x, kernel, strides, pads, **options):
  return lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=_LAYOUT, **options
  )


def _patches(x: jax.Array, window: _Pair, strides: _Pair, pads: _Pads) -> jax.Array:
  """Gather the windows as `[B,H',W',kh*kw*C]`, ordered like the rows of a kernel."""
  height, width = _output_size(x.shape[1:3], window, strides, pads)
  edges = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
  x = lax.pad(x, jnp.zeros((), x.dtype), edges)
  batch, _, _, channels = x.shape
  taps = []
  for i in range(window[0]):
    for j in range(window[1]):
      last_row = i + (height - 1) * strides[0]
      last_column = j + (width - 1) * strides[1]
      taps.append(
        lax.slice(
          x,
          (0, i, j, 0),
          (batch, last_row + 1, last_column + 1, channels),
          (1, *strides, 1),
        )
      )
  return jnp.concatenate(taps, axis=-1)


def _im2col(x, kernel, strides, pads):
  patches = _patches(x, kernel.shape[:2], strides, pads)
  return patches @ kernel.reshape(-1, kernel.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _canonical(x, kernel, strides, pads):
  return _native(x, kernel, strides, pads)


def _canonical_forward(x, kernel, strides, pads):
  return _canonical(x, kernel, strides, pads), (x, kernel)


def _canonical_backward(strides, pads, residuals, gradient):
  x, kernel = residuals
  return (
    _input_gradient(gradient, kernel, x.shape[1:3], strides, pads),
    _kernel_gradient(x, gradient, kernel.shape[:2], strides, pads),
  )


_canonical.defvjp(_canonical_forward, _canonical_backward)


def _input_gradient(gradient, kernel, image, strides, pads):
  """Convolve the spread-out gradient with the kernel turned by 180 degrees."""
  outer = []
  for axis, (low, _) in enumerate(pads):
    spread = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
    outer.append((kernel.shape[axis] - 1 - low, image[axis] - spread + low))
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  return _native(gradient, turned, (1, 1), outer, lhs_dilation=strides)


def _kernel_gradient(x, gradient, window, strides, pads):
  """Sum `gradient^T patches` over chunks of images."""
  batch, outputs = x.shape[0], gradient.shape[3]
  # A 1x1 window needs no patches, so nothing is gained by cutting the batch.
  largest = batch if window == (1, 1) else _CHUNK
  chunk = next(size for size in range(largest, 0, -1) if batch % size == 0)

  def add(total, images):
    patches = _patches(images[0], window, strides, pads)
    rows = images[1].reshape(-1, outputs)
    return total + rows.T @ patches.reshape(-1, patches.shape[-1]), None

  chunks = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), (x, gradient))
  features = window[0] * window[1] * x.shape[3]
  total, _ = lax.scan(add, jnp.zeros((outputs, features), gradient.dtype), chunks)
  return total.T.reshape(*window, x.shape[3], outputs)

"""Two-dimensional convolution written for XLA's fast kernels on CPU.

XLA dispatches a float32 convolution to its library only in the layout NHWC / HWIO, with
an input that is not dilated and more than 16 channels on one side. Anything else uses a
slower path, up to 70 times slower inside `scan`. Therefore a convolution and its two
gradients are each expressed as a convolution that qualifies, or as matrix products.

All three are linear in both arguments, and the derivatives of each are the other two,
so reverse mode works to any order. Under `vmap` over kernels they run one model after
another, which is 1.3 to 4 times faster than batched convolutions and batched patch
products.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, ...]  # (height, width)
Pads = tuple[Pair, ...]  # (low, high) per axis

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Convolutions with at most this many channels on both sides bypass the library.
_NARROW = 16

# With fewer channels, the library's matrix product is too thin to be fast.
_THIN = 8

# Entries in the two factors of a chunk, which stay in cache; a whole batch does not.
_CHUNK = 2**18


class Geometry(NamedTuple):
  """The sizes of a convolution, except for batch and channels."""

  image: Pair
  window: Pair
  strides: Pair
  pads: Pads

  @property
  def output(self) -> Pair:
    """The rows and columns of the result."""
    return tuple(
      (size + low + high - window) // stride + 1
      for size, window, stride, (low, high) in zip(*self, strict=True)
    )


def native(x, kernel, strides, pads, **options) -> jax.Array:
  """Convolve by one `lax.conv_general_dilated`."""
  return lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=_LAYOUT, **options
  )


def im2col(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Convolve by one matrix product of all patches with the kernel."""
  return _patches(x, geometry) @ kernel.reshape(-1, kernel.shape[3])


def canonical(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Convolve by operations that XLA compiles to its fastest kernels on CPU."""
  if geometry.window == (1, 1):
    return im2col(x, kernel, geometry)
  return convolve(x, kernel, geometry, _PASSES)


class Passes(NamedTuple):
  """Implementations of a convolution and its two gradients, linear in both arrays."""

  forward: Callable
  input_gradient: Callable
  kernel_gradient: Callable


def _one_after_another(function: Callable) -> Callable:
  """Let `vmap` of `function(images, kernel)` merge batches, or else run a loop."""
  wrapped = jax.custom_batching.custom_vmap(function)

  @wrapped.def_vmap
  def rule(axis_size, batched, images, kernel):
    if batched == [True, False]:
      y = wrapped(images.reshape(-1, *images.shape[2:]), kernel)
      return y.reshape(axis_size, -1, *y.shape[1:]), True
    if batched == [False, True]:
      return lax.map(lambda kernel: wrapped(images, kernel), kernel), True
    return lax.map(lambda both: wrapped(*both), (images, kernel)), True

  return wrapped


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
  x: jax.Array, kernel: jax.Array, geometry: Geometry, passes: Passes
) -> jax.Array:
  """Convolve by the given passes; supports reverse mode and `vmap`."""
  forward = functools.partial(passes.forward, geometry=geometry)
  return _one_after_another(forward)(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(gradient, kernel, geometry, passes):
  backward = functools.partial(passes.input_gradient, geometry=geometry)
  return _one_after_another(backward)(gradient, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x, gradient, geometry, passes):
  correlate = functools.partial(passes.kernel_gradient, geometry=geometry)
  return jax.custom_batching.sequential_vmap(correlate)(x, gradient)


def _derivatives(
  function: jax.custom_vjp, by_first: Callable, by_second: Callable
) -> None:
  """Define the VJP of one of the three passes from `(a, b, cotangent, *how)`."""

  def forward(a, b, *how):
    return function(a, b, *how), (a, b)

  def backward(geometry, passes, residuals, cotangent):
    how = geometry, passes
    return tuple(by(*residuals, cotangent, *how) for by in (by_first, by_second))

  function.defvjp(forward, backward)


_derivatives(
  convolve,
  lambda x, kernel, ct, *how: _input_gradient(ct, kernel, *how),
  lambda x, kernel, ct, *how: _kernel_gradient(x, ct, *how),
)
_derivatives(
  _input_gradient,
  lambda gradient, kernel, ct, *how: convolve(ct, kernel, *how),
  lambda gradient, kernel, ct, *how: _kernel_gradient(ct, gradient, *how),
)
_derivatives(
  _kernel_gradient,
  lambda x, gradient, ct, *how: _input_gradient(gradient, ct, *how),
  lambda x, gradient, ct, *how: convolve(x, ct, *how),
)


def _forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Convolve; if channels are few, compute adjacent outputs as one wide pixel."""
  inputs, outputs = kernel.shape[2:]
  abreast = _abreast(inputs, outputs, geometry.output[1])
  down, across = geometry.strides
  if abreast > 1:
    # Each adjacent output has its own copy of the kernel, shifted right by a stride.
    copies = [
      jnp.pad(
        kernel, ((0, 0), (across * j, across * (abreast - 1 - j)), (0, 0), (0, 0))
      )
      for j in range(abreast)
    ]
    kernel = jnp.concatenate(copies, axis=3)
  y = native(x, kernel, (down, across * abreast), geometry.pads)
  return y.reshape(x.shape[0], *geometry.output, outputs)


def _abreast(inputs: int, outputs: int, width: int) -> int:
  """Return how many outputs to compute side by side, a divisor of `width`."""
  if max(inputs, outputs) > _NARROW:
    # A single channel is already fast.
    wanted = 2 if 1 < inputs < _THIN else 1
  else:
    wanted = 4 if min(inputs, outputs) < _THIN else 2
  return next(n for n in range(wanted, 0, -1) if width % n == 0)


def _backward(gradient: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Return the gradient by the images: all `stride` phases of a block at once.

  Image row `stride * m + phase` receives gradient row `m - t` through kernel row
  `stride * t + phase`, if `low` is a multiple of the stride. Therefore, a convolution
  with the flipped kernel, whose phases are channels, gives blocks of `stride` rows.
  """
  (high_s, wide_s), outputs = geometry.strides, gradient.shape[3]
  lead, taps, blocks, pads = zip(
    *map(_phases, *geometry, gradient.shape[1:3]), strict=True
  )
  fill = [
    (front, t * s - size - front)
    for front, t, s, size in zip(
      lead, taps, geometry.strides, geometry.window, strict=True
    )
  ]
  kernel = jnp.pad(kernel, (*fill, (0, 0), (0, 0)))
  inputs = kernel.shape[2]
  kernel = kernel.reshape(taps[0], high_s, taps[1], wide_s, inputs, outputs)
  turned = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
  turned = turned.reshape(*taps, outputs, high_s * wide_s * inputs)
  y = _forward(gradient, turned, Geometry(gradient.shape[1:3], taps, (1, 1), pads))
  y = y.reshape(-1, *blocks, high_s, wide_s, inputs).transpose(0, 1, 3, 2, 4, 5)
  y = y.reshape(-1, blocks[0] * high_s, blocks[1] * wide_s, inputs)
  return y[:, : geometry.image[0], : geometry.image[1]]


def _phases(size, window, stride, pads, received):
  """Return (leading zero taps, taps per phase, blocks, pads) of an axis."""
  lead = -pads[0] % stride
  taps = -(-(window + lead) // stride)
  first, blocks = (pads[0] + lead) // stride, -(-size // stride)
  return lead, taps, blocks, (taps - 1 - first, first + blocks - received)


def _correlate(x: jax.Array, gradient: jax.Array, geometry: Geometry) -> jax.Array:
  """Return the gradient by the kernel."""
  shape = (*geometry.window, x.shape[3], gradient.shape[3])
  if geometry.strides[0] == 1 and x.shape[3] <= _NARROW:
    total = _sum_chunks(_balanced_product, x, gradient, geometry)
    high, wide, inputs, outputs = shape
    total = total.reshape(wide, inputs, high, outputs).transpose(2, 0, 1, 3)
  else:
    total = _sum_chunks(_patch_product, x, gradient, geometry).T.reshape(shape)
  return total.astype(x.dtype)


_PASSES = Passes(_forward, _backward, _correlate)


def _sum_chunks(product: Callable, x, gradient, geometry: Geometry) -> jax.Array:
  """Sum `product` over chunks of images, in float32 or better."""
  one = jax.eval_shape(lambda *images: product(*images, geometry), x[:1], gradient[:1])
  largest = max(1, _CHUNK // sum(factor.size for factor in one))
  chunk = next(n for n in range(largest, 0, -1) if x.shape[0] % n == 0)
  chunks = tuple(a.reshape(-1, chunk, *a.shape[1:]) for a in (x, gradient))
  wide = jnp.promote_types(x.dtype, jnp.float32)

  def add(total, images):
    left, right = product(*images, geometry)
    return total + jnp.matmul(left.T, right, preferred_element_type=wide), None

  return lax.scan(add, jnp.zeros([f.shape[1] for f in one], wide), chunks)[0]


def _patch_product(x, gradient, geometry):
  """Return the factors: gradients `[pixels,O]` and patches `[pixels,kh*kw*C]`."""
  patches = _patches(x, geometry)
  return gradient.reshape(-1, gradient.shape[3]), patches.reshape(-1, patches.shape[3])


def _balanced_product(x, gradient, geometry):
  """Return the factors: row taps `[pixels,kw*C]` and column taps `[pixels,kh*O]`.

  With few channels this copies less than whole patches, and the product is closer to
  square.
  """
  (high, _), (rows, _) = geometry.window, geometry.output
  row = geometry._replace(window=(1, geometry.window[1]))
  across = _patches(x, row)
  spread = jnp.pad(gradient, ((0, 0), (high - 1, high - 1), (0, 0), (0, 0)))
  down = [spread[:, high - 1 - i :][:, : rows + high - 1] for i in range(high)]
  down = jnp.concatenate(down, axis=3)
  return across.reshape(-1, across.shape[3]), down.reshape(-1, down.shape[3])


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
  """Gather the windows as `[B,H',W',kh*kw*C]`, ordered like the rows of a kernel."""
  (high, wide), (rows, columns) = geometry.window, geometry.output
  down, across = geometry.strides
  x = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    ((0, 0, 0), *((low, high, 0) for low, high in geometry.pads), (0, 0, 0)),
  )
  taps = [
    lax.slice(
      x,
      (0, i, j, 0),
      (
        x.shape[0],
        i + (rows - 1) * down + 1,
        j + (columns - 1) * across + 1,
        x.shape[3],
      ),
      (1, down, across, 1),
    )
    for i in range(high)
    for j in range(wide)
  ]
  return jnp.concatenate(taps, axis=3)

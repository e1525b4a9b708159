"""Two-dimensional convolution by oneDNN, the library that PyTorch uses.

oneDNN supports the layout NHWC with any number of channels, which XLA's own CPU kernels
do not. The functions are written in C++ for XLA's foreign function interface, and
compiled on first use. Each call uses one thread, because many models share the cores.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.kernels.convolution_cpu import Geometry, Passes, canonical, convolve
from mixdef.kernels.onednn.build import TARGETS, library, register

__all__ = ["TARGETS", "library", "onednn"]


def onednn(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Convolve by oneDNN, or by `canonical` if oneDNN does not support the case."""
  register()
  others = {x.dtype, kernel.dtype} - {jnp.dtype(jnp.float32)}
  if others or np.min(geometry.pads) < 0:
    return canonical(x, kernel, geometry)
  return convolve(x, kernel, geometry, _PASSES)


def _forward(x, kernel, *, geometry):
  shape = x.shape[0], *geometry.output, kernel.shape[3]
  return _call("mixdef_convolution", shape, x, kernel, geometry)


def _input_gradient(gradient, kernel, *, geometry):
  shape = gradient.shape[0], *geometry.image, kernel.shape[2]
  return _call("mixdef_input_gradient", shape, gradient, kernel, geometry)


def _kernel_gradient(x, gradient, *, geometry):
  shape = *geometry.window, x.shape[3], gradient.shape[3]
  return _call("mixdef_kernel_gradient", shape, x, gradient, geometry)


def _call(target, shape, left, right, geometry):
  call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32))
  low, high = np.transpose(np.int64(geometry.pads))
  return call(left, right, strides=np.int64(geometry.strides), low=low, high=high)


_PASSES = Passes(_forward, _input_gradient, _kernel_gradient)

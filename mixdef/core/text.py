"""Stable text representations of modules, functions and arrays.

The text is the same in every process.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mixdef.core.reading import digest

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_NOT_OF_A_MODULE = ("parent", "name")


def text_of(value: Any) -> str:
  """Write a value on one line, without its address in memory.

  Functions are represented by their name, arrays by a digest of their content, modules
  and dataclasses by their fields. Functions with the same name, such as lambdas, have
  the same text; the program that contains them distinguishes them.

  Args:
    value: a linen module, a function, an array, a container, or anything else.

  >>> text_of(functools.partial(nn.gelu, approximate=False))
  'partial(gelu, approximate=False)'
  >>> text_of(nn.Sequential([nn.Dense(2), lambda x: x]))
  'Sequential(layers=[Dense(features=2), <lambda>])'
  """
  if isinstance(value, functools.partial):
    words = [*map(text_of, (value.func, *value.args)), *_pairs(value.keywords)]
    return f"partial({', '.join(words)})"
  if isinstance(value, np.ndarray | jax.Array):
    return _text_of_array(value)
  if isinstance(value, Mapping):
    items = (f"{text_of(key)}: {text_of(one)}" for key, one in value.items())
    return f"{{{', '.join(items)}}}"
  if isinstance(value, set | frozenset):
    return f"{{{', '.join(sorted(map(text_of, value)))}}}"
  if type(value) is list:
    return f"[{', '.join(map(text_of, value))}]"
  if type(value) is tuple:
    return f"({', '.join(map(text_of, value))}{',' * (len(value) == 1)})"
  if callable(value) and hasattr(value, "__qualname__"):
    return value.__qualname__
  if dataclasses.is_dataclass(value):
    return f"{type(value).__qualname__}({', '.join(_pairs(_fields(value)))})"
  return " ".join(_ADDRESS.sub("", repr(value)).split())


def _fields(value):
  """Return the fields of a dataclass; for Flax's own classes, only non-default ones."""
  hidden = _NOT_OF_A_MODULE if isinstance(value, nn.Module) else ()
  named = {
    field.name: (getattr(value, field.name), field.default)
    for field in dataclasses.fields(value)
    if field.repr and field.name not in hidden
  }
  if type(value).__module__.startswith("flax."):
    named = {k: v for k, v in named.items() if text_of(v[0]) != text_of(v[1])}
  return {name: one for name, (one, _) in named.items()}


def _pairs(named):
  return [f"{name}={text_of(value)}" for name, value in named.items()]


def _text_of_array(array):
  if isinstance(array, jax.core.Tracer):
    return f"{array.dtype}{list(array.shape)}"
  if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
    array = jax.random.key_data(array)
  return f"{array.dtype}{list(array.shape)}#{digest(array)}"

"""Random streams of this package, one for each purpose.

Models draw from JAX keys, what runs on the host from numpy generators. Both start here,
from a seed that is checked once.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.data import validate

KEY_IMPLEMENTATION = "threefry2x32"
"""Of all random keys, whatever `jax_default_prng_impl` says.

Under `rbg`, which is usual on TPUs, `vmap` changes what a key draws: a model would
depend on how many are trained side by side. A run folder notes it.
"""

_SEEDS = 2**63


def check_seed(seed: Any, what: str = "seed") -> int:
  """Return a seed as a Python integer.

  Args:
    seed: an integer of Python, numpy or JAX in [0, 2**63).
    what: the argument, for the message.

  Raises:
    ValueError: for anything else, `None` and `True` included.

  >>> check_seed(np.int64(7))
  7
  """
  seed = validate.integer(seed, what)
  if seed >= _SEEDS:
    raise ValueError(f"{what}={seed}; take an integer below 2**63")
  return seed


def random_key(seed: Any) -> jax.Array:
  """Return the JAX key of a seed.

  It equals `jax.random.key(seed, impl="threefry2x32")` for seeds below 2**32. That
  drops the higher bits of others unless `jax_enable_x64` is set; here they count.

  Raises:
    ValueError: as `check_seed`.

  >>> bool(random_key(2**32) == random_key(0))
  False
  """
  seed = check_seed(seed)
  bits = jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))
  return jax.random.wrap_key_data(bits, impl=KEY_IMPLEMENTATION)


def generator(seed: Any) -> np.random.Generator:
  """Return numpy's `default_rng` of a seed.

  Raises:
    ValueError: as `check_seed`; numpy would draw a seed for `None`.
  """
  return np.random.default_rng(check_seed(seed))


def stream(seed: Any, purpose: str, *index: int) -> np.random.Generator:
  """Return the numpy generator of one purpose under one seed.

  `generator(seed)` at every place would hand the same permutation to the reference
  rows and to the target split, so that one would lie inside the other.

  Args:
    seed: non-negative int, chosen by the user.
    purpose: name of the draw.
    *index: ints that tell draws of one purpose apart, for example the model.

  Returns:
    A `np.random.Generator` that depends on nothing else.

  Raises:
    ValueError: as `check_seed`.
  """
  # spawn_key and not [seed, index]: numpy pads entropy with zeros, so that
  # [7, 0] would be the same stream as 7.
  key = (zlib.crc32(purpose.encode()), *index)
  return np.random.default_rng(np.random.SeedSequence(check_seed(seed), spawn_key=key))

"""Random streams, one per purpose.

Models draw from JAX keys, and host code draws from numpy generators. Both are created
here, from a seed that is checked once.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core import validate

KEY_IMPLEMENTATION = "threefry2x32"
"""Implementation of all random keys, regardless of `jax_default_prng_impl`.

Under `rbg`, which is common on TPUs, `vmap` changes the draws of a key, so a model
would depend on how many models are trained side by side. Recorded in the run folder.
"""

_SEEDS = 2**63


def check_seed(seed: Any, what: str = "seed") -> int:
  """Return a seed as a Python integer.

  Args:
    seed: an integer of Python, numpy or JAX in [0, 2**63).
    what: name of the argument, for the error message.

  Raises:
    ValueError: for anything else, including `None` and `True`.

  >>> check_seed(np.int64(7))
  7
  """
  seed = validate.integer(seed, what)
  if seed >= _SEEDS:
    raise ValueError(f"{what}={seed}; pass an integer below 2**63")
  return seed


def random_key(seed: Any) -> jax.Array:
  """Return the JAX key of a seed.

  It equals `jax.random.key(seed, impl="threefry2x32")` for seeds below 2**32. For
  larger seeds, `jax.random.key` drops the higher bits unless `jax_enable_x64` is set;
  this function uses them.

  Raises:
    ValueError: as in `check_seed`.

  >>> bool(random_key(2**32) == random_key(0))
  False
  """
  seed = check_seed(seed)
  bits = jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))
  return jax.random.wrap_key_data(bits, impl=KEY_IMPLEMENTATION)


def generator(seed: Any) -> np.random.Generator:
  """Return numpy's `default_rng` of a seed.

  Raises:
    ValueError: as in `check_seed`; numpy would draw a seed for `None`.
  """
  return np.random.default_rng(check_seed(seed))


def stream(seed: Any, purpose: str, *index: int) -> np.random.Generator:
  """Return the numpy generator of one purpose under one seed.

  If every caller used `generator(seed)`, the auxiliary rows and the target split would
  use the same permutation, so that one would be contained in the other.

  Args:
    seed: non-negative int, chosen by the user.
    purpose: name of the stream.
    *index: ints that distinguish streams of one purpose, for example the model.

  Returns:
    A `np.random.Generator` that depends on nothing else.

  Raises:
    ValueError: as in `check_seed`.
  """
  # Use spawn_key, not [seed, index]: numpy pads entropy with zeros, so [7, 0] would
  # give the same stream as 7.
  key = (zlib.crc32(purpose.encode()), *index)
  return np.random.default_rng(np.random.SeedSequence(check_seed(seed), spawn_key=key))


def fold_in_name(key, *names: str):
  """Derive a key from stable names, so that streams do not depend on positions."""
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
  return key


def drawn(key, probability, shape):
  """Return which of some units a Poisson sample contains, each independently: bool."""
  return jax.random.uniform(key, shape) < probability


def row_keys(key, ids):
  """Return one key per row [B], a function of the row's id only."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def batch_keys(key, batch):
  """Return one key per row of a `Batch` [B], a function of its record's id and view.

  View 0 has the same key as the record has if it has a single view.
  """
  keys = row_keys(key, batch.index)
  if batch.view is None:
    return keys

  def of_view(key, view):
    # The name separates views from keys that a part derives from the key of view 0.
    return jax.random.fold_in(fold_in_name(key, "view"), view)

  return jnp.where(batch.view == 0, keys, jax.vmap(of_view)(keys, batch.view))


def hash_rows(x):
  """Hash the content of each row of x [B,...] to uint32 [B]; -0.0 counts as 0.0."""
  bits = x.reshape(x.shape[0], -1)
  if jnp.issubdtype(x.dtype, jnp.floating):
    bits = bits.astype(jnp.float32)
    bits = jnp.where(bits == 0, 0.0, bits)
    bits = jax.lax.bitcast_convert_type(bits, jnp.uint32)
  bits = bits.astype(jnp.uint32)
  place = jnp.arange(bits.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
  # Entries are scrambled (the finalizer of MurmurHash3) before they are summed, because
  # a sum of terms almost linear in the position would collide on binary tables.
  mixed = bits ^ place[None]
  for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(odd)
  return (mixed ^ (mixed >> 16)).sum(1, dtype=jnp.uint32)

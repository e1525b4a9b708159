"""Random streams of this package, one for each purpose."""

import zlib

import numpy as np

from mixdef.data import validate


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
  """Return the numpy generator of one purpose under one seed.

  `default_rng(seed)` at every place would hand the same permutation to the
  reference rows and to the target split, so that one would lie inside the other.

  Args:
    seed: non-negative int, chosen by the user.
    purpose: name of the draw.
    *index: ints that tell draws of one purpose apart, for example the model.

  Returns:
    A `np.random.Generator` that depends on nothing else.

  Raises:
    ValueError: if the seed is no integer of at least 0.
  """
  seed = validate.integer(seed, "seed")
  # spawn_key and not [seed, index]: numpy pads entropy with zeros, so that
  # [7, 0] would be the same stream as 7.
  key = (zlib.crc32(purpose.encode()), *index)
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

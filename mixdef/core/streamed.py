"""Stand-ins for `Data.x` where only some of the records are on the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
  """The records of a few steps, indexed by their positions among all records.

  Attributes:
    x: [U,...], the records.
    positions: int [U], their positions among all records, ascending.
  """

  x: Any
  positions: Any

  def __getitem__(self, index: Any) -> Any:
    """Return the records at these positions [...], all of which are in the block."""
    return self.x[jnp.searchsorted(self.positions, index)]


class Withheld:
  """All records, where none of them can be read: shape and type alone.

  It is neither an array nor a pytree, so that every other use raises an error.
  """

  __eq__ = None  # type: ignore[assignment]
  __bool__ = None

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
    self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

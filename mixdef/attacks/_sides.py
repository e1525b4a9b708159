"""The arrays of attacks on one release: its phi, and reference models beside it."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks.signals import Signals
from mixdef.core import validate

Side = Signals | tuple[ArrayLike, ArrayLike]
"""Signals of reference models, or phi [S, N] or [S, N, Q] and the membership [S, N]."""


def of_release(phi: ArrayLike) -> np.ndarray:
  """Return phi [N] or [N, Q] of a release as float64 [N, Q]."""
  values = validate.numbers(phi, "phi").astype(np.float64)
  if values.ndim not in (1, 2) or 0 in values.shape:
    raise ValueError(f"phi has shape {values.shape}; pass [N] or [N, Q] of the release")
  return values.reshape(len(values), -1)


def read_side(side: Side, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return phi [S, N, Q], the membership matrix [S, N] and what is audited [N].

  Args:
    side: reference models.
    phi: [N, Q] of the release.

  Raises:
    ValueError: if the models were queried on other records or views.
  """
  if not isinstance(side, Signals):
    values, members = side
    side = Signals.from_phi(values, members, design="bernoulli")
  if side.phi.shape[1:] != phi.shape:
    raise ValueError(
      f"the references have phi of shape {side.phi.shape}, the release {phi.shape}; "
      "query both on the same records and views"
    )
  return side.phi, side.members, side.audited

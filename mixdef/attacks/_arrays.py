"""The arrays of signals, converted and checked."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import _per_record
from mixdef.core import record_names, validate

_CONVERSIONS = {
  "log_probs": lambda values: validate.numbers(values, "log_probs"),
  "hinge": lambda values: validate.numbers(values, "hinge"),
  "correct": lambda values: validate.bools(values, "correct"),
  "labels": lambda values: validate.labels(values, "labels"),
  "ids": record_names.ids,
  "groups": record_names.groups,
  "sizes": lambda values: validate.labels(values, "sizes"),
}


def conformed(signals: Any) -> dict[str, np.ndarray]:
  """Return the arrays that `Signals` was given, by name, in their documented types.

  Raises:
    ValueError: for shapes that disagree and values that no attack can rank.
  """
  phi = validate.numbers(signals.phi, "phi").astype(np.float64, copy=False)
  if phi.ndim != 3 or 0 in phi.shape:
    raise ValueError(f"phi has shape {phi.shape}; pass [S, N, Q] without empty axes")
  models, records, _ = phi.shape
  members = validate.mask(signals.members, (models, records), "members")
  arrays = {"phi": phi, "members": members}
  for name, converted in _CONVERSIONS.items():
    if getattr(signals, name) is not None:
      arrays[name] = converted(getattr(signals, name))
  audited = np.ones(records, bool) if signals.audited is None else signals.audited
  arrays["audited"] = validate.mask(audited, (records,), "audited")
  for name in ("phi", "hinge", "correct"):
    if name not in arrays:
      continue
    if arrays[name].shape != phi.shape:
      raise ValueError(f"{name} has shape {arrays[name].shape}, phi {phi.shape}")
    _per_record.refuse(
      name,
      ~np.isfinite(arrays[name]),
      "values that are NaN or infinite",
      "build the signals from logits, or drop the models that diverged",
    )
  for name in ("labels", "ids", "groups", "sizes"):
    if name in arrays and arrays[name].shape != (records,):
      raise ValueError(f"{name} have shape {arrays[name].shape}; pass [{records}]")
  if "log_probs" in arrays and arrays["log_probs"].shape[:-1] != (models, records):
    shape = arrays["log_probs"].shape
    raise ValueError(f"log_probs have shape {shape}; pass [S, N, K]")
  return arrays


def with_views(values: ArrayLike, name: str) -> np.ndarray:
  """Return [S, N] or [S, N, Q] as float64 [S, N, Q]."""
  array = validate.numbers(values, name)
  if array.ndim not in (2, 3) or 0 in array.shape:
    raise ValueError(
      f"{name} has shape {array.shape}; pass [S, N] or [S, N, Q] without empty axes"
    )
  return array.reshape(*array.shape[:2], -1).astype(np.float64)

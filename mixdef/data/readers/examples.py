"""Reader of random-access sources of examples, such as those of grain."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdef.data import columns
from mixdef.data.columns import Columns

_MOST = 2**31  # records; a source that repeats itself has a larger length


def columns_of(source: Any, place: str) -> Columns:
  """Read all examples into columns; see `Dataset.from_grain`.

  Raises:
    ValueError: naming the example and the fix.
    TypeError: the source has no length or no items.
  """
  if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
    raise TypeError(
      f"{place} is a {type(source).__name__}; pass a grain data source or MapDataset, "
      "with a length and items"
    )
  if not 0 < len(source) < _MOST:
    raise ValueError(f"{place} has {len(source)} records; pass some, without repeat()")
  gathered: dict[str, list] = {}
  for i in range(len(source)):
    example = source[i]
    if isinstance(example, tuple | list) and len(example) == 2:
      example = dict(zip(("x", "y"), example, strict=True))
    if not isinstance(example, Mapping):
      raise ValueError(
        f"{place}: example {i} is a {type(example).__name__}; map it to a dict of "
        "arrays and numbers, or to a pair (x, y)"
      )
    if gathered and set(example) != set(gathered):
      raise ValueError(
        f"{place}: example {i} has {', '.join(map(str, example))}, and example 0 has "
        f"{', '.join(gathered)}; give all the same keys"
      )
    for key, value in example.items():
      gathered.setdefault(str(key), []).append(value)
  stacked = {key: _stacked(key, values, place) for key, values in gathered.items()}
  return columns.of_frame(stacked, place)


def _stacked(key: str, values: list, place: str) -> Any:
  """Return the values of a key, as one array if they have axes."""
  if isinstance(values[0], str | bytes | os.PathLike) or np.ndim(values[0]) == 0:
    return [
      value.item() if isinstance(value, np.generic) else value for value in values
    ]
  shapes = [np.shape(value) for value in values]
  for i, shape in enumerate(shapes):
    if shape != shapes[0]:
      raise ValueError(
        f"{place}: {key!r} of example {i} has shape {shape}, and of example 0 "
        f"{shapes[0]}; pad or cut all to one shape"
      )
  return np.stack([np.asarray(value) for value in values])

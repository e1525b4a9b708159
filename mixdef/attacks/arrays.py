"""Read the outputs of models trained in any framework from one npz file."""

import pathlib
from typing import Any

from mixdef.attacks.signals import Signals
from mixdef.core.files import local_path
from mixdef.core.reading import read_npz

_OPTIONAL = ("audited", "ids", "population_logits", "population_labels", "target")


def read_signals(path: str | pathlib.Path) -> Signals:
  """Read `Signals` from arrays that any framework can write.

  Args:
    path: npz file with `logits` [S,N,K] or [S,N,Q,K] (or log-probabilities), `keep`
      bool [S,N] and `labels` int [N]. Optional are `audited` bool [N]; `ids` [N] (names
      of the records, integers or text); `population_logits` [S,Z,K] or [S,Z,Q,K] and
      `population_labels` [Z] of records that no model trained on; and `target` (an int
      from 0 to S-1), to audit one model only.

  Returns:
    The signals.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: naming the file and what is wrong with it.
  """
  path = local_path(path)
  arrays: dict[str, Any] = read_npz(path, fix="write it with numpy.savez")
  missing = [name for name in ("logits", "keep", "labels") if name not in arrays]
  if missing:
    raise ValueError(
      f"{path} has no array {missing[0]!r}; it needs logits, keep, labels"
    )
  unknown = set(arrays) - {"logits", "keep", "labels", *_OPTIONAL}
  if unknown:
    raise ValueError(
      f"{path} holds {sorted(unknown)[0]!r}, which is not read; optional are "
      f"{', '.join(_OPTIONAL)}"
    )
  population = None
  if "population_logits" in arrays or "population_labels" in arrays:
    for name in ("population_logits", "population_labels"):
      if name not in arrays:
        raise ValueError(f"{path} has no {name}; a population needs logits and labels")
    population = (arrays["population_logits"], arrays["population_labels"])
  try:
    return Signals.from_logits(
      arrays["logits"],
      arrays["labels"],
      arrays["keep"],
      audited=arrays.get("audited"),
      ids=arrays.get("ids"),
      population=population,
      target=arrays.get("target"),
    )
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error

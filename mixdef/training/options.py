"""The options of a training, checked once."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mixdef.core.randomness import check_seed
from mixdef.training.programs import STRATEGIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The arguments of `fit_many` after the first three, with their defaults.

  `trace` and `every` are arguments of `fit` alone.

  Raises:
    ValueError: for seeds and strategies that do not exist, and for outputs to keep
      without a folder or a query.
  """

  epochs: int
  batch_size: int = 128
  seed: int = 0
  noise_seed: int | None = None
  strategy: str = "auto"
  memory_gb: float | None = None
  num_members: int | None = None
  model_ids: Any = None
  sweep: Mapping[str, Any] | None = None
  out: str | pathlib.Path | None = None
  signals: Mapping[str, Any] | None = None
  keep_params: bool = True
  progress: bool = False
  trace: str | None = None
  every: int | None = None

  def __post_init__(self) -> None:
    """Check the options that do not depend on the data; `prepare` checks the others."""
    object.__setattr__(self, "seed", check_seed(self.seed))
    if self.strategy not in (*STRATEGIES, "auto"):
      known = ", ".join((*STRATEGIES, "auto"))
      raise ValueError(f"strategy={self.strategy!r} is unknown; choose one of {known}")
    if self.signals is not None and self.out is None:
      raise ValueError("signals are kept in a run folder: pass out, or drop signals")
    if not self.keep_params and self.signals is None:
      raise ValueError(
        "keep_params=False keeps nothing but outputs: pass signals={}, or keep_params="
        "True"
      )
    if self.noise_seed is not None:
      noise_seed = check_seed(self.noise_seed, "noise_seed")
      object.__setattr__(self, "noise_seed", noise_seed)

"""Membership-inference attacks: functions from signals to scores, larger = member."""

from collections.abc import Callable

import numpy as np

from mixdef.attacks.lira import (
  OFFICIAL,
  lira_coverage,
  lira_global,
  lira_offline,
  lira_offline_fixed,
  lira_offline_two_sided,
  lira_online,
  lira_online_fixed,
)
from mixdef.attacks.per_record import statistics
from mixdef.attacks.query import mirror
from mixdef.attacks.signals import Signals, Unavailable, leave_one_out
from mixdef.attacks.thresholds import confidence, gap, loss_threshold

ON_SIGNALS: dict[str, Callable[..., np.ndarray]] = {
  "gap": gap,
  "loss_threshold": loss_threshold,
  "confidence": confidence,
  "lira_online": lira_online,
  "lira_online_fixed": lira_online_fixed,
  "lira_offline": lira_offline,
  "lira_offline_fixed": lira_offline_fixed,
  "lira_offline_two_sided": lira_offline_two_sided,
  "lira_global": lira_global,
}

ON_MODELS: dict[str, Callable[..., np.ndarray]] = {}
"""Attacks that ask the models of an `Ensemble` questions of their own."""

CATALOGUE = {**ON_SIGNALS, **ON_MODELS}

ALIASES = {"yeom": "loss_threshold"}


def resolve(name: str) -> Callable[..., np.ndarray]:
  """Return the attack of the catalogue with this name or alias.

  Args:
    name: a key of `CATALOGUE` or `ALIASES`.

  Returns:
    `attack(source, *, target, ...) -> scores [N]`; the source is a `Signals` for the
    attacks in `ON_SIGNALS`, an `Ensemble` for those in `ON_MODELS`.

  Raises:
    ValueError: if there is no such attack.

  >>> resolve("yeom").__name__
  'loss_threshold'
  """
  canonical = ALIASES.get(name, name)
  if canonical not in CATALOGUE:
    known = ", ".join([*CATALOGUE, *ALIASES])
    raise ValueError(f"unknown attack {name!r}; choose from {known}")
  return CATALOGUE[canonical]


__all__ = [
  "ALIASES",
  "CATALOGUE",
  "OFFICIAL",
  "ON_MODELS",
  "ON_SIGNALS",
  "Signals",
  "Unavailable",
  "confidence",
  "gap",
  "leave_one_out",
  "lira_coverage",
  "lira_global",
  "lira_offline",
  "lira_offline_fixed",
  "lira_offline_two_sided",
  "lira_online",
  "lira_online_fixed",
  "loss_threshold",
  "mirror",
  "resolve",
  "statistics",
]

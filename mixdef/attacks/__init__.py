"""Membership-inference attacks: functions from signals to scores, larger = member."""

import functools
import inspect
from collections.abc import Callable

import numpy as np

from mixdef.attacks.arrays import read_signals
from mixdef.attacks.augmentation_aware import augmentation_aware
from mixdef.attacks.bavaria import bavaria
from mixdef.attacks.boundary import label_only_boundary
from mixdef.attacks.known_records import threshold_known
from mixdef.attacks.label_only import (
  label_only_logreg,
  label_only_noise,
  label_only_rotation,
  label_only_translation,
)
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
from mixdef.attacks.quantile import quantile
from mixdef.attacks.relative_confidence import base, rmia, tune_offline_a
from mixdef.attacks.relative_loss import attack_p, attack_r, calibrated_loss
from mixdef.attacks.risk_score import privacy_risk_score
from mixdef.attacks.signals import Signals, Unavailable, leave_one_out
from mixdef.attacks.thresholds import (
  confidence,
  entropy,
  gap,
  loss_threshold,
  mentr,
)
from mixdef.attacks.trained import salem_1, salem_2, salem_3, shokri
from mixdef.attacks.views import VIEWS, flips_and_shifts, mirror, mixed
from mixdef.attacks.white_box import distance_to_confident, gradient_norm
from mixdef.parse import parse_call

FAMILIES: dict[str, tuple[Callable[..., np.ndarray], ...]] = {
  "threshold": (
    gap,
    loss_threshold,
    threshold_known,
    confidence,
    entropy,
    mentr,
    privacy_risk_score,
  ),
  "reference": (
    lira_online,
    lira_online_fixed,
    lira_offline,
    lira_offline_fixed,
    lira_offline_two_sided,
    lira_global,
    rmia,
    base,
    bavaria,
    attack_p,
    attack_r,
    calibrated_loss,
    quantile,
  ),
  "trained": (shokri, salem_1, salem_2, salem_3, augmentation_aware),
  "label_only": (
    label_only_noise,
    label_only_translation,
    label_only_rotation,
    label_only_boundary,
    label_only_logreg,
  ),
  "white_box": (distance_to_confident, gradient_norm),
}
"""Attacks by what they see and do."""

CATALOGUE: dict[str, Callable[..., np.ndarray]] = {
  attack.__name__: attack for family in FAMILIES.values() for attack in family
}
"""Every attack by its name."""

ON_MODELS = {
  name: attack
  for name, attack in CATALOGUE.items()
  if "ensemble" in inspect.signature(attack).parameters
}
"""Attacks that ask the models of an `Ensemble` questions of their own."""

ON_SIGNALS = {
  name: attack for name, attack in CATALOGUE.items() if name not in ON_MODELS
}
"""Attacks that read `Signals`, asked once for all of them."""

NOTES = {
  "threshold_known": "told the membership of 200 records of the target, which are not "
  "scored",
  "lira_offline_two_sided": "for comparison with published numbers; it also calls "
  "members the records that the target knows far less than other models",
  "distance_to_confident": "a reconstruction: of the published metric only the idea is "
  "public",
}
"""What a report must say beside an attack's figures."""

ALIASES = {"yeom": "loss_threshold", "dtc": "distance_to_confident"}


def resolve(text: str) -> Callable[..., np.ndarray]:
  """Return the attack that a text names.

  Args:
    text: a key of `CATALOGUE` or `ALIASES`, with keyword arguments or without, as
      "lira_online(score='hinge')".

  Returns:
    `attack(source, *, target, ...) -> scores [N]`; the source is a `Signals` for the
    attacks in `ON_SIGNALS`, an `Ensemble` for those in `ON_MODELS`.

  Raises:
    ValueError: if there is no such attack or it has no such argument.

  >>> resolve("yeom").__name__
  'loss_threshold'
  >>> resolve("rmia(gamma=1.0)").keywords
  {'gamma': 1.0}
  """
  makers = {name: functools.partial(_with, CATALOGUE[name]) for name in CATALOGUE}
  return parse_call(text, makers, "attack", aliases=ALIASES)


def plain_name(text: str) -> str:
  """Return the catalogue's name of the attack that a text names.

  >>> plain_name("lira_online(score='hinge')")
  'lira_online'
  """
  attack = resolve(text)
  plain = attack.func if isinstance(attack, functools.partial) else attack
  return plain.__name__


def family(name: str) -> str:
  """Return the family of an attack of the catalogue.

  >>> family("rmia")
  'reference'
  """
  return next(key for key, group in FAMILIES.items() if CATALOGUE[name] in group)


def _with(attack: Callable[..., np.ndarray], **options) -> Callable[..., np.ndarray]:
  """Return the attack with these options; a TypeError if it does not take one."""
  if not options:
    return attack
  inspect.signature(attack).bind_partial(**options)
  return functools.partial(attack, **options)


__all__ = [
  "ALIASES",
  "CATALOGUE",
  "FAMILIES",
  "NOTES",
  "OFFICIAL",
  "ON_MODELS",
  "ON_SIGNALS",
  "VIEWS",
  "Signals",
  "Unavailable",
  "family",
  "flips_and_shifts",
  "leave_one_out",
  "lira_coverage",
  "mirror",
  "mixed",
  "plain_name",
  "read_signals",
  "resolve",
  "statistics",
  "tune_offline_a",
  *sorted(CATALOGUE),
]

"""Membership-inference attacks: functions from signals to scores, larger = member."""

from mixdef.attacks._catalogue import Attack, Catalogue
from mixdef.attacks._per_record import statistics
from mixdef.attacks._targets import Unavailable, leave_one_out
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
from mixdef.attacks.quantile import quantile
from mixdef.attacks.relative_confidence import base, rmia, tune_offline_a
from mixdef.attacks.relative_loss import attack_p, attack_r, calibrated_loss
from mixdef.attacks.risk_score import privacy_risk_score
from mixdef.attacks.signals import Signals
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

FAMILIES: dict[str, tuple[Attack, ...]] = {
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

ATTACKS = Catalogue(FAMILIES, NOTES, ALIASES, training=("shokri", "salem_1", "salem_2"))
"""Attacks on classifiers."""

CATALOGUE = ATTACKS.attacks
"""Every attack on classifiers by its name."""

ON_MODELS, ON_SIGNALS = ATTACKS.on_models, ATTACKS.on_signals


def resolve(text: str) -> Attack:
  """Return the attack on classifiers that a text names, see `Catalogue.resolve`.

  >>> resolve("yeom").__name__
  'loss_threshold'
  >>> resolve("rmia(gamma=1.0)").keywords
  {'gamma': 1.0}
  """
  return ATTACKS.resolve(text)


def plain_name(text: str) -> str:
  """Return the catalogue's name of the attack that a text names.

  >>> plain_name("lira_online(score='hinge')")
  'lira_online'
  """
  return ATTACKS.plain_name(text)


def family(name: str) -> str:
  """Return the family of an attack on classifiers.

  >>> family("rmia")
  'reference'
  """
  return ATTACKS.family(name)


__all__ = [
  "ALIASES",
  "ATTACKS",
  "CATALOGUE",
  "FAMILIES",
  "NOTES",
  "OFFICIAL",
  "ON_MODELS",
  "ON_SIGNALS",
  "VIEWS",
  "Catalogue",
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

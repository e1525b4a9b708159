"""Membership-inference attacks: functions of signals; higher scores mean members."""

from mixdef.attacks._catalogue import Attack, Catalogue
from mixdef.attacks._per_record import statistics
from mixdef.attacks._targets import Unavailable, leave_one_out
from mixdef.attacks.augmentation_aware import augmentation_aware
from mixdef.attacks.bavaria import bavaria
from mixdef.attacks.boundary import label_only_boundary
from mixdef.attacks.cmia import cmia, cmia_anchors
from mixdef.attacks.consensus import agreement, mean_rank
from mixdef.attacks.groups import (
  auc_within,
  by_group,
  by_person,
  mean_by_group,
  strata,
)
from mixdef.attacks.imia import glira, imia, imia_coverage
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
from mixdef.attacks.lira_calibrated import lira_calibrated
from mixdef.attacks.loss_traces import lt_iqr, trace_losses
from mixdef.attacks.pmia import pmia, pmia_coverage
from mixdef.attacks.quantile import quantile
from mixdef.attacks.quantile_network import quantile_network
from mixdef.attacks.query import classifier_signals
from mixdef.attacks.ramia import ramia
from mixdef.attacks.relative_confidence import base, rmia, tune_offline_a
from mixdef.attacks.relative_loss import attack_p, attack_r, calibrated_loss
from mixdef.attacks.risk_score import privacy_risk_score
from mixdef.attacks.signals import Signals
from mixdef.attacks.tail import log_loss_ratio, tail_tnr
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
from mixdef.core import registry

ATTACKS = Catalogue(
  registry.ATTACKS, ("threshold", "reference", "trained", "label_only", "white_box")
)
"""The attacks on classifiers."""

CATALOGUE = registry.ATTACKS
"""Every attack on classifiers, by name."""

__all__ = [
  "ATTACKS",
  "CATALOGUE",
  "OFFICIAL",
  "VIEWS",
  "Attack",
  "Catalogue",
  "Signals",
  "Unavailable",
  "agreement",
  "auc_within",
  "by_group",
  "by_person",
  "classifier_signals",
  "cmia",
  "cmia_anchors",
  "flips_and_shifts",
  "glira",
  "imia",
  "imia_coverage",
  "leave_one_out",
  "lira_coverage",
  "log_loss_ratio",
  "lt_iqr",
  "mean_by_group",
  "mean_rank",
  "mirror",
  "mixed",
  "pmia_coverage",
  "quantile_network",
  "ramia",
  "statistics",
  "strata",
  "tail_tnr",
  "trace_losses",
  "tune_offline_a",
  *sorted(CATALOGUE.registered),
]

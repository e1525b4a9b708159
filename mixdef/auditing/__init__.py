"""How well an attack does, with its uncertainty."""

from mixdef.auditing.figures import (
  FPR_GRID,
  auc,
  balanced_accuracy,
  clopper_pearson,
  gap_attack_accuracy,
  max_balanced_accuracy,
  resolvable,
  shadow_thresholds,
  tpr_at_fpr,
)
from mixdef.auditing.intervals import bootstrap_records
from mixdef.auditing.plots import roc_plot
from mixdef.auditing.summary import summarize

__all__ = [
  "FPR_GRID",
  "auc",
  "balanced_accuracy",
  "bootstrap_records",
  "clopper_pearson",
  "gap_attack_accuracy",
  "max_balanced_accuracy",
  "resolvable",
  "roc_plot",
  "shadow_thresholds",
  "summarize",
  "tpr_at_fpr",
]

"""Metrics of scores: ROC, intervals, bounds on epsilon. They need no model."""

from mixdef.metrics.calibration import calibrated_rates
from mixdef.metrics.canary_audit import (
  CanaryAudit,
  audit_canaries,
  log_likelihood_ratio,
  noise_scales,
)
from mixdef.metrics.canary_moments import Moments, canary_moments
from mixdef.metrics.decisions import (
  balanced_accuracy,
  gap_attack_accuracy,
  max_balanced_accuracy,
  positive_rate,
  ppv,
  shadow_thresholds,
)
from mixdef.metrics.epsilon import (
  epsilon_at_threshold,
  epsilon_bonferroni,
  epsilon_ceiling,
  epsilon_multisplit,
  epsilon_split,
)
from mixdef.metrics.false_discoveries import (
  Listed,
  conformal_p,
  discoveries,
  fdr_list,
)
from mixdef.metrics.gdp import gdp_epsilon, gdp_mu
from mixdef.metrics.holdout import Rules, dp_tpr, fpr_bounds, odds
from mixdef.metrics.intervals import (
  bootstrap_records,
  clopper_pearson,
  paired_bootstrap,
)
from mixdef.metrics.one_run import (
  epsilon_one_run,
  epsilon_one_run_gdp,
  one_run_bound,
  one_run_mu,
  one_run_p,
)
from mixdef.metrics.order_statistics import (
  epsilon_order_statistics,
  order_statistics_mu,
)
from mixdef.metrics.plots import roc_plot
from mixdef.metrics.risk import class_risk, record_risk
from mixdef.metrics.roc import FPR_GRID, Roc, auc, resolvable, tpr_at_fpr
from mixdef.metrics.summary import Summary, strongest_first, summarize
from mixdef.metrics.trade_off import trade_off_plot

__all__ = [
  "FPR_GRID",
  "CanaryAudit",
  "Listed",
  "Moments",
  "Roc",
  "Rules",
  "Summary",
  "auc",
  "audit_canaries",
  "balanced_accuracy",
  "bootstrap_records",
  "calibrated_rates",
  "canary_moments",
  "class_risk",
  "clopper_pearson",
  "conformal_p",
  "discoveries",
  "dp_tpr",
  "epsilon_at_threshold",
  "epsilon_bonferroni",
  "epsilon_ceiling",
  "epsilon_multisplit",
  "epsilon_one_run",
  "epsilon_one_run_gdp",
  "epsilon_order_statistics",
  "epsilon_split",
  "fdr_list",
  "fpr_bounds",
  "gap_attack_accuracy",
  "gdp_epsilon",
  "gdp_mu",
  "log_likelihood_ratio",
  "max_balanced_accuracy",
  "noise_scales",
  "odds",
  "one_run_bound",
  "one_run_mu",
  "one_run_p",
  "order_statistics_mu",
  "paired_bootstrap",
  "positive_rate",
  "ppv",
  "record_risk",
  "resolvable",
  "roc_plot",
  "shadow_thresholds",
  "strongest_first",
  "summarize",
  "tpr_at_fpr",
  "trade_off_plot",
]

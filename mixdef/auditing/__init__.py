"""How well an attack does, with its uncertainty; canaries, and the report."""

from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.budget import budget_curve
from mixdef.auditing.calibration import calibrated_rates
from mixdef.auditing.canaries import CANARIES, parse_canaries, plant
from mixdef.auditing.dp_baseline import MatchedDP, high_utility_dp, matched_dp
from mixdef.auditing.epsilon import (
  epsilon_at_threshold,
  epsilon_bonferroni,
  epsilon_ceiling,
  epsilon_multisplit,
  epsilon_split,
)
from mixdef.auditing.figures import (
  FPR_GRID,
  auc,
  balanced_accuracy,
  clopper_pearson,
  gap_attack_accuracy,
  max_balanced_accuracy,
  positive_rate,
  ppv,
  resolvable,
  shadow_thresholds,
  tpr_at_fpr,
)
from mixdef.auditing.gdp import gdp_epsilon, gdp_mu
from mixdef.auditing.generators import Generated, Mosaic, describe_generators
from mixdef.auditing.intervals import bootstrap_records, paired_bootstrap
from mixdef.auditing.one_run import (
  epsilon_one_run,
  epsilon_one_run_gdp,
  one_run_bound,
  one_run_mu,
)
from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.pages.compare_page import render_comparison
from mixdef.auditing.plots import roc_plot
from mixdef.auditing.report import Audit, audit
from mixdef.auditing.risk import class_risk, record_risk
from mixdef.auditing.running import Budget, Findings, run_attacks
from mixdef.auditing.saved import read_report
from mixdef.auditing.summary import summarize
from mixdef.auditing.trade_off import trade_off_plot
from mixdef.auditing.worst_case import attack_canaries, attack_dp_baseline

__all__ = [
  "CANARIES",
  "FPR_GRID",
  "Audit",
  "Budget",
  "Findings",
  "Generated",
  "MatchedDP",
  "Mosaic",
  "accuracies",
  "attack_canaries",
  "attack_dp_baseline",
  "auc",
  "audit",
  "balanced_accuracy",
  "bootstrap_records",
  "budget_curve",
  "calibrated_rates",
  "class_risk",
  "clopper_pearson",
  "describe_generators",
  "epsilon_at_threshold",
  "epsilon_bonferroni",
  "epsilon_ceiling",
  "epsilon_multisplit",
  "epsilon_one_run",
  "epsilon_one_run_gdp",
  "epsilon_split",
  "gap_attack_accuracy",
  "gdp_epsilon",
  "gdp_mu",
  "high_utility_dp",
  "matched_dp",
  "max_balanced_accuracy",
  "one_run_bound",
  "one_run_mu",
  "paired_bootstrap",
  "parse_canaries",
  "plant",
  "positive_rate",
  "ppv",
  "read_report",
  "record_risk",
  "render",
  "render_comparison",
  "resolvable",
  "roc_plot",
  "run_attacks",
  "shadow_thresholds",
  "summarize",
  "tpr_at_fpr",
  "trade_off_plot",
]

"""Audits: attacks on an ensemble, canaries, a DP baseline, and the report."""

from mixdef.auditing.accuracy import accuracies
from mixdef.auditing.additions import (
  Recipe,
  add_canaries,
  add_dp_baseline,
  planted,
  public_size,
)
from mixdef.auditing.budget import budget_curve
from mixdef.auditing.canaries import CANARIES, parse_canaries, plant
from mixdef.auditing.confounding import blind_test
from mixdef.auditing.dp_baseline import MatchedDP, high_utility_dp, matched_dp
from mixdef.auditing.generators import Generated, Mosaic, describe_generators
from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.pages.compare_page import render_comparison
from mixdef.auditing.pages.release_page import render_release
from mixdef.auditing.persons import persons
from mixdef.auditing.release import ReleaseAudit, audit_release
from mixdef.auditing.report import Audit, audit
from mixdef.auditing.running import Budget, Findings, run_attacks
from mixdef.auditing.saved import read_report
from mixdef.auditing.self_audit import self_audit
from mixdef.auditing.side_by_side import Comparison, compare_audits
from mixdef.auditing.sweep import sweep_defenses
from mixdef.auditing.worst_case import attack_canaries, attack_dp_baseline

__all__ = [
  "CANARIES",
  "Audit",
  "Budget",
  "Comparison",
  "Findings",
  "Generated",
  "MatchedDP",
  "Mosaic",
  "Recipe",
  "ReleaseAudit",
  "accuracies",
  "add_canaries",
  "add_dp_baseline",
  "attack_canaries",
  "attack_dp_baseline",
  "audit",
  "audit_release",
  "blind_test",
  "budget_curve",
  "compare_audits",
  "describe_generators",
  "high_utility_dp",
  "matched_dp",
  "parse_canaries",
  "plant",
  "planted",
  "public_size",
  "read_report",
  "render",
  "render_comparison",
  "render_release",
  "run_attacks",
  "self_audit",
  "sweep_defenses",
]

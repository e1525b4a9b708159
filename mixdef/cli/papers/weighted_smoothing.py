"""Weighted smoothing: values of sigma, single variants, and DP-SGD for comparison.

  mixdef sweep --study=weighted_smoothing --dataset=location30 --auxiliary=500

Cost and result: 34 cells, each of --num_shadows models. On Location-30 with 16 models
each (docs/results/weighted_smoothing.md, most of the cells), there is no effect up to
sigma 0.05, training becomes unstable from 0.1 on, and DP-SGD reduces the attack
accuracy more at every loss of test accuracy.
"""

DEFENSES = (
  "none",
  "weighted_smoothing([1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.2, 1.0])",
  "weighted_smoothing([0.025, 0.1], factor='clip')",
  "weighted_smoothing([0.025, 0.1], position='logit')",
  "weighted_smoothing([0.025, 0.1], position='input')",
  "weighted_smoothing([0.025, 0.1], position='gradient')",
  "weighted_smoothing([0.025, 0.1], norm='global_zscore')",
  "weighted_smoothing([0.025, 0.1], norm='class_minmax')",
  "weighted_smoothing([0.025, 0.1], norm='none')",
  "weighted_smoothing([0.025, 0.1], measure='log_mentr')",
  "weighted_smoothing([0.025, 0.1], measure='ce')",
  "weighted_smoothing([0.025, 0.1], use_gap=False)",
  "dp_sgd([0.1, 0.25, 0.5, 1.0, 2.0])",
)

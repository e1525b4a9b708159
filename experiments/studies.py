"""Grids of defenses that papers compare, by name, for `sweep.py --study=NAME`."""

KAYA = (
  "none",
  "weight_decay([1e-5, 1e-4, 1e-3, 1e-2])",
  "spatial_dropout([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])",
  "early_stopping([3, 4, 7, 10, 15, 20])",
  "gaussian_noise([0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])",
  "random_crop([1, 2, 4, 6, 8, 12, 16, 20, 24])",
  "label_smoothing([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99])",
  "distillation([1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 500.0])",
  "dp_sgd([0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])",
)
"""Eight mechanisms of Kaya, Hong and Dumitras, 2020, arXiv 2006.05336; their list and
grids are recalled from the 2021 follow-up, whose values these are, thinned out."""

STUDIES = {
  "kaya": KAYA,
  "kaya_pairs": (
    "none",
    "random_crop([4, 14, 20])",
    "label_smoothing([0.1, 0.9])",
    "random_crop([4, 14, 20])|label_smoothing([0.01, 0.1, 0.6, 0.7, 0.9])",
    "random_crop(4)|weight_decay([1e-4, 1e-3])",
    "random_crop(4)|spatial_dropout([0.1, 0.2])",
    "label_smoothing(0.1)|spatial_dropout([0.1, 0.2])",
  ),
  "weighted_smoothing": (
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
  ),
}

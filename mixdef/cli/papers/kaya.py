"""The eight mechanisms of Kaya, Hong and Dumitras, 2020, arXiv 2006.05336.

  mixdef sweep --study=kaya --dataset=fashion_mnist --model=cnn --num_shadows=4

The list and the grids are a subset, quoted from memory, of those in their follow-up of
2021.

Cost and result: 65 cells, each of --num_shadows models. docs/results/classifiers.md has
19 cells on Fashion-MNIST: label smoothing helps the attacks, and most mechanisms that
weaken them cost accuracy.
"""

DEFENSES = (
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

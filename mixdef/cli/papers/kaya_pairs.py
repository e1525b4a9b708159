"""Pairs of mechanisms of Kaya, Hong and Dumitras, compared with each mechanism alone.

  mixdef sweep --study=kaya_pairs --dataset=fashion_mnist --model=cnn --num_shadows=4

The mechanisms are those of the study `kaya`: crops, label smoothing, weight decay and
spatial dropout.

Cost and result: 27 cells, each of --num_shadows models. It has not been run.
"""

DEFENSES = (
  "none",
  "random_crop([4, 14, 20])",
  "label_smoothing([0.1, 0.9])",
  "random_crop([4, 14, 20])|label_smoothing([0.01, 0.1, 0.6, 0.7, 0.9])",
  "random_crop(4)|weight_decay([1e-4, 1e-3])",
  "random_crop(4)|spatial_dropout([0.1, 0.2])",
  "label_smoothing(0.1)|spatial_dropout([0.1, 0.2])",
)

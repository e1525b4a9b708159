"""Downstream accuracy: train a classifier on synthetic records, test on real ones."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.learner import Learner
from mixdef.core.randomness import stream
from mixdef.data import Dataset
from mixdef.learners.classifier import classifier
from mixdef.metrics.intervals import clopper_pearson
from mixdef.training import fit
from mixdef.utility import _arrays


def downstream_accuracy(
  synthetic: tuple[ArrayLike, ArrayLike],
  data: Dataset,
  *,
  learner: Learner | None = None,
  epochs: int = 30,
  batch_size: int = 128,
  seed: int = 0,
) -> dict[str, Any]:
  """Train on synthetic records and test on real ones, next to training on real records.

  The classifier is that of the last step, because selecting the best of several checks
  on the test records would be a selection on them. Its twin is trained in the same way,
  with the same initial weights, on equally many real records; the difference is the
  loss caused by the generator. Both depend on the classifier and its training, which
  belong to the metric.

  Args:
    synthetic: x, images [N,H,W,C] in [0,1] or rows [N,D], float, and y [N], int:
      sampled labels and the records generated for them.
    data: the generator's training records, and in `data.test` real records that it has
      not seen. Auxiliary records are excluded.
    learner: the learner to train, such as `classifier(...)`; None trains `models.cnn`
      on images and `models.mlp` on rows, from scratch, with Adam at 1e-3.
    epochs: passes over the records.
    batch_size: records per step.
    seed: random seed of both trainings, and of the choice of real records.

  Returns:
    accuracy: accuracy in [0,1] of the classifier that was trained on synthetic records
      only;
    interval: its 95% Clopper-Pearson interval, which covers the choice of test records
      but not the randomness of training;
    real_accuracy, real_interval: the same of the twin;
    num_synthetic, num_real, num_test: numbers of records. num_real is less than
      num_synthetic if there are not enough real records.

  Raises:
    ValueError: if there are no test records, shapes or classes differ, or images are
      outside [0,1].

  Deviation: the mixup-GAN's authors fine-tune an ImageNet ResNet-18 on images generated
    afresh in every step; here a network is trained from scratch on one finite set.
  Reference: Esteban, Hyland, Ratsch, "Real-valued (Medical) Time Series Generation with
    Recurrent Conditional GANs", 2017, arXiv 1706.02633 (train on synthetic, test on
    real).
  """
  if data.test is None:
    raise ValueError(f"{data.name} has no test records; call data.hold_out(0.2)")
  x = _arrays.records(synthetic[0], "synthetic x")
  y = validate.labels(synthetic[1], "synthetic y")
  validate.lengths(x, y)
  validate.label_range(y, data.num_classes, "synthetic y")
  if x.shape[1:] != data.x.shape[1:]:
    raise ValueError(
      f"synthetic records have shape {x.shape[1:]}, the real records "
      f"{data.x.shape[1:]}; use the same shape"
    )
  _arrays.training_records(data.x, "the real records")
  if learner is None:
    learner = default_learner(data)
  rows = np.flatnonzero(~data.auxiliary)
  chosen = np.sort(stream(seed, "downstream").permutation(rows)[: len(x)])
  real = Dataset(data.x[chosen], data.y[chosen], data.num_classes, data.name)
  made = Dataset(x, y, data.num_classes, f"synthetic {data.name}")
  test = data.test

  def tested(train: Dataset) -> tuple[float, tuple[float, float]]:
    run = fit(learner, train, epochs=epochs, batch_size=batch_size, seed=seed)
    hits = int((run.log_probs(test.x).argmax(-1) == test.y).sum())
    return hits / len(test), clopper_pearson(hits, len(test))

  accuracy, interval = tested(made)
  real_accuracy, real_interval = tested(real)
  return {
    "accuracy": accuracy,
    "interval": interval,
    "real_accuracy": real_accuracy,
    "real_interval": real_interval,
    "num_synthetic": len(made),
    "num_real": len(real),
    "num_test": len(test),
  }


def default_learner(data: Dataset) -> Learner:
  """Return an undefended classifier: `models.cnn` on images, `models.mlp` on rows."""
  import optax

  from mixdef import models

  network = models.cnn if data.x.ndim == 4 else models.mlp
  return classifier(network(num_classes=data.num_classes), optax.adam(1e-3))

"""Accuracy of the models on their members and on the other records."""

from typing import Any

import numpy as np

from mixdef.attacks import Signals
from mixdef.metrics.decisions import gap_attack_accuracy


def accuracies(signals: Signals) -> dict[str, Any]:
  """Return accuracies over the models, each on its own members and non-members.

  Args:
    signals: signals with `correct`.

  Returns:
    train_accuracy, test_accuracy: means over the models that have audited members, or
      non-members, in [0, 1];
    test_accuracy_std: standard deviation over those models, None for one model;
    gap_attack: balanced accuracy of the gap attack at these means.

  Raises:
    Unavailable: if the signals hold no `correct`.
    ValueError: if no model has an audited member, or none a non-member.

  >>> members = np.array([[True, False], [False, True]])
  >>> logits = np.array([[[2., 0.], [2., 0.]], [[0., 2.], [0., 2.]]])
  >>> accuracies(Signals.from_logits(logits, [0, 1], members))["gap_attack"]
  1.0
  """
  correct = signals.statistic("correct")[:, :, 0]
  inside, outside = (
    signals.members & signals.audited,
    ~signals.members & signals.audited,
  )
  train, test = _of_each(correct, inside), _of_each(correct, outside)
  if not train or not test:
    raise ValueError(
      f"{len(train)} models have audited members and {len(test)} non-members; at least "
      "one of each is needed"
    )
  return {
    "train_accuracy": float(np.mean(train)),
    "test_accuracy": float(np.mean(test)),
    "test_accuracy_std": float(np.std(test, ddof=1)) if len(test) > 1 else None,
    "gap_attack": gap_attack_accuracy(float(np.mean(train)), float(np.mean(test))),
  }


def _of_each(correct: np.ndarray, use: np.ndarray) -> list[float]:
  """Return the accuracy of every model that has any of the selected records."""
  pairs = zip(correct, use, strict=True)
  return [float(row[mine].mean()) for row, mine in pairs if mine.any()]

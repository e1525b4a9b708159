"""What the models are worth: accuracy on their members and on the others."""

from typing import Any

import numpy as np

from mixdef.attacks import Signals
from mixdef.auditing.figures import gap_attack_accuracy


def accuracies(signals: Signals) -> dict[str, Any]:
  """Return accuracies over the models, each on its own members and non-members.

  Args:
    signals: with `correct`.

  Returns:
    train_accuracy, test_accuracy: means over models, in [0, 1];
    test_accuracy_std: over models, None for one model;
    gap_attack: balanced accuracy of the gap attack at these means.

  Raises:
    Unavailable: if the signals hold no `correct`.

  >>> keep = np.array([[True, False], [False, True]])
  >>> logits = np.array([[[2., 0.], [2., 0.]], [[0., 2.], [0., 2.]]])
  >>> accuracies(Signals.from_logits(logits, [0, 1], keep))["gap_attack"]
  1.0
  """
  correct = signals.statistic("correct")[:, :, 0]
  inside, outside = signals.keep & signals.audited, ~signals.keep & signals.audited
  train = [row[use].mean() for row, use in zip(correct, inside, strict=True)]
  test = [row[use].mean() for row, use in zip(correct, outside, strict=True)]
  return {
    "train_accuracy": float(np.mean(train)),
    "test_accuracy": float(np.mean(test)),
    "test_accuracy_std": float(np.std(test, ddof=1)) if len(test) > 1 else None,
    "gap_attack": gap_attack_accuracy(float(np.mean(train)), float(np.mean(test))),
  }

"""Rankings of members by the losses that they had during training."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import _per_record
from mixdef.core import validate
from mixdef.core.check import checked, count


def lt_iqr(trace: ArrayLike) -> np.ndarray:
  """Return the interquartile range of every record's loss over training.

      score_i = q75(l_0i, ..., l_Ei) - q25(l_0i, ..., l_Ei)

  with linear interpolation. A larger value means that a member is more exposed. The
  score ranks members among each other and does not find members: do not compute a
  true-positive rate of it, nor calibrate it on records that were not trained on. It
  becomes weak under DP-SGD.

  Args:
    trace: [E + 1, N] cross-entropies in nats against the true labels, at initialization
      and after epochs, in evaluation mode without augmentation: `Run.trace.losses` of
      `fit(..., trace="loss")`, or rows of `trace_losses`. Epochs may be skipped.

  Returns:
    [N], at least 0; NaN where the trace has a NaN.

  Raises:
    ValueError: unless the trace is an array [E + 1, N] with at least two rows.

  Deviation: formula and interpolation are those of the official code [verified]. Its
    pass over the records stays in training mode, so that BatchNorm absorbs records that
    are not members; losses should come from evaluation mode.

  Reference: Free Record-Level Privacy Risk Evaluation Through Artifact-Based Methods
    (LT-IQR), 2024, arXiv 2411.05743.

  >>> lt_iqr([[2.3, 2, 1], [1.9, 1, 1], [1, .4, 1], [.5, .1, 1]]).round(4)
  array([1.125, 0.925, 0.   ])
  """
  losses = validate.numbers(trace, "trace").astype(np.float64)
  if losses.ndim != 2 or len(losses) < 2:
    raise ValueError(
      f"trace has shape {losses.shape}; pass [E + 1, N], the losses of N records at "
      "two points of the training or more"
    )
  low, high = np.quantile(losses, [0.25, 0.75], axis=0)
  return high - low


@checked(block=count())
def trace_losses(
  predict: Callable, x: Any, y: ArrayLike, *, block: int = 256
) -> np.ndarray:
  """Return the losses of records at one point of a training, a row of a trace.

  Call it before the first epoch and after epochs of your own training loop, and stack
  the rows. The model must be in evaluation mode: in training mode, BatchNorm would
  absorb records that are not members.

  Args:
    predict: `x [B, ...] -> logits or log-probabilities [B, K]`, of any framework.
    x: records [N, ...], without augmentation.
    y: true labels int [N], also if the training uses others.
    block: records per call.

  Returns:
    Cross-entropies float64 [N], in nats.

  Raises:
    ValueError: for answers or labels that are not of such a model.

  >>> logits = np.array([[0., 0.], [2., 0.]])
  >>> trace_losses(lambda x: logits, [[1.], [2.]], [0, 0]).round(3)
  array([0.693, 0.127])
  """
  labels = validate.labels(y, "y")
  validate.lengths(x, labels)
  losses = []
  for first in range(0, len(labels), block):
    rows = slice(first, first + block)
    answers = np.asarray(predict(x[rows]))
    if answers.ndim != 2 or len(answers) != len(labels[rows]):
      raise ValueError(
        f"predict returns an array of shape {answers.shape} for {len(labels[rows])} "
        "records; return logits [B, K]"
      )
    phi = _per_record.statistics(answers, labels[rows])["phi"]
    losses.append(_per_record.loss_of_phi(phi))
  return np.concatenate(losses)

"""Rankings of members by the losses that they had during training."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate


def lt_iqr(trace: ArrayLike) -> np.ndarray:
  """Return the interquartile range of every record's loss over training.

      score_i = q75(l_0i, ..., l_Ei) - q25(l_0i, ..., l_Ei)

  with linear interpolation. A larger value means that a member is more exposed. The
  score ranks members among each other and does not find members: do not compute a
  true-positive rate of it, nor calibrate it on records that were not trained on. It
  becomes weak under DP-SGD.

  Args:
    trace: [E + 1, N] cross-entropies in nats against the true labels, at initialization
      and after epochs, in evaluation mode without augmentation. Epochs may be skipped.

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

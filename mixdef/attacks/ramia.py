"""RaMIA: whether a record in a range around another was trained on."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.check import check_choice, check_count


def ramia(samples: ArrayLike, *, keep: int, end: str = "top") -> np.ndarray:
  """Return the mean of the scores that are kept of samples from each record's range.

  The samples are, for example, rotations of a picture, paraphrases of a text, or
  imputations of missing values, and each has been scored by some attack. The question
  is whether the training set contains a record in the range. Leave the record itself
  out of the samples if near copies are meant.

  Args:
    samples: scores [N, V] of V samples of each record.
    keep: samples that are kept, 1 to V. Choose `keep` and `end` on another model, not
      on the attacked one.
    end: "top" keeps the largest scores, "bottom" the smallest.

  Returns:
    Scores [N]; NaN where a sample has no score.

  Raises:
    ValueError: for another shape, or for an option out of range.

  Deviation: the official code stores the share that is trimmed, confuses it with the
    share kept at one end, rounds down what is left, so that it keeps none of 5 samples
    at a share of 0.8, and then returns NaN [verified]; here what is kept is stated.

  Reference: Range Membership Inference Attacks (RaMIA), 2024, arXiv 2408.05131.

  >>> ramia([[.1, .9, .5, .7, .3]], keep=3).round(6)
  array([0.7])
  """
  scores = validate.numbers(samples, "samples").astype(np.float64)
  if scores.ndim != 2 or 0 in scores.shape:
    raise ValueError(
      f"samples have shape {scores.shape}; pass [N, V], V scores for each record"
    )
  check_count("ramia: keep", keep, 1, scores.shape[1])
  check_choice("ramia: end", end, ("top", "bottom"))
  ranked = np.sort(scores, axis=1)
  kept = ranked[:, -keep:] if end == "top" else ranked[:, :keep]
  return np.where(np.isnan(scores).any(1), np.nan, kept.mean(1))

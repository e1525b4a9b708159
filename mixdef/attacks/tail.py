"""Estimates of how strong an attack with shadow models would be, from losses alone."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.check import check_count, check_number


def tail_tnr(
  members: ArrayLike, holdout: ArrayLike, *, fnr: float = 0.001, least: int = 10
) -> float:
  """Return the share of hold-out losses above nearly all losses of members.

  A record is taken for a non-member if its loss exceeds c, the smallest value such that
  at most `fnr` of the members' losses do. Few members with a high loss mean that the
  model has memorized its outliers, and go with a high true-positive rate of LiRA at the
  false-positive rate `fnr`. The number is not that rate: reading one from the other
  needs a line fitted on other data sets and defenses.

  Args:
    members: losses [N1] of the training records, in nats.
    holdout: losses [N0] of records never trained on.
    fnr: largest share of members above c, in [0, 1).
    least: members that the share must be worth, N1 fnr; 0 to return any value.

  Returns:
    The true-negative rate in [0, 1]; NaN, not resolvable, if N1 fnr < `least`.

  Raises:
    ValueError: for losses that are NaN or not [N], or numbers out of range.

  Deviation: only the abstract was available [verified: abstract]; the formula and the
    pairing of `fnr` with a false-positive rate are ours [ours]. Members tied at c are
    not above it.

  Reference: 2025, arXiv 2510.19773.

  >>> tail_tnr(np.arange(1000) / 1000, [.5, .9, 1.2, 1.5], fnr=.2)
  0.75
  """
  check_number("tail_tnr: fnr", fnr, 0, below=1)
  check_count("tail_tnr: least", least, 0)
  inside, out = _losses(members, "members"), _losses(holdout, "holdout")
  allowed = int(fnr * len(inside) * (1 + 1e-12))
  if len(inside) * fnr * (1 + 1e-12) < least:
    return float("nan")
  limit = np.sort(inside)[len(inside) - 1 - allowed]
  return float((out > limit).mean())


def log_loss_ratio(members: ArrayLike, holdout: ArrayLike) -> float:
  """Return log10 of the mean hold-out loss over the mean loss of members.

  It grows with the gap of the model and goes with the true-positive rate of LiRA, too.

  Args:
    members: losses [N1] of the training records, finite.
    holdout: losses [N0] of records never trained on, finite.

  Raises:
    ValueError: for losses that are not [N], or whose mean is not positive and finite.

  >>> round(log_loss_ratio([.1, .1], [.5, 1.5]), 6)
  1.0
  """
  means = [_losses(members, "members").mean(), _losses(holdout, "holdout").mean()]
  for mean, name in zip(means, ("members", "holdout"), strict=True):
    if not 0 < mean < np.inf:
      raise ValueError(
        f"{name}: the mean loss is {mean}; pass losses -log p_y in nats, finite and "
        "not all 0"
      )
  return float(np.log10(means[1] / means[0]))


def _losses(values: ArrayLike, name: str) -> np.ndarray:
  losses = validate.numbers(values, name).astype(np.float64)
  if losses.ndim != 1 or not losses.size or np.isnan(losses).any():
    raise ValueError(
      f"{name} has shape {losses.shape} and {int(np.isnan(losses).sum())} NaN; pass "
      "one loss per record and remove the NaN"
    )
  return losses

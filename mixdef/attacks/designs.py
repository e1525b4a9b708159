"""Which models may judge a target, given how the training subsets were drawn."""

import numpy as np

DESIGNS = ("bernoulli", "balanced", "constant")
"""Independent draws, or every record in half of the models, or in another number."""

_CHANCE = 1e-9  # a pattern rarer than this under independent draws was made on purpose


def detect_design(keep: np.ndarray) -> str:
  """Tell how the subsets were drawn from how many of the S models each record is in.

  Balanced: S/2; for odd S some records in floor(S/2) and the others in ceil(S/2).
  Constant: another number from 2 to S - 2, the same for all or two neighbours.
  Independent draws at the rate r of `keep` look like this with probability p^N,
  p = Pr[Bin(S, r) in {those numbers}]; below 1e-9 it is no accident.

  Args:
    keep: bool [S, N] of the audited records.

  Returns:
    One of `DESIGNS`.

  >>> detect_design(np.array([[True] * 40, [False] * 40]))
  'balanced'
  """
  models, records = keep.shape
  counts = keep.sum(0)
  if records == 0 or np.ptp(counts) > 1:
    return "bernoulli"
  low, high = counts.min(), counts.max()
  balanced = low + high == models
  if not balanced and (low < 2 or high > models - 2):
    return "bernoulli"
  from scipy.stats import binom

  share = binom.pmf(np.unique(counts), models, keep.mean()).sum()
  if share**records >= _CHANCE:
    return "bernoulli"
  return "balanced" if balanced else "constant"


def references(
  keep: np.ndarray, target: int, *, audited: np.ndarray, design: str
) -> np.ndarray:
  """Select the models that an attack on the target may read, per record.

  Left out are the target; a model that trained on exactly the other audited records
  (pairs of complementary subsets: it gives the target's membership away); and, unless
  draws were independent, models drawn at random from either side of a record until the
  numbers that remain say nothing of the target. In a balanced design as many remain
  with the record as without, in a constant one as few of either kind as any audited
  record has. Otherwise the counts of the other models tell the target's membership,
  which biases every attack that uses them.

  Args:
    keep: bool [S, N].
    target: index of the attacked model.
    audited: bool [N].
    design: one of `DESIGNS`.

  Returns:
    bool [S, N].

  Deviation: the draw depends on the target and on a record's position, so unless draws
    were independent, permuting records changes which references are dropped. Where each
    record is in one model or in all but one, nothing is dropped: one side would be left
    without models, which is no use to anybody.

  >>> keep = np.array([[True], [True], [False], [False]])
  >>> audited = np.array([True])
  >>> references(keep, 0, audited=audited, design="balanced").sum()
  np.int64(2)
  """
  usable = np.ones(keep.shape, bool)
  usable[target] = False
  if 2.0 ** -int(audited.sum()) < _CHANCE:
    opposite = (keep[:, audited] != keep[target, audited]).all(1)
    usable[opposite] = False
  if design == "bernoulli":
    return usable
  sides = usable & keep, usable & ~keep
  most = np.stack([side.sum(0) for side in sides])
  if design == "balanced":
    most[:] = most.min(0)
  else:
    most[:] = most[:, audited].min(1, keepdims=True, initial=len(keep))
  order = np.random.default_rng(target).random(keep.shape)
  for side, count in zip(sides, most, strict=True):
    rank = np.where(side, order, np.inf).argsort(0).argsort(0)
    usable &= ~side | (rank < count)
  return usable

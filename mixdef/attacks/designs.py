"""Which models may judge a target, given how the training subsets were drawn."""

import numpy as np

_CHANCE = 1e-9  # a pattern rarer than this under independent halves was made on purpose


def detect_design(keep: np.ndarray) -> str:
  """Tell a balanced design from independent draws.

  Balanced: every record is in floor(S/2) or ceil(S/2) of the models. Independent fair
  draws look like this with probability p^N, p = Pr[Bin(S, 1/2) in {those}]; below 1e-9
  it is no accident.

  Args:
    keep: bool [S, N] of the audited records.

  Returns:
    "balanced" or "bernoulli".

  >>> detect_design(np.array([[True] * 40, [False] * 40]))
  'balanced'
  """
  from scipy.special import comb

  models, records = keep.shape
  counts = keep.sum(0)
  halves = {models // 2, -(-models // 2)}
  if records == 0 or not np.isin(counts, list(halves)).all():
    return "bernoulli"
  share = sum(float(comb(models, half)) for half in halves) / 2.0**models
  return "balanced" if share**records < _CHANCE else "bernoulli"


def references(
  keep: np.ndarray, target: int, *, audited: np.ndarray, even: bool
) -> np.ndarray:
  """Select the models that an attack on the target may read, per record.

  Left out are the target; a model that trained on exactly the other audited records
  (pairs of complementary subsets: it gives the target's membership away); and, if
  `even`, models drawn at random from a record's larger side, until as many remain with
  the record as without. In a balanced design the counts of the other models would
  otherwise tell the target's membership, which biases every attack that uses them.

  Args:
    keep: bool [S, N].
    target: index of the attacked model.
    audited: bool [N].
    even: the design is balanced.

  Returns:
    bool [S, N].

  Deviation: the draw depends on the target and on a record's position, so in a balanced
    design permuting records changes which references are dropped.

  >>> keep = np.array([[True], [True], [False], [False]])
  >>> references(keep, 0, audited=np.array([True]), even=True).sum()
  np.int64(2)
  """
  usable = np.ones(keep.shape, bool)
  usable[target] = False
  if 2.0 ** -int(audited.sum()) < _CHANCE:
    opposite = (keep[:, audited] != keep[target, audited]).all(1)
    usable[opposite] = False
  if even:
    fewest = np.minimum((usable & keep).sum(0), (usable & ~keep).sum(0))
    order = np.random.default_rng(target).random(keep.shape)
    for side in (usable & keep, usable & ~keep):
      rank = np.where(side, order, np.inf).argsort(0).argsort(0)
      usable &= ~side | (rank < fewest)
  return usable

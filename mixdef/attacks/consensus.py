"""What several attacks, or several trainings, say together about the records."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.check import check_count


class Agreement(NamedTuple):
  """Lists of named members of A attacks, compared.

  Attributes:
    named: bool [A, N], the members on each list.
    sizes: int [A], the members on each list.
    votes: int [N], the lists that each member is on.
    intersection: members on every list.
    union: members on some list.
    jaccard: [A, A], common members over members on either list; NaN for two empty
      lists.
    unscored: int [A], members whose score is NaN, which no list names.
  """

  named: np.ndarray
  sizes: np.ndarray
  votes: np.ndarray
  intersection: int
  union: int
  jaccard: np.ndarray
  unscored: np.ndarray


def mean_rank(scores: ArrayLike) -> np.ndarray:
  """Return the mean over attacks of every record's rank.

  Ties share their middle rank. The result is a score, with p-values of its own: an
  average of p-values is none. Pass members and hold-out records together, so that both
  are ranked alike.

  Args:
    scores: [A, N] of A attacks, larger for members. Scales do not matter.

  Returns:
    [N], from 1, the lowest, to N; NaN where an attack has no score.

  >>> (3 * mean_rank([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 5, 5]])).tolist()
  [6.5, 6.5, 8.5, 8.5]
  """
  from scipy.stats import rankdata

  return rankdata(_matrix(scores, "scores"), axis=1, nan_policy="omit").mean(0)


def agreement(members: ArrayLike, holdout: ArrayLike, k: int) -> Agreement:
  """Compare the lists of members that A attacks name at the same rank.

  An attack names the members whose score exceeds its k-th largest score of the
  hold-out; ties are not named. Rows may also be trainings with other seeds.

  Args:
    members: scores [A, N1] of the training records.
    holdout: scores [A, N0] of the hold-out, scored in the same way. Here NaN counts as
      the largest score, against the attack.
    k: rank from 1 to N0; the false-positive rate is k/(N0 + 1) on average.

  Returns:
    The `Agreement`.

  Raises:
    ValueError: for arrays of other shapes, or k out of range.

  >>> found = agreement([[3, 4, 5], [5, 4, 1]], [[1, 2, 3], [2, 3, 1]], 1)
  >>> found.sizes.tolist(), found.votes.tolist(), found.jaccard[0, 1].round(3)
  ([2, 2], [1, 2, 1], np.float64(0.333))
  """
  inside, out = _matrix(members, "members"), _matrix(holdout, "holdout")
  if len(inside) != len(out):
    raise ValueError(
      f"members have {len(inside)} rows and holdout {len(out)}; pass one row per attack"
    )
  check_count("agreement: k", k, 1, out.shape[1])
  limits = np.sort(np.where(np.isnan(out), np.inf, out), axis=1)[:, -k]
  named = inside > limits[:, None]
  common = named.astype(int) @ named.T
  sizes = named.sum(1)
  either = sizes[:, None] + sizes - common
  return Agreement(
    named=named,
    sizes=sizes,
    votes=named.sum(0),
    intersection=int(named.all(0).sum()),
    union=int(named.any(0).sum()),
    jaccard=np.where(either > 0, common / np.maximum(either, 1), np.nan),
    unscored=np.isnan(inside).sum(1),
  )


def _matrix(values: ArrayLike, name: str) -> np.ndarray:
  array = validate.numbers(values, name).astype(np.float64)
  if array.ndim != 2 or 0 in array.shape:
    raise ValueError(
      f"{name} has shape {array.shape}; pass [A, N], one row of scores per attack"
    )
  return array

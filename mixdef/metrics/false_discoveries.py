"""Lists of members with a bound on the fraction of wrong names.

The p-value of a record is its rank among the scores of a hold-out. A list of members
alone contains no wrong name, so the false-discovery rate is that of a pool in which a
stated fraction of the records are members.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.randomness import generator

METHODS = ("bh", "by", "storey")
"""Benjamini and Hochberg; Benjamini and Yekutieli, under any dependence; and Storey,
who estimates the fraction of non-members."""

_LAMBDA = 0.5  # p-values above it count as those of non-members


class Listed(NamedTuple):
  """The members that can be named with a bounded fraction of wrong names.

  Attributes:
    named: float, mean number of the N1 members on a list.
    share: float, the same as a fraction of N1.
    rate: float, mean fraction of wrong names over the pools that were drawn.
    pool: int, records in a pool.
    calibration: int, records of the hold-out from which p-values were computed.
    smallest: int, records on the shortest list that can exist; 0 members are named if
      no pool has as many strong scores.
  """

  named: float
  share: float
  rate: float
  pool: int
  calibration: int
  smallest: int

  def to_json(self) -> dict[str, Any]:
    """Return the fields as JSON values."""
    return self._asdict()


def conformal_p(scores: ArrayLike, holdout: ArrayLike) -> np.ndarray:
  """Return the p-value of each score: its rank among those of the hold-out.

      p_i = (1 + #{h: s_h >= s_i})/(n0 + 1)

  Args:
    scores: [N], higher means member; NaN gives NaN.
    holdout: [n0] scores of non-members, at least one that is not NaN.

  Returns:
    [N] in (0, 1]. For a non-member that is exchangeable with the hold-out, Pr(p <= u)
    is at most u.

  Raises:
    ValueError: if the hold-out has no score.

  Reference: Bates, Candes, Lei, Romano, Sesia, "Testing for Outliers with Conformal
    p-values", 2021, arXiv 2104.08279.

  >>> conformal_p([3.5, 0.4], [0.1, 0.4, 0.4, 0.9]).tolist()
  [0.2, 0.8]
  """
  values = validate.numbers(scores, "scores").astype(np.float64)
  known = validate.numbers(holdout, "holdout").astype(np.float64)
  known = np.sort(known[~np.isnan(known)])
  if not known.size:
    raise ValueError("holdout has no score; pass at least one")
  at_least = known.size - np.searchsorted(known, values, side="left")
  return np.where(np.isnan(values), np.nan, (1 + at_least) / (known.size + 1))


def discoveries(p: ArrayLike, q: float, *, method: str = "bh") -> np.ndarray:
  """Return which records are named with a false-discovery rate of at most q.

  Args:
    p: [N] p-values; NaN is never named.
    q: the rate, in (0, 1).
    method: one of `METHODS`.

  Returns:
    bool [N].

  Raises:
    ValueError: for an unknown method, or q out of range.

  >>> p = [0.001, 0.008, 0.012, 0.03, 0.041, 0.2, 0.5, 0.9]
  >>> [int(discoveries(p, 0.05, method=name).sum()) for name in METHODS]
  [3, 1, 5]
  """
  from scipy.stats import false_discovery_control

  if method not in METHODS:
    raise ValueError(f"method={method!r}; choose from {', '.join(METHODS)}")
  if not 0 < q < 1:
    raise ValueError(f"q={q}; pass a rate in (0, 1), not a percentage")
  p = np.asarray(p, np.float64)
  named, scored = np.zeros(p.shape, bool), ~np.isnan(p)
  if not scored.any():
    return named
  level = q
  if method == "storey":
    large = (p[scored] > _LAMBDA).sum()
    level = q / min(1.0, (1 + large) / (scored.sum() * (1 - _LAMBDA)))
  adjusted = false_discovery_control(p[scored], method="by" if method == "by" else "bh")
  named[scored] = adjusted <= level * (1 + 1e-12)  # p k/m = q, up to rounding
  return named


def fdr_list(
  members: ArrayLike,
  holdout: ArrayLike,
  *,
  prior: float = 0.1,
  q: float = 0.05,
  method: str = "bh",
  draws: int = 200,
  seed: int = 0,
) -> Listed:
  """Count the members that can be named with at most a fraction q of wrong names.

  Half of the hold-out calibrates the p-values. The others form a pool, together with as
  many randomly drawn members as make up the prior. Each draw splits the hold-out anew.

  Args:
    members: [N1] scores of the members; higher means member.
    holdout: [n0] scores of non-members, scored in the same way and used for nothing
      else; at least 4.
    prior: fraction of the pool that are members, in (0, 1).
    q: bound on the expected fraction of wrong names, in (0, 1).
    method: one of `METHODS`; "by" if scores depend on each other.
    draws: number of pools.
    seed: random seed of the draws.

  Returns:
    The `Listed`.

  Raises:
    ValueError: for too few scores, or an argument out of range.

  Guarantee: for exchangeable scores, the fraction of wrong names is at most q on
    average over hold-outs and pools, not for each list.

  >>> members, holdout = np.linspace(3, 9, 500), np.linspace(-3, 3, 4000)
  >>> fdr_list(members, holdout, draws=5).share
  1.0
  """
  own, others = (
    array[~np.isnan(array)]
    for array in (
      validate.numbers(members, "members").astype(np.float64),
      validate.numbers(holdout, "holdout").astype(np.float64),
    )
  )
  if not own.size or others.size < 4:
    raise ValueError(
      f"{own.size} members and {others.size} records of the hold-out have a score; "
      "at least 1 and 4 are needed"
    )
  if not 0 < prior < 1:
    raise ValueError(f"prior={prior}; pass a fraction in (0, 1), not a percentage")
  rng = generator(seed)
  outside = others.size - others.size // 2
  inside = round(outside * prior / (1 - prior))
  if inside > own.size:
    inside, outside = own.size, max(1, round(own.size * (1 - prior) / prior))
  inside = max(inside, 1)
  shares, wrong = [], []
  for _ in range(draws):
    shuffled = rng.permutation(others)
    pool, known = shuffled[:outside], shuffled[outside:]
    chosen = rng.choice(own, inside, replace=False)
    named = discoveries(
      conformal_p(np.concatenate([chosen, pool]), known), q, method=method
    )
    shares.append(named[:inside].mean())
    wrong.append(named[inside:].sum() / max(named.sum(), 1))
  share, known = float(np.mean(shares)), others.size - outside
  return Listed(
    named=share * own.size,
    share=share,
    rate=float(np.mean(wrong)),
    pool=inside + outside,
    calibration=known,
    smallest=smallest_list(inside + outside, known, q, method=method),
  )


def smallest_list(
  pool: int, num_holdout: int, q: float = 0.05, *, method: str = "bh"
) -> int:
  """Return the number of records on the shortest list that can exist.

  The smallest p-value is 1/(n0 + 1), so a list needs at least m/(q (n0 + 1)) records.

  >>> smallest_list(50_000, 5_000), smallest_list(50_000, 5_000, method="by")
  (200, 2279)
  """
  factor = (1 / np.arange(1, pool + 1)).sum() if method == "by" else 1.0
  return int(np.ceil(pool * factor / (q * (num_holdout + 1)) - 1e-9))

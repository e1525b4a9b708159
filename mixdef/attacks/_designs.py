"""Select the reference models of a target, given how training subsets were drawn."""

import math
import zlib

import numpy as np

DESIGNS = ("bernoulli", "balanced", "constant", "dependent")
"""Independent draws; every record in half of the models; every record in another fixed
number of models; or subsets that reveal each other's members."""

_CHANCE = 1e-9  # under independent draws, a pattern rarer than this is deliberate
_SIGMA = 6.0  # the same threshold for a normal variable
_RELATED = (0.9, 0.5)  # correlations of halves that share 95 or 75%, or 5 or 25%


def drawn(members: np.ndarray, audited: np.ndarray, groups=None) -> np.ndarray:
  """Return the membership [S, M] of what was drawn: audited records, or persons.

  The records of a person are in the same subsets. Taken for separate draws, they would
  make subsets that were drawn independently look dependent.

  Args:
    members: bool [S, N].
    audited: bool [N].
    groups: [N], the person of each record, or None.
  """
  rows = np.flatnonzero(audited)
  if groups is not None:
    rows = rows[np.unique(np.asarray(groups)[rows], return_index=True)[1]]
  return members[:, rows]


def detect_design(members: np.ndarray) -> str:
  """Detect how the training subsets were drawn.

  Balanced: every record is in S/2 models; for odd S, some records are in floor(S/2) and
  the others in ceil(S/2). Constant: every record is in another number of models from 2
  to S - 2, either the same number for all records or one of two adjacent numbers.
  Independent draws at the rate r of `members` produce such a pattern with probability
  p^N, p = Pr[Bin(S, r) in {those numbers}]; below 1e-9 it is taken to be deliberate.

  Dependent: any other subsets whose members can be predicted, in part, from those of
  the other subsets: disjoint or nested subsets, folds, or records drawn at different
  rates. Subsets count as dependent if the covariances over all pairs of models that are
  not `related` sum to more than six standard deviations of their value under
  independent draws.

  Args:
    members: bool [S, N] of the audited records, or persons; see `drawn`.

  Returns:
    One of `DESIGNS`.

  >>> detect_design(np.array([[True] * 40, [False] * 40]))
  'balanced'
  >>> detect_design(np.arange(400) % 4 == np.arange(4)[:, None])
  'dependent'
  """
  models, records = members.shape
  if records == 0:
    return "bernoulli"
  counts = members.sum(0)
  low, high = int(counts.min()), int(counts.max())
  balanced = low + high == models
  if high - low <= 1 and (balanced or (low >= 2 and high <= models - 2)):
    from scipy.stats import binom

    share = binom.pmf(np.unique(counts), models, members.mean()).sum()
    if share**records < _CHANCE:
      return "balanced" if balanced else "constant"
  covariance, spread = _covariance(members)
  apart = ~(related(members) | np.eye(models, dtype=bool))
  deviation = math.sqrt(2 * np.outer(spread, spread)[apart].sum() / records)
  told = abs(covariance[apart].sum()) > _SIGMA * deviation > 0
  return "dependent" if told else "bernoulli"


def related(members: np.ndarray) -> np.ndarray:
  """Find pairs of models whose subsets are the same or complements, up to a quarter.

  Neither model of such a pair is a reference for the other, because its membership
  reveals the other's: models of similar subsets have similar outputs, which would give
  the target's members away even if no record left a trace of its own. Pairs that
  independent draws would produce for so few records do not count.

  Args:
    members: bool [S, N] of the audited records.

  Returns:
    bool [S, S], symmetric, False on the diagonal.

  >>> members = np.arange(80) % 2 == np.array([[0], [0], [1]])
  >>> related(members).sum()
  np.int64(6)
  """
  models, records = members.shape
  found = np.zeros((models, models), bool)
  if records == 0 or models < 2:
    return found
  covariance, spread = _covariance(members)
  scale = np.sqrt(np.outer(spread, spread))
  apart = 2 * spread.mean()  # how often two models differ in a record
  for least in _RELATED:  # the first needs fewer records to be no chance
    alike = np.abs(covariance) >= least * np.where(scale > 0, scale, np.inf)
    np.fill_diagonal(alike, False)
    if _deliberate(int(alike.sum()) // 2, models, records, apart, least):
      found |= alike
  return found


def _deliberate(
  pairs: int, models: int, records: int, apart: float, least: float
) -> bool:
  """Return whether independent draws would hardly give so many related pairs."""
  if not pairs:
    return False
  from scipy.stats import binom

  allowed = math.floor((1 - least) * apart * records)
  chance = binom.cdf(allowed, records, apart) + binom.cdf(allowed, records, 1 - apart)
  expected = max(math.comb(models, 2) * chance, 1e-300)
  rarity = pairs * math.log(expected) - math.lgamma(pairs + 1)  # Poisson
  return rarity < math.log(_CHANCE)


def references(
  members: np.ndarray,
  target: int,
  *,
  audited: np.ndarray,
  design: str,
  alike: np.ndarray | None = None,
) -> np.ndarray:
  """Select the reference models of an attack on the target, per record.

  This excludes the target; models whose subset follows from the target's (`related`);
  and, unless draws were independent, randomly chosen models on either side of a record,
  until the remaining counts do not reveal the target's membership. In a balanced
  design, equally many models remain with and without the record. In a constant design,
  as many of either kind remain as for the audited record that has the fewest. In a
  dependent design, all records that have enough models keep the same number, chosen to
  keep the most, and all other records keep none. Without this, the counts of the other
  models would reveal the target's membership and bias every attack that uses them.

  Args:
    members: bool [S, N].
    target: index of the attacked model.
    audited: bool [N].
    design: one of `DESIGNS`.
    alike: bool [S, S], pairs that are not references of each other; default `related`.

  Returns:
    bool [S, N].

  Deviation: the draw depends on the target and on the position of a record, so
    permuting the records changes which references are dropped, unless subsets were
    drawn independently.

  >>> members = np.array([[True], [True], [False], [False]])
  >>> audited = np.array([True])
  >>> references(members, 0, audited=audited, design="balanced").sum()
  np.int64(2)
  """
  alike = related(members[:, audited]) if alike is None else alike
  usable = np.repeat(~alike[target][:, None], members.shape[1], 1)
  usable[target] = False
  if design == "bernoulli":
    return usable
  sides = usable & members, usable & ~members
  most = np.stack([side.sum(0) for side in sides])
  if design == "balanced":
    most[:] = most.min(0)
  elif design == "constant":
    most[:] = most[:, audited].min(1, keepdims=True, initial=len(members))
  else:
    common = _common_counts(most[:, audited], members[target, audited], len(members))
    most[:] = np.where((most >= common).all(0), common, 0)
  order = np.random.default_rng(target).random(members.shape)
  for side, count in zip(sides, most, strict=True):
    rank = np.where(side, order, np.inf).argsort(0).argsort(0)
    usable &= ~side | (rank < count)
  return usable


def shadows(
  members: np.ndarray,
  target: int,
  *,
  audited: np.ndarray,
  design: str,
  alike: np.ndarray | None = None,
) -> np.ndarray:
  """Select the shadow models that an attack may be fitted on, per record.

  These are the `references`, with one exception: what is learned from one model does
  not depend on how many others trained on a record. In a dependent design, a model
  therefore serves with all of its records, provided that its members overlap with the
  target's no more often than by chance.

  Args:
    members: bool [S, N].
    target: index of the attacked model.
    audited: bool [N].
    design: one of `DESIGNS`.
    alike: as for `references`.

  Returns:
    bool [S, N].
  """
  if design != "dependent":
    return references(members, target, audited=audited, design=design, alike=alike)
  known = members[:, audited]
  alike = related(known) if alike is None else alike
  usable = ~alike[target] & (_covariance(known)[0][target] <= 0)
  usable[target] = False
  return np.repeat(usable[:, None], members.shape[1], 1)


def first_targets(members: np.ndarray, count: int) -> list[int]:
  """Choose the first models that have members and non-members, on distinct subsets.

  Args:
    members: bool [S, N] of the audited records.
    count: number of models; fewer are returned if fewer exist.

  Returns:
    Their indices, ascending. A model whose subset occurred before is used only if there
    are no others left.

  >>> first_targets(np.arange(80) % 2 == np.array([[0], [0], [1], [2]]), 2)
  [0, 1]
  """
  able = np.flatnonzero(members.any(1) & ~members.all(1))
  same = related(members)
  chosen: list[int] = []
  for model in able:
    if len(chosen) < count and not same[model, chosen].any():
      chosen.append(int(model))
  spare = [int(model) for model in able if model not in chosen]
  return sorted(chosen + spare[: count - len(chosen)])


def never_varied(members: np.ndarray) -> np.ndarray:
  """Find records that are deliberately in all models or in none, bool [N].

  With few models, independent draws also produce such records; then none are returned.

  Args:
    members: bool [S, N] of the audited records.

  >>> always = np.arange(90) < 30
  >>> members = np.random.default_rng(0).random((16, 90)) < .5
  >>> never_varied(members | always).sum()
  np.int64(30)
  """
  same = np.asarray(members.all(0) | ~members.any(0))
  if not same.any():
    return same
  from scipy.stats import binom

  rate = members[~np.triu(related(members)).any(0)].mean(1)  # not an independent draw
  chance = min(1.0, rate.prod() + (1 - rate).prod())
  on_purpose = binom.sf(same.sum() - 1, len(same), chance) < _CHANCE
  return same if on_purpose else np.zeros_like(same)


def same_rows(rows: np.ndarray) -> np.ndarray:
  """Find pairs of equal rows that hold more than one value, bool [S, S].

  >>> same_rows(np.array([[1, 2], [1, 2], [1, 3], [4, 4], [4, 4]])).sum()
  np.int64(2)
  """
  marks = np.array([zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in rows])
  same = (marks[:, None] == marks) & (rows != rows[:, :1]).any(1)
  np.fill_diagonal(same, False)
  return same


def _covariance(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the covariances of the models' memberships [S, S] and the variances [S]."""
  rate = members.mean(1)
  centred = members.astype(np.float32) - rate[:, None].astype(np.float32)
  return centred @ centred.T / members.shape[1], rate * (1 - rate)


def _common_counts(counts: np.ndarray, member: np.ndarray, models: int) -> np.ndarray:
  """Return how many models of either side [2, 1] every selected record keeps.

  Given counts [2, N] of models with and without each record, a record is selected if it
  has enough of both. The choice maximizes the number of pairs of a member and a
  non-member of the target among the selected records, times the mean square root of the
  counts, because additional models help with diminishing returns. At least one model
  without the record is kept.
  """
  pairs = np.ones((models + 1, models + 1))
  for kind in (member, ~member):
    table = np.zeros_like(pairs)
    np.add.at(table, tuple(counts[:, kind]), 1)
    pairs *= table[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
  root = np.sqrt(np.arange(models + 1))
  gain = np.sqrt(pairs) * (root[:, None] + root)
  gain[:, 0] = 0
  return np.array(np.unravel_index(gain.argmax(), gain.shape))[:, None]

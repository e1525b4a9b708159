"""What a hold-out shows about one model: exact bounds for a few thresholds.

One model has been trained on N1 members, all of which are scored, and n0 records of a
hold-out that it has never seen are scored in the same way. Rule k names every member
whose score is above the k-th largest of the hold-out. The number named is a count; only
the false-positive rate of the rule is estimated, and its bounds are exact.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate

RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""The values of k, fixed before the scores are seen."""


class Rules(NamedTuple):
  """The rules of one attack on one model.

  Attributes:
    rank: [R] the values of k, those of `RANKS` up to half of the hold-out.
    threshold: [R] the k-th largest score of the hold-out; members above it are named.
    low: [R] lower bounds on the FPR; 0 where hold-out scores tie at the threshold.
    high: [R] upper bounds on the FPR. All bounds hold at once, with the stated
      confidence on either side.
    named: int [R] members above the threshold.
    num_members: N1, members with a score.
    num_holdout: n0, records of the hold-out with a score.
    num_missing: records whose score is NaN, which are excluded.
    level: probability with which one rule may be taken for better than guessing.
  """

  rank: np.ndarray
  threshold: np.ndarray
  low: np.ndarray
  high: np.ndarray
  named: np.ndarray
  num_members: int
  num_holdout: int
  num_missing: int = 0
  level: float = 0.05 / len(RANKS)

  @classmethod
  def of(
    cls,
    members: ArrayLike,
    holdout: ArrayLike,
    *,
    confidence: float = 0.95,
    num_attacks: int = 1,
  ) -> "Rules":
    """Apply the rules to scores.

        FPR of rule k ~ Beta(k, n0 + 1 - k),   level of a bound: (1 - confidence)/(R A)

    Args:
      members: [N1] scores of the members; higher means member.
      holdout: [n0] scores of the hold-out.
      confidence: in (0, 1), of all bounds of one side.
      num_attacks: A, the number of attacks of which the best is reported.

    Returns:
      The rules.

    Raises:
      ValueError: if a side has no score, or the hold-out fewer than two.

    Guarantee: exact for scores of the hold-out that are independent and identically
      distributed given the model. If references were trained on the hold-out, the
      scores are exchangeable, and the bounds are approximate. Nothing is assumed of the
      members' scores; `beats` assumes that they are exchangeable with those of the
      hold-out if the model leaks nothing.

    Deviation: R is always the length of `RANKS`, also for a hold-out that is too short
      for some, which is conservative.

    >>> rules = Rules.of([4.0, 2.5, 0.0], np.arange(4.0))
    >>> rules.rank, rules.named
    (array([1, 2]), array([1, 2]))
    """
    own, others = _scores(members, "members"), _scores(holdout, "holdout")
    missing = int(np.isnan(own).sum() + np.isnan(others).sum())
    own, others = own[~np.isnan(own)], np.sort(others[~np.isnan(others)])[::-1]
    if not own.size or others.size < 2:
      raise ValueError(
        f"{own.size} members and {others.size} records of the hold-out have a score; "
        "at least 1 and 2 are needed"
      )
    rank = np.array([k for k in RANKS if k <= others.size / 2])
    low, high = fpr_bounds(rank, others.size, confidence, num_attacks)
    threshold = others[rank - 1]
    above = others.size - np.searchsorted(others[::-1], threshold, side="right")
    below = others.size - np.searchsorted(others[::-1], threshold, side="left")
    tied = below - above > 1
    ranked = np.sort(own)
    named = own.size - np.searchsorted(ranked, threshold, side="right")
    return cls(
      rank,
      threshold,
      np.where(tied, 0.0, low),
      high,
      named,
      own.size,
      others.size,
      missing,
      _level(confidence, num_attacks),
    )

  @property
  def tpr(self) -> np.ndarray:
    """Fraction of the members that each rule names, [R]."""
    return self.named / self.num_members

  def shown(self, precision: float, prior: float) -> int:
    """Return how many members are on a list of at least this precision, for certain.

    Args:
      precision: least fraction of a list that are members, in (0, 1).
      prior: fraction of members among the candidates of an attacker, in (0, 1).

    Returns:
      The longest list of a rule that `beats` guessing, and whose TPR is
      `odds(precision, prior)` times the upper bound on its FPR; 0 if there is none.
    """
    return self._longest(self.high, precision, prior, self.beats)

  def possible(self, precision: float, prior: float) -> int:
    """Return how many members could be on such a list: the same with lower bounds."""
    return self._longest(self.low, precision, prior, self.named > 0)

  def certifiable(self, precision: float, prior: float) -> float:
    """Return the smallest fraction of members that this hold-out can show at all.

    Above 1, no list of this precision can be shown.
    """
    members, both = self.num_members, self.num_members + self.num_holdout
    drawn = np.arange(members)
    # Pr[the largest scores of both sides, one or more, are all members']
    chance = np.log((members - drawn) / (both - drawn)).cumsum()
    fewest = 1 + np.searchsorted(-chance, -np.log(self.level))
    share = odds(precision, prior) * self.high[0]
    return float(max(share, fewest / members))

  @property
  def beats(self) -> np.ndarray:
    """Which rules name more members than they would if nothing leaked, bool [R].

    If members and hold-out are exchangeable, at least m members are above the k-th
    largest of the hold-out if at most k - 1 of the m + k - 1 largest scores of both
    sides are the hold-out's, a hypergeometric law whatever the scores. A rule beats
    guessing if this has a probability of at most `level`, so that any rule of any
    attack does so by chance in at most 1 - confidence of all audits.
    """
    from scipy.stats import hypergeom

    both = self.num_members + self.num_holdout
    law = hypergeom(both, self.num_holdout, self.named + self.rank - 1)
    return law.cdf(self.rank - 1) <= self.level

  @property
  def beats_guessing(self) -> bool:
    """Whether any rule beats guessing."""
    return bool(self.beats.any())

  def _longest(self, fpr, precision, prior, counted):
    enough = self.tpr >= odds(precision, prior) * fpr
    return int(self.named[enough & counted].max(initial=0))


def odds(precision: float, prior: float) -> float:
  """Return the least TPR/FPR at which a list has a precision.

      PPV >= p  <=>  TPR/FPR >= p/(1 - p) (1 - pi)/pi

  Args:
    precision: p, in (0, 1).
    prior: pi, in (0, 1).

  >>> round(odds(0.95, 0.1)), round(odds(0.5, 0.01))
  (171, 99)
  """
  for name, value in (("precision", precision), ("prior", prior)):
    if not 0 < value < 1:
      raise ValueError(f"{name}={value}; pass a fraction in (0, 1), not a percentage")
  return precision / (1 - precision) * (1 - prior) / prior


def dp_tpr(fpr: ArrayLike, epsilon: float, delta: float) -> np.ndarray:
  """Return the largest TPR that differential privacy allows at an FPR.

      TPR <= min(1, delta + e^eps FPR, 1 - e^-eps (1 - delta - FPR))

  Args:
    fpr: in [0, 1].
    epsilon: at least 0.
    delta: in [0, 1].

  Guarantee: bounds each record, and so every attack whose members were drawn at random.

  Reference: Kairouz, Oh, Viswanath, "The Composition Theorem for Differential Privacy",
    2015, arXiv 1311.0776.

  >>> dp_tpr([0.01, 0.001], 1.0, 1e-5).round(7)
  array([0.0271928, 0.0027283])
  """
  rate = np.asarray(fpr, np.float64)
  low = delta + np.exp(epsilon) * rate
  high = 1 - np.exp(-epsilon) * (1 - delta - rate)
  return np.clip(np.minimum(low, high), 0.0, 1.0)


def fpr_bounds(
  rank: ArrayLike, num_holdout: int, confidence: float = 0.95, num_attacks: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Return lower and upper bounds on the FPR of rules, from order statistics.

  Args:
    rank: [R] of the threshold among the scores of the hold-out; 1 is the largest.
    num_holdout: n0.
    confidence: in (0, 1), see `Rules.of`.
    num_attacks: A, see `Rules.of`.

  >>> fpr_bounds([1], 5000)[1].round(5)
  array([0.00106])
  """
  from scipy.stats import beta

  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}; pass a number in (0, 1)")
  k = np.asarray(rank)
  level = _level(confidence, num_attacks)
  law = beta(k, num_holdout + 1 - k)
  return law.ppf(level), law.isf(level)


def _level(confidence, num_attacks):
  """Return the probability of an error that is left to one rule (Bonferroni)."""
  return (1 - confidence) / (len(RANKS) * num_attacks)


def _scores(values, name):
  scores = validate.numbers(values, name).astype(np.float64)
  if scores.ndim != 1:
    raise ValueError(f"{name} has shape {scores.shape}; pass the scores of one model")
  return scores

"""Metrics of an attack. The ROC is never interpolated, and ties move together.

Scores and membership may be [N] (one target) or [S, N] (pooled targets). NaN scores are
excluded; `excluded` counts them.
"""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics import ranking

FPR_GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""The false-positive rates that a report shows by default."""


def scored_pairs(scores: ArrayLike, member: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Flatten scores and membership, without the pairs whose score is NaN.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.

  Returns:
    scores float64 [P] and member bool [P].

  Raises:
    ValueError: if shapes differ, member is not bool, or one class is missing.
  """
  scores, member = validate.scored(scores, member)
  scored = ~np.isnan(scores)
  scores, member = scores[scored], member[scored]
  if not member.any() or member.all():
    raise ValueError(
      f"{int(member.sum())} members and {int((~member).sum())} non-members have a "
      "score; at least one of each is needed"
    )
  return scores, member


def complete_targets(scores: ArrayLike, member: ArrayLike) -> np.ndarray:
  """Find the targets that have a member and a non-member with a score.

  Only these have rates of their own. An attack that queries few records, or that leaves
  some without a score, can lack a class in one model but not in the others.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.

  Returns:
    The indices of these targets, ascending.

  >>> complete_targets([[1., 2.], [3., np.nan]], [[True, False], [True, False]])
  array([0])
  """
  scores, member = map(np.atleast_2d, validate.scored(scores, member))
  scored = ~np.isnan(scores)
  return np.flatnonzero((scored & member).any(1) & (scored & ~member).any(1))


def pseudo_targets(scores: ArrayLike, member: ArrayLike) -> np.ndarray:
  """Return the `complete_targets`, at least two, because each is judged by the others.

  Raises:
    ValueError: if there are fewer.
  """
  found = complete_targets(scores, member)
  if len(found) < 2:
    raise ValueError(
      f"scores have shape {np.shape(scores)} and both classes in {len(found)} targets;"
      " thresholds of other models need [S, N] with S >= 2 such targets"
    )
  return found


def excluded(scores: ArrayLike) -> int:
  """Count the scores that are NaN."""
  return int(np.isnan(np.asarray(scores, dtype=np.float64)).sum())


def auc(scores: ArrayLike, member: ArrayLike) -> float:
  """Return the area under the ROC, with mid-ranks for ties.

  A value below 0.5 is returned unchanged: flipping the sign would be a selection.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.

  Returns:
    Pr[score of a member > that of a non-member] + Pr[equal]/2, in [0, 1].

  >>> auc([.9, .8, .8, .1], [True, True, False, False])
  0.875
  """
  curve = ranking.roc(*scored_pairs(scores, member))
  return ranking.area(curve.tp, curve.fp)


def check_fpr(fpr: float) -> None:
  """Raise a ValueError unless `fpr` is a rate."""
  if not 0 <= fpr <= 1:
    raise ValueError(f"fpr={fpr}; pass a rate in [0, 1], not a percentage")


def tpr_at_fpr(
  scores: ArrayLike, member: ArrayLike, fpr: float, *, strict: bool = False
) -> float:
  """Return the largest TPR over the thresholds whose empirical FPR is at most `fpr`.

  The threshold is picked on the evaluated labels, so this describes the ROC, not what
  an attacker can achieve.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.
    fpr: in [0, 1].
    strict: whether to require an FPR below `fpr`, as the official LiRA code does.

  Returns:
    The TPR, in [0, 1].

  Raises:
    ValueError: if fpr is not in [0, 1].

  >>> scores = [.9, .8, .7, .1, .95, .6, .5, .4]
  >>> member = [True] * 4 + [False] * 4
  >>> [tpr_at_fpr(scores, member, f) for f in (0, .24, .25, .5)]
  [0.0, 0.0, 0.75, 0.75]
  """
  check_fpr(fpr)
  curve = ranking.roc(*scored_pairs(scores, member))
  return ranking.highest_tpr(curve.tp, curve.fp, fpr, strict=strict)


def resolvable(num_nonmembers: int, fpr: float) -> bool:
  """Return whether at least ten false positives are expected at an FPR.

  >>> resolvable(10_000, .001), resolvable(5_000, .001)
  (True, False)
  """
  return round(num_nonmembers * fpr, 9) >= 10


def clopper_pearson(
  successes: float, trials: float, *, confidence: float = 0.95
) -> tuple[float, float]:
  """Return the exact interval of a binomial rate.

      lo = Beta^-1(a/2; k, n-k+1),   hi = Beta^-1(1-a/2; k+1, n-k),   a = 1 - confidence

  Guarantee: covers at the stated rate for independent trials. Pairs of a record with
    many targets are not independent: use `bootstrap_records` there.

  Args:
    successes: k, 0 to n; fractional for effective numbers of trials.
    trials: n, at least 1.
    confidence: in (0, 1).

  Returns:
    (lo, hi), with lo = 0 at k = 0 and hi = 1 at k = n.

  Raises:
    ValueError: if k, n or confidence is out of range.

  >>> [round(bound, 5) for bound in clopper_pearson(25, 25_000)]
  [0.00065, 0.00148]
  """
  if not 0 <= successes <= trials or trials < 1:
    raise ValueError(
      f"successes={successes}, trials={trials}; pass 0 <= k <= n, n >= 1"
    )
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}; pass a rate in (0, 1)")
  from scipy.special import betaincinv

  tail = (1 - confidence) / 2
  failures = trials - successes
  low = betaincinv(successes, failures + 1, tail) if successes else 0.0
  high = betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
  return float(low), float(high)


def shadow_thresholds(scores: ArrayLike, member: ArrayLike) -> np.ndarray:
  """Find for each target the best threshold of the next one, (s + 1) mod S.

  An attacker can do the same: run the attack with a shadow model of known membership as
  pseudo-target, and keep the threshold. A model without a scored member or without a
  scored non-member is skipped in favor of the next one.

  Guarantee: in leave-one-out scores the pseudo-target's references include the target,
    so one number per target depends weakly on its labels.

  Args:
    scores: [S, N] of S >= 2 targets; higher means member.
    member: bool [S, N].

  Returns:
    Thresholds [S] that maximize (TPR + TNR)/2 on the pseudo-target.

  Raises:
    ValueError: if fewer than two targets have both classes.

  >>> shadow_thresholds([[1., 3.], [2., 4.]], [[False, True], [False, True]])
  array([4., 3.])
  """
  scores, member = validate.scored(scores, member)
  able = pseudo_targets(scores, member)
  own = [ranking.best_threshold(*scored_pairs(scores[s], member[s])) for s in able]
  following = np.searchsorted(able, np.arange(len(scores)), side="right")
  return np.array(own)[following % len(able)]


def balanced_accuracy(
  scores: ArrayLike, member: ArrayLike, *, threshold: ArrayLike | None = None
) -> float:
  """Return (TPR + TNR)/2 of the decision `score >= threshold`.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.
    threshold: a number, or [S] with one for each target; default `shadow_thresholds`,
      which never reads the evaluated target's labels.

  Returns:
    Balanced accuracy over all pairs, in [0, 1]; the advantage is twice this minus 1.

  >>> balanced_accuracy([.9, .2, .6, .1], [True, True, False, False], threshold=.5)
  0.5
  >>> balanced_accuracy([[1., 3.], [2., 4.]], [[False, True], [False, True]])
  0.75
  """
  called, truth = _decisions(scores, member, threshold)
  return float((called[truth].mean() + 1 - called[~truth].mean()) / 2)


def positive_rate(
  scores: ArrayLike, member: ArrayLike, *, threshold: ArrayLike | None = None
) -> float:
  """Return the fraction of scored pairs that an attack classifies as members.

  An attack that classifies all records the same way is uninformative, whatever its
  accuracy on an unbalanced set.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.
    threshold: a number, or [S] with one for each target; default `shadow_thresholds`.

  Returns:
    The rate, in [0, 1].

  >>> positive_rate([.9, .2, .6, .7], [True, True, False, False], threshold=.5)
  0.75
  """
  return float(_decisions(scores, member, threshold)[0].mean())


def _decisions(
  scores: ArrayLike, member: ArrayLike, threshold: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
  """Return the predicted and the true membership, bool [P] over scored pairs."""
  if threshold is None:
    threshold = shadow_thresholds(scores, member)
  limits = np.asarray(threshold, dtype=np.float64)
  if limits.ndim:
    limits = limits[:, None]
  scores = np.asarray(scores, dtype=np.float64)
  _, truth = scored_pairs(scores, member)
  return (scores >= limits)[~np.isnan(scores)], truth


def max_balanced_accuracy(scores: ArrayLike, member: ArrayLike) -> float:
  """Return the largest balanced accuracy over all thresholds.

  This is optimistic: the threshold is picked on the evaluated labels, as in the
  official LiRA code. `balanced_accuracy` is what an attacker can achieve.

  Args:
    scores: [N] or [S, N]; higher means member.
    member: bool of the same shape.

  Returns:
    max over thresholds of (TPR + TNR)/2, in [0.5, 1].

  >>> max_balanced_accuracy([.9, .2, .6, .1], [True, True, False, False])
  0.75
  """
  scores, member = scored_pairs(scores, member)
  threshold = ranking.best_threshold(scores, member)
  return balanced_accuracy(scores, member, threshold=threshold)


def gap_attack_accuracy(train_accuracy: float, test_accuracy: float) -> float:
  """Return the balanced accuracy of the gap attack, 1/2 + (train - test)/2.

  Args:
    train_accuracy: of the members, in [0, 1].
    test_accuracy: of the non-members, in [0, 1].

  Returns:
    The baseline accuracy for every attack on the same model.

  Raises:
    ValueError: if a rate is outside [0, 1].

  >>> gap_attack_accuracy(1.0, 0.75)
  0.625
  """
  for name, rate in (("train", train_accuracy), ("test", test_accuracy)):
    if not 0 <= rate <= 1:
      raise ValueError(f"{name}_accuracy={rate}; pass a fraction in [0, 1]")
  return 0.5 + (train_accuracy - test_accuracy) / 2


def ppv(tpr: float, fpr: float, prior: float) -> float:
  """Return the probability that a record classified as a member is one.

      PPV = pi TPR / (pi TPR + (1 - pi) FPR)

  Args:
    tpr: in [0, 1].
    fpr: in [0, 1].
    prior: pi, the fraction of members among the attacked records, in (0, 1). Balanced
      evaluations have 1/2; in practice 1 % is more likely.

  Returns:
    The positive predictive value; NaN if no record is classified as a member.

  Raises:
    ValueError: if a rate is out of range.

  >>> [round(ppv(.05, .001, prior), 4) for prior in (.01, .1, .5)]
  [0.3356, 0.8475, 0.9804]
  """
  for name, rate in (("tpr", tpr), ("fpr", fpr)):
    if not 0 <= rate <= 1:
      raise ValueError(f"{name}={rate}; pass a rate in [0, 1], not a percentage")
  if not 0 < prior < 1:
    raise ValueError(f"prior={prior}; pass a share in (0, 1), not a percentage")
  called = prior * tpr + (1 - prior) * fpr
  return prior * tpr / called if called else float("nan")

"""Decisions by thresholds: accuracies, rates and their predictive value."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics.roc import Roc, pseudo_targets, scored_pairs


def shadow_thresholds(scores: ArrayLike, members: ArrayLike) -> np.ndarray:
  """Find for each target the best threshold of the next one, (s + 1) mod S.

  An attacker can do the same: run the attack with a shadow model of known membership as
  pseudo-target, and keep the threshold. A model without a scored member or without a
  scored non-member is skipped in favor of the next one.

  Guarantee: in leave-one-out scores the pseudo-target's references include the target,
    so one number per target depends weakly on its labels.

  Args:
    scores: [S, N] of S >= 2 targets; higher means member.
    members: bool [S, N].

  Returns:
    Thresholds [S] that maximize (TPR + TNR)/2 on the pseudo-target.

  Raises:
    ValueError: if fewer than two targets have both classes.

  >>> shadow_thresholds([[1., 3.], [2., 4.]], [[False, True], [False, True]])
  array([4., 3.])
  """
  scores, members = validate.scored(scores, members)
  able = pseudo_targets(scores, members)
  own = [Roc.of(scores[s], members[s]).best_threshold for s in able]
  following = np.searchsorted(able, np.arange(len(scores)), side="right")
  return np.array(own)[following % len(able)]


def balanced_accuracy(
  scores: ArrayLike, members: ArrayLike, *, threshold: ArrayLike | None = None
) -> float:
  """Return (TPR + TNR)/2 of the decision `score >= threshold`.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.
    threshold: a number, or [S] with one for each target; default `shadow_thresholds`,
      which never reads the evaluated target's labels.

  Returns:
    Balanced accuracy over all pairs, in [0, 1]; the advantage is twice this minus 1.

  >>> balanced_accuracy([.9, .2, .6, .1], [True, True, False, False], threshold=.5)
  0.5
  >>> balanced_accuracy([[1., 3.], [2., 4.]], [[False, True], [False, True]])
  0.75
  """
  called, truth = _decisions(scores, members, threshold)
  return float((called[truth].mean() + 1 - called[~truth].mean()) / 2)


def positive_rate(
  scores: ArrayLike, members: ArrayLike, *, threshold: ArrayLike | None = None
) -> float:
  """Return the fraction of scored pairs that an attack classifies as members.

  An attack that classifies all records the same way is uninformative, whatever its
  accuracy on an unbalanced set.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.
    threshold: a number, or [S] with one for each target; default `shadow_thresholds`.

  Returns:
    The rate, in [0, 1].

  >>> positive_rate([.9, .2, .6, .7], [True, True, False, False], threshold=.5)
  0.75
  """
  return float(_decisions(scores, members, threshold)[0].mean())


def _decisions(
  scores: ArrayLike, members: ArrayLike, threshold: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
  """Return the predicted and the true membership, bool [P] over scored pairs."""
  if threshold is None:
    threshold = shadow_thresholds(scores, members)
  limits = np.asarray(threshold, dtype=np.float64)
  if limits.ndim:
    limits = limits[:, None]
  scores = np.asarray(scores, dtype=np.float64)
  _, truth = scored_pairs(scores, members)
  return (scores >= limits)[~np.isnan(scores)], truth


def max_balanced_accuracy(scores: ArrayLike, members: ArrayLike) -> float:
  """Return the largest balanced accuracy over all thresholds.

  This is optimistic: the threshold is picked on the evaluated labels, as in the
  official LiRA code. `balanced_accuracy` is what an attacker can achieve.

  Args:
    scores: [N] or [S, N]; higher means member.
    members: bool of the same shape.

  Returns:
    max over thresholds of (TPR + TNR)/2, in [0.5, 1].

  >>> max_balanced_accuracy([.9, .2, .6, .1], [True, True, False, False])
  0.75
  """
  return Roc.of(scores, members).max_balanced_accuracy


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
      evaluations have 1/2; in practice 1% is more likely.

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
    raise ValueError(f"prior={prior}; pass a fraction in (0, 1), not a percentage")
  called = prior * tpr + (1 - prior) * fpr
  return prior * tpr / called if called else float("nan")

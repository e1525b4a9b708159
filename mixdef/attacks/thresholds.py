"""Attacks that compare one statistic of the target with a threshold."""

from collections.abc import Callable

import numpy as np

from mixdef.attacks._entropies import entropy_score, mentr_score
from mixdef.attacks._shadows import by_class, labels_of, log_probs_of, one_shadow
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, flag, optional
from mixdef.core.registry import attack
from mixdef.metrics.roc import Roc


@attack(family="threshold", reads="signals")
def gap(signals: Signals, *, target: int) -> np.ndarray:
  """Classify a record as a member iff the target predicts its label (query 0).

  Its balanced accuracy is exactly 1/2 + (train accuracy - test accuracy)/2. An attack
  below that on the same model is broken.

  Args:
    signals: signals with `correct`.
    target: index of the attacked model.

  Returns:
    Scores [N], 1.0 or 0.0; NaN where not audited.

  Raises:
    ValueError: if the signals were built from phi alone.

  Reference: Choquette-Choo, Tramer, Carlini, Papernot, "Label-Only Membership
    Inference Attacks", 2021, arXiv 2007.14321 (its baseline).

  >>> signals = Signals.from_logits([[[2., 0.], [2., 0.]]], [0, 1], [[True, False]])
  >>> gap(signals, target=0)
  array([1., 0.])
  """
  signals.check_model("target", target)
  return signals.only_audited(signals.statistic("correct")[target, :, 0])


@attack(family="threshold", reads="signals", aliases={"yeom": "loss_threshold"})
def loss_threshold(signals: Signals, *, target: int) -> np.ndarray:
  """Score a record by its negated loss on the target, `-l` (query 0).

  Args:
    signals: any signals.
    target: index of the attacked model.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Deviation: Yeom et al. use the mean training loss as the threshold; here only the
    score is returned, and `mixdef.metrics` sets thresholds.

  Reference: Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning:
    Analyzing the Connection to Overfitting", 2018, arXiv 1709.01604.

  >>> loss_threshold(Signals.from_phi([[0., 1.]], [[True, False]]), target=0).round(3)
  array([-0.693, -0.313])
  """
  signals.check_model("target", target)
  return signals.only_audited(-signals.loss[target, :, 0])


@attack(family="threshold", reads="signals")
@checked(shadow=optional(count(0)), per_class=flag)
def confidence(
  signals: Signals, *, target: int, shadow: int | None = None, per_class: bool = True
) -> np.ndarray:
  """Score the true-class confidence against its class's threshold on one shadow model.

      score = phi(x) - t_y,   t_c = argmax_t [TPR_c(t) + TNR_c(t)]/2 on the shadow

  Member iff score >= 0. The confidence p_y is compared on the scale phi = log p_y -
  log(1 - p_y): the decisions are those of p_y, but values near 1 do not round to ties.

  Args:
    signals: signals, with `labels` if `per_class`.
    target: index of the attacked model.
    shadow: index of the model that sets the thresholds, never the target; default the
      first eligible one after it, see `one_shadow`.
    per_class: whether to set one threshold per class. A class without members or
      without non-members on the shadow gets the global threshold.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: if the shadow is the target or cannot calibrate a threshold, or labels
      are missing.

  Deviation: the official scan returns the first best value in its own order; ours is
    the lowest best value. The paper reports only accuracies; with per_class, ROC curves
    rank records by the distance to the threshold of their class, phi - t_y, not by the
    confidence.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.

  >>> phi = [[1., 5.], [2., 4.]]
  >>> signals = Signals.from_phi(phi, [[False, True]] * 2, labels=[0, 0])
  >>> confidence(signals, target=0)
  array([-3.,  1.])
  """
  return _above_threshold(
    signals, lambda model: signals.phi[model, :, 0], target, shadow, per_class
  )


@attack(family="threshold", reads="signals")
@checked(shadow=optional(count(0)), per_class=flag)
def entropy(
  signals: Signals, *, target: int, shadow: int | None = None, per_class: bool = True
) -> np.ndarray:
  """Score the negated output entropy against its class's threshold on one shadow model.

      score = sum_k p_k log p_k - t_y,   t_y as in `confidence`

  Args:
    signals: signals with `log_probs`, and with `labels` if `per_class`.
    target: index of the attacked model.
    shadow: index of the model that sets the thresholds, as in `confidence`.
    per_class: whether to set one threshold per class, as in `confidence`.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: as in `confidence`, or if the signals have no log_probs.

  Deviation: as in `confidence`. Signals keep log-probabilities as float32.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.
  """
  outputs = log_probs_of(signals)
  return _above_threshold(
    signals, lambda model: entropy_score(outputs[model]), target, shadow, per_class
  )


@attack(family="threshold", reads="signals")
@checked(shadow=optional(count(0)), per_class=flag)
def mentr(
  signals: Signals, *, target: int, shadow: int | None = None, per_class: bool = True
) -> np.ndarray:
  """Score the negated modified entropy against its class's threshold on one shadow.

      score = (1 - p_y) log p_y + sum_{k != y} p_k log(1 - p_k) - t_y,
      t_y as in `confidence`

  Args:
    signals: signals with `log_probs` and `labels`.
    target: index of the attacked model.
    shadow: index of the model that sets the thresholds, as in `confidence`.
    per_class: whether to set one threshold per class, as in `confidence`.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: as in `confidence`, or if the signals have no log_probs.

  Deviation: as in `confidence`. Signals keep log-probabilities as float32.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.
  """
  outputs, labels = log_probs_of(signals), labels_of(signals)
  return _above_threshold(
    signals,
    lambda model: mentr_score(outputs[model], labels),
    target,
    shadow,
    per_class,
  )


def _above_threshold(
  signals: Signals,
  statistic: Callable[[int], np.ndarray],
  target: int,
  shadow: int | None,
  per_class: bool,
) -> np.ndarray:
  """Return the target's statistic [N] minus the shadow's best threshold."""
  shadow, learn = one_shadow(signals, target, shadow)
  values, member = statistic(shadow), signals.members[shadow]
  labels = labels_of(signals) if per_class else np.zeros(len(values), int)
  threshold = np.empty(len(values))
  for rows, fit in by_class(labels, learn, member):
    threshold[rows] = Roc.of(values[fit], member[fit]).best_threshold
  return signals.only_audited(statistic(target) - threshold)

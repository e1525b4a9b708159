"""Attacks that compare one statistic of the target with a threshold."""

import numpy as np

from mixdef.attacks.ranking import best_threshold
from mixdef.attacks.signals import Signals


def gap(signals: Signals, *, target: int) -> np.ndarray:
  """Call a record a member iff the target predicts its label (query 0).

  Its balanced accuracy is 1/2 + (train accuracy - test accuracy)/2 exactly; any attack
  below that on the same model is broken.

  Args:
    signals: with `correct`.
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


def loss_threshold(signals: Signals, *, target: int) -> np.ndarray:
  """Score a record by its negated loss on the target, `-l` (query 0).

  Args:
    signals: any.
    target: index of the attacked model.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Deviation: Yeom et al. decide by the mean training loss, member iff l is below it;
    here only the score is returned, and thresholds are the metrics' business.

  Reference: Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning:
    Analyzing the Connection to Overfitting", 2018, arXiv 1709.01604.

  >>> loss_threshold(Signals.from_phi([[0., 1.]], [[True, False]]), target=0).round(3)
  array([-0.693, -0.313])
  """
  signals.check_model("target", target)
  return signals.only_audited(-signals.loss[target, :, 0])


def confidence(
  signals: Signals, *, target: int, shadow: int | None = None, per_class: bool = True
) -> np.ndarray:
  """Score the true-class confidence against its class's threshold on one shadow model.

      score = phi(x) - t_y,   t_c = argmax_t [TPR_c(t) + TNR_c(t)]/2 on the shadow

  Member iff score >= 0. The confidence p_y is read on the scale
  phi = log p_y - log(1 - p_y): the decisions are those of p_y, but values near 1 do
  not round to ties.

  Args:
    signals: with `labels` if `per_class`.
    target: index of the attacked model.
    shadow: index of the model that sets the thresholds, never the target; default the
      next one, (target + 1) mod S.
    per_class: one threshold a class. A class of which the shadow saw no member or no
      non-member gets the global threshold.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: if the shadow is the target, is not fit for a threshold, or labels miss.

  Deviation: the official scan returns the first best value in its own order; ours is
    the lowest best value. The paper gives accuracies only; with per_class, curves
    rank records by the distance to the threshold of their class, phi - t_y, not by the
    confidence.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.

  >>> phi = [[1., 5.], [2., 4.]]
  >>> signals = Signals.from_phi(phi, [[False, True]] * 2, labels=[0, 0])
  >>> confidence(signals, target=0)
  array([-3.,  1.])
  """
  shadow = (target + 1) % len(signals.phi) if shadow is None else shadow
  signals.check_model("target", target)
  signals.check_model("shadow", shadow)
  if shadow == target:
    raise ValueError(f"shadow={shadow} is the target; name another model")
  if per_class and signals.labels is None:
    raise ValueError("per_class=True needs labels; pass them or per_class=False")
  member, audited = signals.keep[shadow], signals.audited
  values = signals.phi[shadow, :, 0]
  if not (member & audited).any() or not (~member & audited).any():
    raise ValueError(f"shadow={shadow} has only one kind of record; name another")
  threshold = np.full(len(values), best_threshold(values[audited], member[audited]))
  if per_class:
    for label in np.unique(signals.labels):
      rows = signals.labels == label
      fit = rows & audited
      if 0 < member[fit].sum() < fit.sum():
        threshold[rows] = best_threshold(values[fit], member[fit])
  return signals.only_audited(signals.phi[target, :, 0] - threshold)

"""Attacks that train a classifier of members' outputs on shadow models.

The attack model is fitted to outputs of shadow models, whose membership the attacker
knows, and is then applied to the target's outputs. The score is its log-odds of
membership, which does not saturate as the probability does; member iff score >= 0.

Option shared by the trained attacks:
  n_hidden: number of ReLU units of the attack model, 64 in the papers; 0 for softmax
    regression.

Deviation: the papers fit by Adam in small batches (ML-Leaks: rate .01, batch 10, 50
epochs, l2 1e-6; its code is configured with 64 hidden units but runs softmax
regression). Here 30 full-batch L-BFGS iterations from a fixed start, with l2 1/(2n), on
at most 10,000 examples (1,000 a class for `shokri`): faster, and independent of the
records' order.
"""

import numpy as np

from mixdef.attacks import _per_record
from mixdef.attacks._attack_net import fit_attack_net
from mixdef.attacks._shadows import (
  by_class,
  labels_of,
  log_probs_of,
  one_shadow,
  several_shadows,
)
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, optional
from mixdef.core.registry import attack

_LEAST = 20  # members, and non-members, that an attack model of one class needs
_MOST = 10_000
_MOST_A_CLASS = 1_000


@attack(family="trained", reads="signals", trains=True)
@checked(shadows=count(), n_hidden=count(0))
def shokri(
  signals: Signals, *, target: int, shadows: int = 10, n_hidden: int = 64
) -> np.ndarray:
  """Score by one attack model per class, fitted to the outputs of several shadows.

      score = log P_y(member | p) - log P_y(non-member | p),   p the output vector

  Args:
    signals: signals with `log_probs` and `labels`.
    target: index of the attacked model.
    shadows: maximum number of shadow models; see `several_shadows` for the choice.
    n_hidden: number of ReLU units of each attack model; 0 for softmax regression.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: if log_probs, labels or other models are missing, or an option is out of
      range.

  Deviation: the paper trains 20 to 100 shadows on disjoint data; here they are the
    other models. A class with fewer than 20 members or non-members among the shadows'
    examples gets an attack model of all classes.

  Reference: Shokri, Stronati, Song, Shmatikov, "Membership Inference Attacks Against
    Machine Learning Models", 2017, arXiv 1610.05820.
  """
  learn = several_shadows(signals, target, shadows)
  outputs, members = log_probs_of(signals), signals.members
  scores = np.full(members.shape[1], np.nan)
  for rows, fit in by_class(labels_of(signals), learn, members, least=_LEAST):
    net = fit_attack_net(
      _probabilities(outputs[fit]), members[fit], n_hidden=n_hidden, most=_MOST_A_CLASS
    )
    scores[rows] = net.log_odds(_probabilities(outputs[target, rows]))
  return signals.only_audited(scores)


@attack(family="trained", reads="signals", trains=True)
@checked(shadow=optional(count(0)), n_hidden=count(0))
def salem_1(
  signals: Signals, *, target: int, shadow: int | None = None, n_hidden: int = 64
) -> np.ndarray:
  """Score by an attack model fitted to the three largest posteriors of one shadow.

      score = log P(member | p_(1), p_(2), p_(3)) - log P(non-member | ...)

  Args:
    signals: signals with `log_probs`; with two classes both posteriors are read.
    target: index of the attacked model.
    shadow: index of the shadow, never the target; default the first eligible one after
      it, see `one_shadow`.
    n_hidden: number of ReLU units of the attack model; 0 for softmax regression.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: if log_probs are missing, or the shadow or an option cannot be used.

  Deviation: the official script fits the attack model to the target and tests it on the
    shadow; here it is the other way round, as in the paper.

  Reference: Salem, Zhang, Humbert, Berrang, Fritz, Backes, "ML-Leaks: Model and Data
    Independent Membership Inference Attacks and Defenses on Machine Learning Models",
    2019, arXiv 1806.01246, adversary 1.
  """
  outputs = log_probs_of(signals)
  shadow, learn = one_shadow(signals, target, shadow)
  scores = _transfer(
    outputs[shadow, learn], signals.members[shadow, learn], outputs[target], n_hidden
  )
  return signals.only_audited(scores)


@attack(family="trained", reads="signals", trains=True)
@checked(source_model=count(0), n_hidden=count(0))
def salem_2(
  signals: Signals,
  *,
  target: int,
  source: Signals | None = None,
  source_model: int = 0,
  n_hidden: int = 64,
) -> np.ndarray:
  """Score as `salem_1` with a shadow that was trained on another data set.

  Args:
    signals: signals with `log_probs`.
    target: index of the attacked model.
    source: signals, with `log_probs`, of models of another data set; the number of
      classes may differ.
    source_model: index of the shadow in the source.
    n_hidden: number of ReLU units of the attack model; 0 for softmax regression.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    Unavailable: without a source.
    ValueError: if log_probs are missing, the source is the signals themselves, its
      model lacks members or non-members, or an option is out of range.

  Deviation: if either data set has two classes, two posteriors of both are used.

  Reference: as `salem_1`, adversary 2.
  """
  signals.check_model("target", target)
  if source is None:
    raise Unavailable("salem_2 trains on signals of another data set; pass source=")
  if source is signals:
    raise ValueError(
      "source is the attacked signals themselves; pass others, or use salem_1"
    )
  source.check_model("source_model", source_model)
  learn = source.audited
  member = source.members[source_model, learn]
  if member.all() or not member.any():
    raise ValueError(
      f"source_model={source_model} has only members or only non-members; name another"
    )
  scores = _transfer(
    log_probs_of(source)[source_model, learn],
    member,
    log_probs_of(signals)[target],
    n_hidden,
  )
  return signals.only_audited(scores)


@attack(family="trained", reads="signals")
def salem_3(signals: Signals, *, target: int) -> np.ndarray:
  """Score by the largest posterior of the target, without any shadow.

      score = log p_(1) - log(1 - p_(1))

  It increases in p_(1), so it ranks alike, but values near 1 do not round to ties.

  Args:
    signals: signals with `log_probs`.
    target: index of the attacked model.

  Returns:
    Scores [N] in nats; NaN where not audited.

  Raises:
    ValueError: if log_probs are missing.

  Deviation: the paper uses a percentile of the predictions for random queries as the
    threshold; here only the score is returned, and `mixdef.metrics` sets thresholds.

  Reference: as `salem_1`, adversary 3.

  >>> outputs = np.log([[[.9, .1], [.2, .8]]])
  >>> signals = Signals.from_logits(outputs, [0, 0], [[True, False]])
  >>> salem_3(signals, target=0).round(3)
  array([2.197, 1.386])
  """
  signals.check_model("target", target)
  outputs = log_probs_of(signals)[target]
  likeliest = _per_record.statistics(outputs, outputs.argmax(-1))
  return signals.only_audited(likeliest["phi"])


def _transfer(
  seen: np.ndarray, member: np.ndarray, queried: np.ndarray, n_hidden: int
) -> np.ndarray:
  """Fit an attack model to known outputs [R, K]; return its log-odds on others."""
  top = min(3, seen.shape[-1], queried.shape[-1])
  net = fit_attack_net(_largest(seen, top), member, n_hidden=n_hidden, most=_MOST)
  return net.log_odds(_largest(queried, top))


def _probabilities(log_probs: np.ndarray) -> np.ndarray:
  return np.exp(log_probs.astype(np.float64))


def _largest(log_probs: np.ndarray, top: int) -> np.ndarray:
  """Return the largest probabilities [R, top], descending."""
  return np.sort(_probabilities(log_probs), -1)[:, ::-1][:, :top]

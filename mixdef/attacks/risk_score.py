"""The privacy risk score: the fraction of members in a bin of a shadow's histogram."""

import numpy as np

from mixdef.attacks._shadows import by_class, labels_of, one_shadow
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, one_of, optional
from mixdef.core.registry import attack

_SMALLEST = 1e-10  # a histogram on a log scale cannot hold 0


@attack(family="threshold", reads="signals")
@checked(
  shadow=optional(count(0)), statistic=one_of("loss", "confidence"), bins=count()
)
def privacy_risk_score(
  signals: Signals,
  *,
  target: int,
  shadow: int | None = None,
  statistic: str = "loss",
  bins: int = 5,
) -> np.ndarray:
  """Score by the posterior probability of membership given a binned statistic.

      score = h_in(b) / (h_in(b) + h_out(b)),   b = the bin of the target's value

  h_in and h_out are the histograms of the shadow's members and non-members of the
  record's class, each with sum 1, so the score is the posterior at a prior of 1/2.
  Member iff score >= 1/2. Values outside the edges fall in the first or the last bin; a
  bin without records of the shadow has the score of the nearest other bin, the left one
  for ties.

  Args:
    signals: signals with `labels`.
    target: index of the attacked model.
    shadow: index of the model that provides the histograms, never the target; default
      the first eligible one after it, see `one_shadow`.
    statistic: "loss" or "confidence", the true-class probability p_y.
    bins: number of bins of equal width on a log scale, from the smallest to the largest
      value of the class on the shadow.

  Returns:
    Scores [N] in [0, 1], at most `bins` distinct ones per class; NaN where not audited.

  Raises:
    ValueError: if the shadow or the statistic cannot be used, or labels are missing.

  Deviation: rounding moves the outer edges of the official code, so that it may not
    count the smallest or the largest value; here both are counted. A class without
    members or without non-members of the shadow uses the histograms of all classes; the
    official code fails there.

  Reference: Song, Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", 2021, arXiv 2003.10595.
  """
  shadow, learn = one_shadow(signals, target, shadow)
  member = signals.members[shadow]
  seen, queried = (signals.loss[model, :, 0] for model in (shadow, target))
  if statistic == "confidence":
    seen, queried = np.exp(-seen), np.exp(-queried)
  scores = np.empty(len(seen))
  for rows, fit in by_class(labels_of(signals), learn, member):
    inside, out = seen[fit & member], seen[fit & ~member]
    scores[rows] = posterior(queried[rows], inside, out, bins=bins)
  return signals.only_audited(scores)


def posterior(
  values: np.ndarray, inside: np.ndarray, out: np.ndarray, *, bins: int = 5
) -> np.ndarray:
  """Return h_in/(h_in + h_out) at the bins of the given values.

  Args:
    values: [V] >= 0.
    inside: [I] >= 0, values of members, at least one.
    out: [O] >= 0, values of non-members, at least one.
    bins: number of bins, log-spaced between the extremes of inside and out, floored at
      1e-10.

  Returns:
    float64 [V] in [0, 1].

  >>> posterior([.003, .02, .1, 3.], [1e-3, .01, .1], [.01, 1., 10.])
  array([1. , 0.5, 1. , 0. ])
  """
  values, inside, out = (
    np.log(np.maximum(x, _SMALLEST)) for x in (values, inside, out)
  )
  pooled = np.concatenate([inside, out])
  edges = np.linspace(pooled.min(), pooled.max(), bins + 1)

  def place(x):
    return np.clip(np.digitize(x, edges) - 1, 0, bins - 1)

  h_in, h_out = (np.bincount(place(x), minlength=bins) / len(x) for x in (inside, out))
  filled = np.flatnonzero(h_in + h_out)
  nearest = np.abs(np.arange(bins)[:, None] - filled).argmin(1)
  share = h_in[filled] / (h_in + h_out)[filled]
  return share[nearest][place(values)]

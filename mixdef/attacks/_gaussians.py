"""One Gaussian per record and query, fitted to the models in or out of the record."""

from typing import NamedTuple

import numpy as np

from mixdef.attacks._moments import Moments, moments, of_references
from mixdef.attacks.signals import Signals

FLOOR = 1e-4
"""Smallest variance of a record, as a fraction of the pooled variance."""


class Gaussians(NamedTuple):
  """Fits of N records and Q queries.

  Attributes:
    centre: [N, Q], NaN where no model was available.
    variance: [N, Q], positive.
    pooled: [Q], the pooled within-record variance.
    count: int [N], models in each fit.
    floored: bool [N], True where the record's own variance was raised to the floor.
  """

  centre: np.ndarray
  variance: np.ndarray
  pooled: np.ndarray
  count: np.ndarray
  floored: np.ndarray

  def z(self, values: np.ndarray) -> np.ndarray:
    """Return (values - centre) / std, [N, Q]."""
    return (values - self.centre) / np.sqrt(self.variance)

  def log_density(self, values: np.ndarray) -> np.ndarray:
    """Return log N(values; centre, variance), [N, Q]."""
    return -0.5 * (np.log(2 * np.pi * self.variance) + self.z(values) ** 2)


def log_ratio(inside: Gaussians, out: Gaussians, values: np.ndarray) -> np.ndarray:
  """Return the log density in minus that out, [N, Q]; z where no model is in."""
  ratio = inside.log_density(values) - out.log_density(values)
  return np.where((inside.count > 0)[:, None], ratio, out.z(values))


def fit_references(
  signals: Signals,
  target: int,
  *,
  member: bool,
  score: str,
  centre: str,
  ddof: int,
  fixed: bool,
  spare: np.ndarray | None = None,
  averaged: bool = False,
) -> Gaussians:
  """Fit every record on the reference models that did, or did not, train on it.

      pooled_q = mean_i Var_k(phi_ikq) over audited records i with two models or more

  A record with one model has no variance of its own and takes the pooled one. A
  record's own variance is at least `FLOOR` times the pooled variance.

  Args:
    signals: of S models.
    target: the attacked model, excluded regardless of its membership.
    member: whether to fit the models that trained on the record or those that did not.
    score: "phi" or "hinge".
    centre: "mean" or "median".
    ddof: 0 or 1; the variance is about the mean, over count - ddof.
    fixed: whether to use the pooled variance for every record.
    spare: [Q] variance used for every record where the pooled variance is 0, because
      all references agree or no record has two of them; default 1.
    averaged: whether to fit the mean over views of each model, as one query.

  Returns:
    The `Gaussians`.
  """
  middle = None
  if centre == "median":
    values = signals.statistic(score)
    chosen = signals.references(target) & (signals.members == member)
    middle = _median(values.mean(2, keepdims=True) if averaged else values, chosen)
  side = of_references(signals, target, member=member, score=score, averaged=averaged)
  return _fitted(side, middle, signals.audited, ddof, fixed, spare)


def fit(
  values: np.ndarray,
  chosen: np.ndarray,
  audited: np.ndarray,
  *,
  centre: str = "mean",
  ddof: int = 1,
  fixed: bool = False,
  spare: np.ndarray | None = None,
) -> Gaussians:
  """Fit every record on the chosen models; see `fit_references`.

  Args:
    values: [S, N, Q].
    chosen: bool [S, N].
    audited: bool [N], the records that enter the pooled variance.
    centre: "mean" or "median".
    ddof: 0 or 1.
    fixed: whether to use the pooled variance for every record.
    spare: [Q], replaces a pooled variance of 0.
  """
  middle = _median(values, chosen) if centre == "median" else None
  return _fitted(moments(values, chosen), middle, audited, ddof, fixed, spare)


def _fitted(
  side: Moments,
  middle: np.ndarray | None,
  audited: np.ndarray,
  ddof: int,
  fixed: bool,
  spare: np.ndarray | None,
) -> Gaussians:
  """Return the fits; `middle` [N, Q] replaces the mean as the centre."""
  count = side.count[:, 0]
  own = side.squares / np.maximum(side.count - ddof, 1)
  varied = audited & (count > 1)
  pooled = own[varied].mean(0) if varied.any() else np.zeros(own.shape[1])
  borrow = fixed | (side.count < 2) | (pooled == 0)
  pooled = np.where(pooled > 0, pooled, 1.0 if spare is None else spare)
  floored = ~borrow & (own < FLOOR * pooled)
  variance = np.where(borrow, pooled, np.maximum(own, FLOOR * pooled))
  centre = np.where(side.count > 0, side.mean if middle is None else middle, np.nan)
  return Gaussians(centre, variance, pooled, count, floored.any(1))


def _median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Return the median over the chosen models [N, Q], +inf where there is none."""
  count = chosen.sum(0)[:, None]
  ranked = np.sort(np.where(chosen[..., None], values, np.inf), axis=0)
  count = np.broadcast_to(count, values.shape[1:])[None]
  low = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=0)[0]
  high = np.take_along_axis(ranked, count // 2, axis=0)[0]
  return (low + high) / 2

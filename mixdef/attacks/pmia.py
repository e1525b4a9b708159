"""PMIA: LiRA for records that no reference model trained on, with proxies as members.

The outputs of models without a record come from the record itself. Those of models with
it are borrowed from other records, its proxies, so the attack never needs a model that
trained on the audited record.
"""

from typing import NamedTuple

import numpy as np

from mixdef.attacks._gaussians import FLOOR, Gaussians, fit_references
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, count, one_of
from mixdef.core.registry import attack

_FEWEST = 5  # outputs of proxies; with fewer, the proxies of all classes are used
_OWN_SPREAD = 32  # models without a record from which its own variance is used


class Proxies(NamedTuple):
  """What N records borrow from the members among their proxies.

  Attributes:
    count: int [N], outputs that are borrowed, pairs of a model and a record.
    centre: [N, Q], their centre; NaN where count is 0.
    variance: [N, Q], their variance.
    gap: [N, Q], mean over proxies of the centre in minus the centre out; NaN where
      there is none.
  """

  count: np.ndarray
  centre: np.ndarray
  variance: np.ndarray
  gap: np.ndarray


@attack(family="reference", reads="signals")
@checked(
  proxies=one_of("class", "global"),
  level=one_of("absolute", "shift"),
  centre=one_of("mean", "median"),
  ddof=count(0, 1),
  score=one_of("phi", "hinge"),
)
def pmia(
  signals: Signals,
  *,
  target: int,
  proxies: str = "class",
  level: str = "absolute",
  centre: str = "median",
  ddof: int = 0,
  score: str = "phi",
) -> np.ndarray:
  """Score by the log-likelihood ratio of the proxies' in and the record's own out.

  With X_j the outputs of the references that trained on a proxy of record j, over pairs
  of a model and a proxy, and d_j the mean over proxies r of mu_in_r - mu_out_r:

      absolute: log N(phi; centre X_j, var X_j) - log N(phi; mu_out_j, s_out_j^2)
      shift:    d_j/s^2 (phi - mu_out_j - d_j/2),    mu_in_j = mu_out_j + d_j

  A record is never its own proxy. In `shift`, s^2 is the mean of s_out^2 over the
  class, or s_out_j^2 if records have at least 32 models out on average. Neither level
  is better throughout: choose one on another model, not on the attacked one, and
  compare with `lira_offline`.

  Args:
    signals: signals of S >= 3 models with labels. Models that trained on a record
      serve its proxies, never the record.
    target: index of the attacked model.
    proxies: "class", the audited records of the same label, or "global", all audited
      records. Where fewer than 5 outputs would be borrowed from the class, all records
      are the proxies; `pmia_coverage` counts these.
    level: "absolute" or "shift".
    centre: "median" or "mean" of the outputs; the variance is about the mean.
    ddof: 0 or 1, in both variances.
    score: "phi" or "hinge".

  Returns:
    Scores [N] in nats, mean over views; NaN where no reference is out, or not audited.

  Raises:
    Unavailable: without labels if `proxies="class"`, or if no reference trained on any
      other record.

  Deviation: formula, median and ddof 0 of `absolute` are those of the official code
    [verified]; its proxies by CLIP features are left out, and variances have the floor
    of `lira_online` in place of its 1e-30. There, proxies come from a pool that the
    target was not trained on; here, such records must be audited to be proxies. Its
    views are random crops drawn anew for each model; here they are aligned. `shift`,
    the fallback below 5 outputs and the exclusion of the record itself are our choices
    [ours]. The paper's text was not available.

  Reference: Proxy membership inference (PMIA), NDSS 2026, arXiv 2507.21412.

  >>> rng = np.random.default_rng(0)
  >>> members = rng.random((16, 300)) < .5
  >>> phi = rng.normal(size=(16, 300)) + 3 * members
  >>> signals = Signals.from_phi(phi, members, labels=np.arange(300) % 3)
  >>> scores = pmia(signals, target=0)
  >>> bool(scores[members[0]].mean() > 0 > scores[~members[0]].mean())
  True
  """
  out, borrowed, _ = _fit(signals, target, proxies, centre, ddof, score)
  phi = signals.statistic(score)[target]
  if level == "absolute":
    variance = np.maximum(borrowed.variance, FLOOR * out.pooled)
    squares = (phi - borrowed.centre) ** 2 / variance
    inside = -0.5 * (np.log(2 * np.pi * variance) + squares)
    ratio = inside - out.log_density(phi)
  else:
    variance = _spread(out, signals, proxies)
    ratio = borrowed.gap / variance * (phi - out.centre - borrowed.gap / 2)
  return signals.only_audited(ratio.mean(1))


def pmia_coverage(
  signals: Signals, *, target: int, proxies: str = "class"
) -> dict[str, int]:
  """Count the audited records for which `pmia` needs a fallback.

  Args:
    signals: as for `pmia`.
    target: index of the attacked model.
    proxies: "class" or "global".

  Returns:
    Counts. borrowed_global: records whose class lends fewer than 5 outputs, which take
    the proxies of all classes; pooled_out: records with one model out, which take the
    pooled variance; excluded: records with no model out (score NaN).
  """
  out, _, thin = _fit(signals, target, proxies, "median", 0, "phi")
  masks = {
    "borrowed_global": thin,
    "pooled_out": out.count == 1,
    "excluded": out.count == 0,
  }
  return {name: int((mask & signals.audited).sum()) for name, mask in masks.items()}


def _fit(
  signals: Signals, target: int, proxies: str, centre: str, ddof: int, score: str
) -> tuple[Gaussians, Proxies, np.ndarray]:
  """Return the out fits, what is borrowed, and which records need all classes [N]."""
  labels = _labels(signals, proxies)
  options = {"score": score, "centre": centre, "ddof": ddof, "fixed": False}
  out = fit_references(signals, target, member=False, **options)
  inside = fit_references(signals, target, member=True, **options)
  gap = inside.centre - out.centre
  values = signals.statistic(score)
  chosen = signals.references(target) & signals.members
  median = centre == "median"

  def borrow(rows):
    return _borrow(values[:, rows], chosen[:, rows], gap[rows], median, ddof)

  records, queries = gap.shape
  of_class = Proxies(np.zeros(records, int), *np.full((3, records, queries), np.nan))
  for label in np.unique(labels[signals.audited]):
    rows = np.flatnonzero(signals.audited & (labels == label))
    for array, part in zip(of_class, borrow(rows), strict=True):
      array[rows] = part
  lacking = (of_class.count < _FEWEST) | np.isnan(of_class.gap).any(1)
  thin = signals.audited & lacking
  if thin.any() and proxies == "class":
    rows = np.flatnonzero(signals.audited)
    for array, part in zip(of_class, borrow(rows), strict=True):
      array[thin] = part[thin[rows]]
  if not of_class.count.any():
    raise Unavailable(
      "pmia needs references that trained on other audited records: train more models"
    )
  return out, of_class, thin


def _labels(signals: Signals, proxies: str) -> np.ndarray:
  """Return labels [N] such that records of one label are proxies of each other."""
  if proxies == "global":
    return np.zeros(signals.members.shape[1], int)
  if signals.labels is None:
    raise Unavailable(
      "pmia needs labels to choose proxies of the same class: pass labels=, or "
      "proxies='global'"
    )
  return signals.labels


def _spread(out: Gaussians, signals: Signals, proxies: str) -> np.ndarray:
  """Return the variance [N, Q] of the `shift` level."""
  if out.count[signals.audited].mean() >= _OWN_SPREAD:
    return out.variance
  labels = _labels(signals, proxies)
  variance = out.variance.copy()
  for label in np.unique(labels[signals.audited]):
    rows = signals.audited & (labels == label)
    varied = rows & (out.count > 1)
    variance[rows] = out.variance[varied].mean(0) if varied.any() else out.pooled
  return variance


def _borrow(
  values: np.ndarray, chosen: np.ndarray, gap: np.ndarray, median: bool, ddof: int
) -> Proxies:
  """Return what each of R records borrows from the R - 1 others, exactly.

  Args:
    values: [S, R, Q].
    chosen: bool [S, R], models that trained on a record.
    gap: [R, Q], centre in minus centre out of each record, NaN if either is missing.
    median: whether the centre is the median.
    ddof: 0 or 1.
  """
  own = chosen.sum(0)
  count = own.sum() - own
  shape = values.shape[1:]
  centre, variance = np.full(shape, np.nan), np.full(shape, np.nan)
  for query in range(values.shape[2]):
    x = values[:, :, query]
    origin = x[chosen].mean() if own.any() else 0.0
    shifted = np.where(chosen, x - origin, 0.0)
    total, squares = shifted.sum(0), (shifted**2).sum(0)
    mean = (total.sum() - total) / np.maximum(count, 1)
    left = np.maximum(squares.sum() - squares - count * mean**2, 0.0)
    middle = _median_without(x, chosen) if median else origin + mean
    centre[:, query] = np.where(count > 0, middle, np.nan)
    variance[:, query] = left / np.maximum(count - ddof, 1)
  known = ~np.isnan(gap)
  lent = np.where(known, gap, 0.0)
  lenders = known.sum(0) - known
  shift = (lent.sum(0) - lent) / np.where(lenders > 0, lenders, np.nan)
  return Proxies(count, centre, variance, shift)


def _median_without(x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Return the median of all chosen values but the record's own, for each record.

  With p_0 < p_1 < ... the places of a record's values among all n sorted values, the
  m-th of the others is at place m + #{i: p_i - i <= m}.

  Args:
    x: [S, R].
    chosen: bool [S, R].

  Returns:
    [R]; 0 where no value is left.
  """
  values = x[chosen]
  order = values.argsort(kind="stable")
  ranked = values[order]
  never = 2 * x.size  # past every place
  place = np.full(x.shape, never)
  ranks = np.empty_like(order)
  ranks[order] = np.arange(len(order))
  place[chosen] = ranks
  before = np.sort(place, axis=0) - np.arange(len(x))[:, None]
  left = len(values) - chosen.sum(0)

  def nth(m):
    found = m + (before <= m).sum(0)
    return ranked[np.clip(found, 0, len(ranked) - 1)] if len(ranked) else 0.0 * found

  low, high = nth(np.maximum(left - 1, 0) // 2), nth(left // 2)
  return np.where(left > 0, (low + high) / 2, 0.0)

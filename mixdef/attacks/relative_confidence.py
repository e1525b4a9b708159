"""Probability ratios: the target's confidence in a label over that of its references.

    r(x) = p(x | theta) / p(x),   p(x | theta) = p_y of the target

`rmia` and `base` average p_y over reference models to get p(x), as `mode` selects:
  "online": all references, with the record and without.
  "offline": the references without the record; a correction stands in for the others.

Each record is averaged over its own number of references, in log space. A record that
every reference trained on has no score (NaN).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixdef.attacks import _designs
from mixdef.attacks._moments import grouped
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, number, one_of
from mixdef.core.registry import attack
from mixdef.metrics.roc import Roc


@attack(family="reference", reads="signals")
@checked(
  mode=one_of("online", "offline"),
  a=number(0, 1),
  gamma=number(above=0),
  score=one_of("probability", "ratio"),
)
def rmia(
  signals: Signals,
  *,
  target: int,
  mode: str = "online",
  a: float = 0.3,
  gamma: float = 2.0,
  score: str = "probability",
) -> np.ndarray:
  """Score by the fraction of population records that the record dominates.

      score(x) = Pr_z[LR(x, z) >= gamma],   LR(x, z) = r(x) / r(z)
      online:  p(x) = mean of p_y over all references
      offline: p(x) = [(1 + a) pbar_out(x) + (1 - a)]/2

  The offline form sets pbar_in = a pbar_out + (1 - a) for the references with x. For
  one target the score never decreases in r(x): the population and gamma only make it
  coarser, but they put the scores of several targets on one scale.

  p(z) follows the same rule as p(x), over the models that may be references of any
  record. None of them trained on z. Online, p(x) therefore has an in part that p(z)
  lacks, which lowers LR equally for members and non-members.

  Args:
    signals: signals with a population, unless score is "ratio".
    target: index of the attacked model.
    mode: "online" or "offline".
    a: in [0, 1], offline only; 0.3 in the authors' CIFAR-10 runs. `tune_offline_a`
      chooses it without using the target.
    gamma: > 0; 2 in the authors' first code, 1 in their later tool. A larger value ties
      fewer records at 1, a smaller one fewer at 0.
    score: "probability" as above, or "ratio" for log r(x), which has no ties and needs
      no population.

  Returns:
    Scores [N] in [0, 1], or in nats for "ratio"; NaN where no reference is out, or not
    audited.

  Raises:
    Unavailable: if score is "probability" and the signals have no population.
    ValueError: for an invalid option.

  Deviation: log r is averaged over views before records are compared. The authors' code
    takes a majority vote over views of LR > gamma, which needs every pair (x, z). It
    leaves out 20% of the models at either end of every average, uses a temperature of 2
    and Taylor and soft-margin variants of p, and takes the target's own non-members as
    the population; none of this is implemented. In the authors' later tool, p(z) is the
    mean over the half of the references that are most confident in z.

  Reference: Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference
    Attacks", 2024, arXiv 2312.03262.

  >>> phi = np.log([[9.0], [1.0]])  # p = .9 and .5
  >>> signals = Signals.from_phi(phi, [[True], [False]])
  >>> r = np.exp(rmia(signals, target=0, mode="offline", score="ratio"))
  >>> r.round(6)
  array([1.333333])
  """
  share = 1.0 if mode == "online" else (1 + a) / 2
  references = _of_references(signals, target, mode)
  ratio = _log_ratio(signals.loss[target], references, share)
  if score == "probability":
    population = signals.population
    if population is None:
      raise Unavailable(
        "rmia needs records on which no model was trained: pass population=, or "
        "score='ratio' to rank without them"
      )
    everyone = _of_population(signals, population.loss, target, mode)
    ratio_z = np.sort(_log_ratio(population.loss[target], everyone, share))
    dominated = np.searchsorted(ratio_z, ratio - np.log(gamma), side="right")
    ratio = np.where(np.isnan(ratio), np.nan, dominated / len(ratio_z))
  return signals.only_audited(ratio)


def tune_offline_a(
  signals: Signals,
  *,
  target: int,
  pseudo_target: int | None = None,
  grid: Sequence[float] = tuple(np.linspace(0, 1, 11).tolist()),
) -> float:
  """Choose `a` of offline `rmia` by attacking a reference model.

  The pseudo-target is attacked in the same way as the target will be. Only its own
  outputs and membership are evaluated, and the target is not among its references. The
  AUC is that of r(x), which the population only makes coarser.

  Args:
    signals: any signals.
    target: index of the model to be attacked later; none of its data is read.
    pseudo_target: index of the model attacked here; default (target + 1) mod S.
    grid: values of `a` to try, each in [0, 1].

  Returns:
    The value with the highest AUC; the first of equally good ones.

  Raises:
    ValueError: if the pseudo-target is the target or has only members or only
      non-members, or the grid is empty or out of range.

  >>> rng = np.random.default_rng(0)
  >>> members = rng.random((8, 200)) < .5
  >>> phi = rng.normal(size=(8, 200)) + 2 * members + 3 * rng.normal(size=200)
  >>> 0 <= tune_offline_a(Signals.from_phi(phi, members), target=0) <= 1
  True
  """
  pseudo = (target + 1) % len(signals.phi) if pseudo_target is None else pseudo_target
  signals.check_model("target", target)
  signals.check_model("pseudo_target", pseudo)
  if pseudo == target:
    raise ValueError(f"pseudo_target={pseudo} is the target; name another model")
  if len(grid) == 0 or not all(0 <= a <= 1 for a in grid):
    raise ValueError(f"grid={grid}; pass values in [0, 1]")
  others = np.delete(np.arange(len(signals.phi)), target)
  members, audited = signals.members[others], signals.audited
  position = int(np.flatnonzero(others == pseudo)[0])
  out = ~members & _designs.references(
    members, position, audited=audited, design=signals.design
  )
  scored = audited & out.any(0)
  member = members[position, scored]
  if member.all() or not member.any():
    raise ValueError(
      f"pseudo_target={pseudo} has only members or only non-members; name another"
    )
  loss = signals.loss[others][:, scored]
  references = confidences(loss, out[:, scored])
  areas = []
  for a in grid:
    ratio = _log_ratio(loss[position], references, (1 + a) / 2)
    areas.append(Roc.of(ratio, member).auc)
  return float(grid[int(np.argmax(areas))])


@attack(family="reference", reads="signals")
@checked(mode=one_of("online", "offline"), s=number(0, 1))
def base(
  signals: Signals, *, target: int, mode: str = "online", s: float = 0.33
) -> np.ndarray:
  """Score by the Bayes-approximate ratio of the target to its references.

      online:  log p(x | theta) - log mean_k p_y(x | theta_k), all references k
      offline: log p(x | theta) - s log mean_k p_y(x | theta_k), k without x

  Online, this is log r of `rmia`. Offline with s = 1 it is log r of `rmia` at a = 1.

  Args:
    signals: any signals.
    target: index of the attacked model.
    mode: "online" or "offline".
    s: in [0, 1], offline only; 0.33 in public code.

  Returns:
    Scores [N] in nats, mean over views; NaN where no reference is out, or not audited.

  Raises:
    ValueError: for an invalid option.

  Deviation: public code, in LeakPro, divides all logits by a temperature of 2. Signals
    keep p_y, not the logits of every view, so the temperature is 1; signals of halved
    logits give the scores of that code.

  Reference: Lassila et al., "Practical Bayes-Optimal Membership Inference Attacks",
    2025, arXiv 2505.24089.

  >>> phi = np.log(np.array([[.9, .5, .6, .4]]).T) - np.log([[.1], [.5], [.4], [.6]])
  >>> signals = Signals.from_phi(phi, np.zeros((4, 1), dtype=bool))
  >>> base(signals, target=0).round(6)
  array([0.587787])
  >>> base(signals, target=0, mode="offline").round(6)
  array([0.123378])
  """
  weight = 1.0 if mode == "online" else s
  average = _of_references(signals, target, mode).log_mean()
  ratio = -signals.loss[target] - weight * average
  return signals.only_audited(ratio.mean(1))


class Confidences(NamedTuple):
  """Sums of the confidences exp(-loss) of models, per record.

  Confidences near 1 keep the precision of their losses, and losses may be of any size.

  Attributes:
    count: int [N, 1], the number of models.
    least: [N, Q], their smallest loss in nats; inf where count is 0.
    excess: [N, Q], the sum of exp(least - loss) - 1.
  """

  count: np.ndarray
  least: np.ndarray
  excess: np.ndarray

  def log_mean(self) -> np.ndarray:
    """Return the log of the mean confidence [N, Q]; NaN where count is 0."""
    some = self.count > 0
    mean = np.log1p(np.where(some, self.excess, 0) / np.maximum(self.count, 1))
    return np.where(some, mean - self.least, np.nan)


def confidences(loss: np.ndarray, chosen: np.ndarray) -> Confidences:
  """Sum the confidences of the chosen models of each record.

  Args:
    loss: [S, N, Q] in nats.
    chosen: bool [S, N].

  >>> loss = np.array([1e-30, 3e-30, 2000.])[:, None, None]
  >>> confidences(loss, np.array([[True], [True], [False]])).log_mean()
  array([[-2.e-30]])
  """
  least = np.full(loss.shape[1:], np.inf)
  for values, use in zip(loss, chosen, strict=True):
    least = np.where(use[:, None], np.minimum(least, values), least)
  excess = np.zeros(loss.shape[1:])
  for values, use in zip(loss, chosen, strict=True):
    excess += np.expm1(np.where(use[:, None], least - values, 0.0))
  return Confidences(chosen.sum(0)[:, None], least, excess)


def _together(parts: Sequence[Confidences]) -> Confidences:
  """Return the sums over the models of several sums."""
  least = np.min([part.least for part in parts], axis=0)
  count, excess = 0, np.zeros_like(least)
  for part in parts:
    apart = np.zeros_like(least)
    np.subtract(least, part.least, out=apart, where=part.count > 0)
    excess += part.excess * np.exp(apart) + part.count * np.expm1(apart)
    count = count + part.count
  return Confidences(np.asarray(count), least, excess)


def _of_references(signals: Signals, target: int, mode: str) -> Confidences:
  """Return the sums over the references; none where no reference is out."""

  def of_side(member: bool) -> Confidences:
    side = signals.members == member
    return grouped(
      signals,
      target,
      f"confidences {member}",
      lambda models, usable: confidences(signals.loss[models], usable & side[models]),
      _together,
    )

  out = of_side(False)
  if mode == "offline":
    return out
  every = _together([out, of_side(True)])
  return every._replace(count=np.where(out.count > 0, every.count, 0))


def _of_population(
  signals: Signals, loss: np.ndarray, target: int, mode: str
) -> Confidences:
  """Return the sums over the models that are references of any audited record.

  Offline, a model counts if some audited record is not among its members.
  """
  side = ~signals.members[:, signals.audited]
  side |= mode == "online"

  def of_models(models: slice, usable: np.ndarray) -> Confidences:
    if usable.shape[1] > 1:
      usable = usable[:, signals.audited]
    able = np.asarray((usable & side[models]).any(1))
    return confidences(loss[models], np.repeat(able[:, None], loss.shape[1], 1))

  return grouped(signals, target, f"population {mode}", of_models, _together)


def _log_ratio(loss: np.ndarray, references: Confidences, share: float) -> np.ndarray:
  """Return log p(x | theta) - log p(x) [N], p(x) = share * pbar + (1 - share)."""
  average = references.log_mean()
  if share < 1:
    average = np.log1p(share * np.expm1(average))
  return (-loss - average).mean(1)

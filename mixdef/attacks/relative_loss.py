"""The target's loss on a record, relative to other records or to other models.

Losses are compared through phi, which decreases as the loss grows and does not round to
0 for a record on which a model is nearly certain.
"""

import numpy as np

from mixdef.attacks._moments import of_references
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.registry import attack

_BLOCK = 2**18  # elements that are sorted at once


@attack(family="reference", reads="signals")
def attack_p(signals: Signals, *, target: int) -> np.ndarray:
  """Score by the fraction of non-members whose loss on the target is at least as high.

      Pr_z[l(theta, z) >= l(theta, x)], z in the population (query 0)

  It ranks as `loss_threshold`, but more coarsely, and puts targets on one scale.

  Args:
    signals: signals with a population.
    target: index of the attacked model.

  Returns:
    Scores [N] in [0, 1]; NaN where not audited.

  Raises:
    Unavailable: if the signals have no population.

  Reference: Ye, Maddi, Murakonda, Bindschaedler, Shokri, "Enhanced Membership Inference
    Attacks against Machine Learning Models", 2022, arXiv 2111.09679.

  >>> hard = -np.log(np.expm1([1., 2., 3., 4.]))  # phi of these losses
  >>> signals = Signals.from_phi([hard[1:2]], [[True]], population=[hard])
  >>> attack_p(signals, target=0)
  array([0.75])
  """
  signals.check_model("target", target)
  if signals.population is None:
    raise Unavailable(
      "attack_p needs records on which no model was trained: pass population="
    )
  elsewhere = np.sort(signals.population.phi[target, :, 0])
  harder = np.searchsorted(elsewhere, signals.phi[target, :, 0], side="right")
  return signals.only_audited(harder / len(elsewhere))


@attack(family="reference", reads="signals")
def attack_r(signals: Signals, *, target: int) -> np.ndarray:
  """Score by the fraction of references whose loss on the record is at least as high.

      Pr_k[l(theta_k, x) >= l(theta, x)], k without x (query 0)

  Args:
    signals: signals of S >= 2 models; only models without the record are read.
    target: index of the attacked model.

  Returns:
    Scores [N] in [0, 1], one of n_out + 1 values; NaN where no reference is out, or not
    audited.

  Deviation: the authors' code interpolates between the references' losses with 0 and
    1000 added as end points, so that it cannot rank losses above 1000; here nothing is
    interpolated, and records can tie.

  Reference: Ye, Maddi, Murakonda, Bindschaedler, Shokri, "Enhanced Membership Inference
    Attacks against Machine Learning Models", 2022, arXiv 2111.09679.

  >>> losses = np.array([[2., 1., 2., 3., 4.]]).T
  >>> signals = Signals.from_phi(-np.log(np.expm1(losses)), np.zeros((5, 1)) > 0)
  >>> attack_r(signals, target=0)
  array([0.75])
  """
  signals.check_model("target", target)
  count, harder = _counts(signals, target)
  harder = harder / np.maximum(count, 1)
  return signals.only_audited(np.where(count > 0, harder, np.nan))


@attack(family="reference", reads="signals")
def calibrated_loss(signals: Signals, *, target: int) -> np.ndarray:
  """Score by the mean loss of the references minus the loss of the target.

      mean_k l(theta_k, x) - l(theta, x), k without x (query 0)

  Args:
    signals: signals of S >= 2 models; only models without the record are read.
    target: index of the attacked model.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.

  Deviation: with several reference models, the official code sums the differences by
    default; here they are averaged.

  Reference: Watson, Guo, Cormode, Sablayrolles, "On the Importance of Difficulty
    Calibration in Membership Inference Attacks", 2022, arXiv 2111.08440.

  >>> losses = np.array([[.5, 1., 2., 3.]]).T
  >>> signals = Signals.from_phi(-np.log(np.expm1(losses)), np.zeros((4, 1)) > 0)
  >>> calibrated_loss(signals, target=0)
  array([1.5])
  """
  signals.check_model("target", target)
  count, mean, _ = of_references(signals, target, member=False, score="loss")
  easier = mean[:, 0] - signals.loss[target, :, 0]
  return signals.only_audited(np.where(count[:, 0] > 0, easier, np.nan))


def _counts(signals: Signals, target: int) -> tuple[np.ndarray, np.ndarray]:
  """Count the references out of each record, and those of at least the target's loss.

  Counts are exact, so that they may be taken from counts over all models.
  """
  phi, out = signals.phi[:, :, 0], ~signals.members
  excluded = signals.excluded_models(target)
  if excluded is None:
    out = out & signals.references(target)
    return out.sum(0), (out & (phi <= phi[target])).sum(0)
  harder = signals.once("models of at least the loss", lambda: _at_most(phi, out))
  gone = out[excluded]
  return (
    out.sum(0) - gone.sum(0),
    harder[target] - (gone & (phi[excluded] <= phi[target])).sum(0),
  )


def _at_most(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Count the chosen models whose value is at most that of each model.

  Args:
    values: [S, N].
    chosen: bool [S, N].

  Returns:
    int32 [S, N].

  >>> _at_most(np.array([[3.], [1.], [3.]]), np.array([[True], [True], [False]])).T
  array([[2, 1, 2]], dtype=int32)
  """
  counts = np.empty(values.shape, np.int32)
  for rows in np.array_split(np.arange(values.shape[1]), -(-values.size // _BLOCK)):
    x = values[:, rows]
    order = x.argsort(0, kind="stable")
    ranked = np.take_along_axis(x, order, 0)
    below = np.take_along_axis(chosen[:, rows], order, 0).cumsum(0, dtype=np.int32)
    for place in range(len(x) - 2, -1, -1):  # equal values share the last one's count
      same = ranked[place] == ranked[place + 1]
      below[place, same] = below[place + 1, same]
    found = np.empty_like(below)
    np.put_along_axis(found, order, below, 0)
    counts[:, rows] = found
  return counts

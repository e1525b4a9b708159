"""The target's loss on a record, relative to other records or to other models.

Losses are compared through phi, which decreases as the loss grows and does not round to
0 for a record on which a model is nearly certain.
"""

import numpy as np

from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.registry import attack


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
  phi = signals.phi[:, :, 0]
  return _mean_over_out(signals, target, phi <= phi[target])


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
  loss = signals.loss[:, :, 0]
  return _mean_over_out(signals, target, loss) - loss[target]


def _mean_over_out(signals: Signals, target: int, values: np.ndarray) -> np.ndarray:
  """Return the mean of values [S, N] over the references without each record."""
  out = signals.references(target) & ~signals.members
  count = out.sum(0)
  mean = np.where(out, values, 0.0).sum(0) / np.maximum(count, 1)
  return signals.only_audited(np.where(count > 0, mean, np.nan))

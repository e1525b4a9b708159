"""LiRA with a calibrated p-value for every record.

At one threshold on a likelihood ratio, every record has another false-positive rate.
Here the score of a record is the surprise -log p of a t test against the models that
did not train on it, so one threshold means the same rate for all.
"""

import numpy as np

from mixdef.attacks._gaussians import Gaussians, fit_references
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, one_of
from mixdef.core.registry import attack


@attack(family="reference", reads="signals")
@checked(form=one_of("offline", "online"), score=one_of("phi", "hinge"))
def lira_calibrated(
  signals: Signals, *, target: int, form: str = "offline", score: str = "phi"
) -> np.ndarray:
  """Score by -log p of a t test against the models without the record.

      T = (phi - m_out) / (s_out sqrt(1 + 1/n_out)),   p = Pr[t_{n_out - 1} >= T]

  phi is the mean over views; m_out and s_out (with n_out - 1 in the variance) are those
  of the n_out models out. For normal phi, p is uniform on non-members. The normal tail
  of z in place of t is too small: with 16 models out, a nominal 1% is really 2%.

  The online form tests sign(mu_in - m_out) T. With equal variances, the log-likelihood
  ratio of a given record is an increasing function of it.

  Args:
    signals: signals of S models, with two or more out of a record.
    target: index of the attacked model.
    form: "offline" or "online".
    score: "phi" or "hinge".

  Returns:
    Scores [N] in nats, p = exp(-score); NaN where fewer than two models are out, or not
    audited.

  Raises:
    Unavailable: if no record has two models out.

  Deviation: only the abstract was available; it reports that false-positive rates
    differ between records at a pooled threshold. The formulas are ours [ours]. s_out
    has the floor of `lira_online`. A record without models in is tested as offline.

  Reference: per-record calibration of membership inference, 2026, arXiv 2605.25819
    (abstract).

  >>> phi = np.array([[2.5, 0, 1, -1, 0]]).T
  >>> signals = Signals.from_phi(phi, np.zeros((5, 1), dtype=bool))
  >>> np.exp(-lira_calibrated(signals, target=0)).round(6)
  array([0.035711])
  """
  options = {"score": score, "centre": "mean", "ddof": 1, "fixed": False}
  out = fit_references(signals, target, member=False, averaged=True, **options)
  if not (out.count[signals.audited] > 1).any():
    raise Unavailable(
      "lira_calibrated needs two reference models without a record: train more models"
    )
  statistic = t_statistic(out, signals.statistic(score)[target].mean(1))
  if form == "online":
    inside = fit_references(signals, target, member=True, averaged=True, **options)
    gap = (inside.centre - out.centre)[:, 0]
    statistic = np.where(gap < 0, -statistic, statistic)
  return signals.only_audited(surprise(statistic, out.count - 1))


def t_statistic(out: Gaussians, values: np.ndarray) -> np.ndarray:
  """Return T [N] of values [N] against fits of one query, with ddof 1.

  It is NaN where fewer than two models are out.
  """
  count = np.where(out.count > 1, out.count, np.nan)
  return out.z(values[:, None])[:, 0] / np.sqrt(1 + 1 / count)


def surprise(statistic: np.ndarray, freedom: np.ndarray) -> np.ndarray:
  """Return -log Pr[t >= statistic], in nats, accurate in both tails.

  Args:
    statistic: [N]; NaN stays NaN.
    freedom: degrees of freedom [N]; only read where the statistic is not NaN.

  >>> surprise(np.array([2.5, 1e30]), np.array([3, 100])).round(3).tolist()
  [3.127, 6680.721]
  """
  from scipy.special import betaln, hyp2f1, stdtr

  freedom = np.maximum(freedom, 1).astype(np.float64)
  share = 1 / (1 + statistic**2 / freedom)
  far = (statistic > 0) & (share < 0.5)
  low = np.where(far, share, 0.5)
  half = freedom / 2
  # The incomplete beta function as a series, whose logarithm does not underflow.
  series = half * np.log(low) + 0.5 * np.log1p(-low) - np.log(2 * half)
  series += np.log(hyp2f1(half + 0.5, 1.0, half + 1, low)) - betaln(half, 0.5)
  near = stdtr(freedom, np.where(far, 0.0, -np.abs(statistic)))
  above = statistic > 0
  left = np.where(above, near, 1 - near)
  return np.where(far, -series, np.where(above, -np.log(left), -np.log1p(-near)))

"""Bayesian likelihood ratio that borrows strength across records.

The outputs of the references that trained on record i, and of those that did not, are
each draws from a Gaussian whose mean and variance have a normal-inverse-gamma prior:

    s^2 ~ InvGamma(a0, b0),   mu | s^2 ~ N(mu0, s^2/k0)

The target's output is evaluated under the predictive distribution of either side, so
the attack works with any number of references.
"""

from typing import NamedTuple

import numpy as np

from mixdef.attacks._moments import Moments, of_references
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, one_of
from mixdef.core.registry import attack

_CEILING = 1e3
"""Largest k0 and a0 - 2 that are fitted; beyond this, records barely differ."""


class NormalInverseGamma(NamedTuple):
  """Distribution of the mean and variance of a Gaussian; fields broadcast to [N, Q].

  Attributes:
    mean: mu, in units of phi.
    count: k > 0, the number of observations that the mean is worth.
    shape: a > 0, half the number of observations that the variance is worth.
    rate: b > 0, in squared units of phi; the variance is b/(a - 1) on average.
  """

  mean: np.ndarray
  count: np.ndarray
  shape: np.ndarray
  rate: np.ndarray

  def observe(self, side: Moments) -> "NormalInverseGamma":
    """Return the posterior after n values with mean m and sum of squares SS.

    k = k0 + n,   mu = (k0 mu0 + n m)/k,   a = a0 + n/2
    b = b0 + SS/2 + k0 n (m - mu0)^2/(2k)
    """
    n, mean, squares = side
    count = self.count + n
    shift = mean - self.mean
    return NormalInverseGamma(
      mean=self.mean + n * shift / count,
      count=count,
      shape=self.shape + n / 2,
      rate=self.rate + squares / 2 + self.count * n * shift**2 / (2 * count),
    )

  def log_predictive(self, values: np.ndarray) -> np.ndarray:
    """Return the log density of the next value.

    This is Student's t with 2a degrees of freedom, centre mu and squared scale b (k +
    1)/(a k).
    """
    from scipy.special import gammaln

    a = self.shape
    spread = 2 * self.rate * (self.count + 1) / self.count
    tail = (a + 0.5) * np.log1p((values - self.mean) ** 2 / spread)
    return gammaln(a + 0.5) - gammaln(a) - 0.5 * np.log(np.pi * spread) - tail

  def log_normal(self, values: np.ndarray, *, widened: bool = False) -> np.ndarray:
    """Return the log density of N(mu, b/(a - 1)), for a > 1.

    Args:
      values: broadcasts with the fields.
      widened: whether to multiply the variance by (k + 1)/k, which makes it that of the
        next value.
    """
    variance = self.rate / (self.shape - 1)
    if widened:
      variance = variance * (self.count + 1) / self.count
    return -0.5 * (np.log(2 * np.pi * variance) + (values - self.mean) ** 2 / variance)


@attack(family="reference", reads="signals")
@checked(score=one_of("phi", "hinge"), form=one_of("t", "n", "n_widened"))
def bavaria(
  signals: Signals, *, target: int, score: str = "phi", form: str = "t"
) -> np.ndarray:
  """Score by the log ratio of two predictive densities.

      log t(phi; after the in references) - log t(phi; after the out references)

  Each side and view has its own prior, fitted to the audited records. A record without
  references on one side is scored by that side's prior alone. Unlike LiRA, the attack
  needs no switch between per-record and pooled variances when models are few.

  Args:
    signals: signals of S >= 2 models.
    target: index of the attacked model.
    score: "phi" or "hinge".
    form: "t", Student's t, the predictive distribution; "n", a Gaussian with the
      posterior means of mean and variance; or "n_widened", the same with the variance
      of the next value, (k + 1)/k as large.

  Returns:
    Scores [N] in nats, mean over views; NaN where no reference is left, or not audited.

  Raises:
    Unavailable: if no model can be a reference.
    ValueError: for an unknown score or form.

  Deviation: the paper's abstract names a form with Student's t and one with a Gaussian
    of stabilized variance. The formulas here are the textbook conjugate posterior and
    the prior is fitted by moments (`fit_prior`); neither is taken from the paper, so
    its results may differ [ours].

  Reference: Brännvall, "Exponential-Family Membership Inference: From LiRA and RMIA to
    BaVarIA", 2026, arXiv 2603.11799.

  >>> rng = np.random.default_rng(0)
  >>> members = rng.random((6, 500)) < .5
  >>> phi = rng.normal(size=(6, 500)) + 2 * members + 3 * rng.normal(size=500)
  >>> scores = bavaria(Signals.from_phi(phi, members), target=0)
  >>> bool(np.median(scores[members[0]]) > 0 > np.median(scores[~members[0]]))
  True
  """
  audited = signals.audited
  out = of_references(signals, target, member=False, score=score)
  inside = of_references(signals, target, member=True, score=score)
  prior_out = fit_prior(out, audited)
  spare = 1.0 if prior_out is None else prior_out.rate / (prior_out.shape - 1)
  prior_in = fit_prior(inside, audited, spare=spare) or prior_out
  prior_out = prior_out or prior_in
  if prior_in is None or prior_out is None:
    raise Unavailable("needs reference models: train more models")
  values = signals.statistic(score)[target]
  ratio = _log_density(prior_in.observe(inside), values, form)
  ratio -= _log_density(prior_out.observe(out), values, form)
  ratio[(out.count + inside.count)[:, 0] == 0] = np.nan
  return signals.only_audited(ratio.mean(1))


def _log_density(
  posterior: NormalInverseGamma, values: np.ndarray, form: str
) -> np.ndarray:
  if form == "t":
    return posterior.log_predictive(values)
  return posterior.log_normal(values, widened=form == "n_widened")


def fit_prior(
  side: Moments, rows: np.ndarray, *, spare: float | np.ndarray = 1.0
) -> NormalInverseGamma | None:
  """Match the prior of one side to the spread of its records, by moments.

  With m_i and v_i the mean and the unbiased variance of record i's n_i outputs:

      mu0 = mean m_i,   V = mean v_i,   c = mean 2/(n_i - 1)
      b0/(a0 - 1) = V
      V^2/(a0 - 2) = D = (Var v_i - c V^2)/(1 + c)
      V/k0 = Var m_i - V mean 1/n_i

  The subtracted terms remove the spread that a finite n_i adds. k0 and a0 - 2 are at
  most 1000.

  Args:
    side: moments of N records.
    rows: bool [N], the records to fit.
    spare: variance, scalar or [Q], used where V is 0 or no record has two outputs.

  Returns:
    The prior with fields [Q], or None if the rows have no outputs at all.
  """
  seen = rows & (side.count[:, 0] > 0)
  varied = rows & (side.count[:, 0] > 1)
  if not seen.any():
    return None
  mean = side.mean[seen]
  variance, extra = np.zeros(mean.shape[1]), np.zeros(mean.shape[1])
  if varied.any():
    freedom = side.count[varied] - 1
    own = side.squares[varied] / freedom
    variance, share = own.mean(0), (2 / freedom).mean()
    extra = (own.var(0) - share * variance**2) / (1 + share)
  variance = np.where(variance > 0, variance, spare)
  extra = np.maximum(extra, variance**2 / _CEILING)
  between = mean.var(0) - variance * (1 / side.count[seen]).mean()
  shape = 2 + variance**2 / extra
  return NormalInverseGamma(
    mean=mean.mean(0),
    count=variance / np.maximum(between, variance / _CEILING),
    shape=shape,
    rate=variance * (shape - 1),
  )

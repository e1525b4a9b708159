"""DOMIAS: the density of a generator's samples relative to that of other records."""

import math

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._querying import records_to_query
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.gan._distances import tiles
from mixdef.attacks.gan._principal_components import principal_components
from mixdef.attacks.gan._sampling import samples
from mixdef.core.check import checked, count, number, one_of, optional, seed
from mixdef.core.registry import attack
from mixdef.training import Ensemble


@attack(family="generator", reads="models", of="generators")
@checked(
  num_samples=count(),
  prior=one_of("kde", "gaussian"),
  bandwidth=optional(number(above=0)),
  components=count(),
  seed=seed,
)
def domias(
  ensemble: Ensemble,
  *,
  target: int,
  records: ArrayLike | None = None,
  auxiliary: ArrayLike | None = None,
  num_samples: int = 20_000,
  prior: str = "kde",
  bandwidth: float | None = None,
  components: int = 10,
  seed: int = 0,
) -> np.ndarray:
  """Score a record by the log ratio of two densities: of samples, and of other records.

      score = log p_G(x) - log p_R(x)

  A generator that overfits has a higher density at its members than the data have. Both
  densities are kernel density estimates on the principal components of the auxiliary
  records, scaled to a variance of 1, with Gaussian kernels of standard deviation h.

  Args:
    ensemble: S trained GANs.
    target: index of the attacked model.
    records: int [R], the records to attack; default all audited ones.
    auxiliary: [M,...] records of the defender, like the data's, that no model trained
      on; default the held-out records.
    num_samples: number of samples of the target, at least 1.
    prior: p_R is a "kde" of the auxiliary records, or the "gaussian" of their mean and
      covariance.
    bandwidth: h > 0; None uses Scott's rule M^(-1/(C+4)), for M points of C components.
    components: C >= 1; fewer are used where the auxiliary records vary in fewer
      directions. With many components, kernel estimates see little beyond a Gaussian.
    seed: random seed of the samples, which all records share.

  Returns:
    Scores float64 [N]; NaN where not attacked.

  Raises:
    Unavailable: if there are no auxiliary records.
    ValueError: for an option out of range, or a model that is not a generator.

  Deviation: the logarithm of the official p_G / (p_R + 1e-10), which is 0 / 1e-10 for
    records far from everything. There each kernel density uses the covariance of its
    own points; here both use the covariance of the auxiliary records because that of a
    collapsed generator's samples is not invertible. The authors' neural density (BNAF)
    is not implemented.

  Reference: van Breugel, Sun, Qian, van der Schaar, "Membership Inference Attacks
    against Synthetic Data through Overfitting Detection", 2023, arXiv 2302.12580.
  """
  rows, data = records_to_query(ensemble, target, records), ensemble.data
  if auxiliary is None:
    if data.test is None:
      raise Unavailable(
        "domias needs records on which no model was trained: pass reference=, or hold "
        "out records with data.hold_out()"
      )
    auxiliary = data.test.x
  others = np.asarray(auxiliary)
  if others.shape[1:] != data.x.shape[1:] or others.dtype != data.x.dtype:
    raise ValueError(
      f"records are {data.x.shape[1:]} {data.x.dtype}, reference {others.shape[1:]} "
      f"{others.dtype}: preprocess both in the same way"
    )
  space = principal_components(others, components)
  made, _ = samples(ensemble[target], num_samples, seed=seed)
  x, made, others = (
    space(each) / space.spread for each in (data.x[rows], made, others)
  )
  if prior == "gaussian":
    # In this space the auxiliary records have mean 0 and covariance I.
    usual = -0.5 * ((x**2).sum(1) + x.shape[1] * math.log(2 * math.pi))
  else:
    usual = log_density(x, others, bandwidth)
  scores = np.full(len(data), np.nan)
  scores[rows] = log_density(x, made, bandwidth) - usual
  return scores


def log_density(
  x: np.ndarray, points: np.ndarray, bandwidth: float | None = None
) -> np.ndarray:
  """Return the log density [R] at x [R,C] of Gaussian kernels at points [M,C].

  Args:
    x: where to evaluate the density.
    points: the kernels' centres.
    bandwidth: their standard deviation; None uses Scott's rule M^(-1/(C+4)).

  >>> log_density(np.zeros((1, 1)), np.zeros((1, 1)), 1.0)
  array([-0.91893853])
  """
  count, size = points.shape
  h = count ** (-1 / (size + 4)) if bandwidth is None else bandwidth
  total = np.full(len(x), -np.inf)
  for rows, _, squares in tiles(x, points):
    squares *= -0.5 / h**2
    most = squares.max(1, keepdims=True)
    inner = np.log(np.exp(squares - most).sum(1)) + most[:, 0]
    total[rows] = np.logaddexp(total[rows], inner)
  return total - math.log(count) - 0.5 * size * math.log(2 * math.pi * h**2)

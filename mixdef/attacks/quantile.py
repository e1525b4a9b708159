"""Quantile regression of the target's outputs on records that no model trained on."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._gaussians import FLOOR
from mixdef.attacks._per_record import refuse
from mixdef.attacks._targets import Unavailable
from mixdef.attacks.signals import Signals
from mixdef.core.check import checked, number, one_of
from mixdef.core.registry import attack

_STEPS = 200
_LOWEST = 0.5 * np.log(FLOOR)  # of log sigma, in units of the population's std


@attack(family="reference", reads="signals")
@checked(
  head=one_of("gaussian", "pinball"),
  fpr=number(above=0, below=1),
  score=one_of("hinge", "phi"),
)
def quantile(
  signals: Signals,
  *,
  target: int,
  head: str = "gaussian",
  fpr: float = 0.01,
  score: str = "hinge",
  features: tuple[ArrayLike, ArrayLike] | None = None,
) -> np.ndarray:
  """Score a record by how far the target's output exceeds its predicted value.

  The target's outputs s on the population, which no model trained on and which is never
  scored, are regressed on features u of the records (query 0):

      gaussian: (mu, log sigma)(u) = argmin sum_z log sigma + (s - mu)^2/(2 sigma^2)
                score = (s - mu(x))/sigma(x)
      pinball:  q(u) = argmin sum_z max(t (s - q), (t - 1)(s - q)), t = 1 - fpr
                score = s - q(x), member iff positive

  mu, log sigma and q are linear in the features.

  Args:
    signals: signals with a population; of two models or more unless features are given.
    target: index of the attacked model.
    head: "gaussian" fits all quantiles at once; "pinball" fits one quantile and is
      meant to be thresholded at 0.
    fpr: false-positive rate in (0, 1) of the pinball quantile.
    score: "hinge" or "phi".
    features: u of the population [Z, D] and of the records [N, D], finite. The default
      is the label and the mean output of the references without the record. Pass
      one-hot labels for an attack without references, or embeddings of the records; D
      should be well below Z.

  Returns:
    Scores [N]; NaN where not audited, or where every reference trained on the record
    and the default features are used.

  Raises:
    Unavailable: without a population, without `hinge`, or if no reference is left.
    ValueError: for an invalid option.

  Deviation: the paper trains a network on the record itself, without references. Here
    the default features are the references' statistics of a record, and both heads are
    linear. A population record averages all references, an audited one only those
    without it, so with few models its expectation is noisier. The gaussian head has a
    penalty |weights|^2/2 in units of the population's spread, so that a class of one
    record does not fit itself, and its log sigma stays in the range seen on the
    population and above 1% of that spread.

  Reference: Bertran, Tang, Kearns, Morgenstern, Roth, Wu, "Scalable Membership
    Inference Attacks via Quantile Regression", 2023, arXiv 2307.03694.

  >>> rng = np.random.default_rng(0)
  >>> phi, members = rng.normal(size=(9, 50)), rng.random((9, 50)) < .5
  >>> unseen = rng.normal(size=(9, 2000))
  >>> signals = Signals.from_phi(phi + 2 * members, members, population=unseen)
  >>> scores = quantile(signals, target=0, score="phi")
  >>> bool(scores[members[0]].mean() > 1 > scores[~members[0]].mean())
  True
  """
  signals.check_model("target", target)
  population = signals.population
  if population is None:
    raise Unavailable(
      "quantile needs records on which no model was trained: pass population="
    )
  values = signals.statistic(score)[target, :, 0]
  unseen = population.statistic(score)[target, :, 0]
  if features is None:
    known, queried = _reference_features(signals, population, target, score)
  else:
    known, queried = _given_features(features, len(unseen), len(values))
  if head == "pinball":
    return signals.only_audited(values - _pinball(known, unseen, queried, 1 - fpr))
  mu, log_sigma = _gaussian(known, unseen, queried)
  return signals.only_audited((values - mu) * np.exp(-log_sigma))


def _reference_features(
  signals: Signals, population: Signals, target: int, score: str
) -> tuple[np.ndarray, np.ndarray]:
  """Return features [Z, D] of the population and [N, D] of the records.

  A record that every reference trained on gets NaN.
  """
  try:
    out = signals.references(target) & ~signals.members
  except Unavailable as error:
    raise Unavailable(f"{error}, or pass features=") from None
  models = out[:, signals.audited].any(1)
  if not models.any():
    raise Unavailable(
      "needs at least one reference model trained without the record: train more "
      "models, or pass features="
    )
  count = out.sum(0)
  records = np.where(out, signals.statistic(score)[:, :, 0], 0.0).sum(0)
  queried = np.where(count > 0, records / np.maximum(count, 1), np.nan)[:, None]
  known = population.statistic(score)[models, :, 0].mean(0)[:, None]
  known, queried = _standardise(known, queried)
  if signals.labels is None or population.labels is None:
    return known, queried
  classes = np.unique(population.labels)
  share = (population.labels[:, None] == classes).mean(0)
  return (
    np.hstack([known, (population.labels[:, None] == classes) - share]),
    np.hstack([queried, (signals.labels[:, None] == classes) - share]),
  )


def _given_features(
  features: tuple[ArrayLike, ArrayLike], unseen: int, records: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return the caller's features, standardized; raise an error if they are unusable."""
  known, queried = (np.asarray(part, dtype=np.float64) for part in features)
  for part, rows, name in (
    (known, unseen, "population"),
    (queried, records, "records"),
  ):
    if part.ndim != 2 or len(part) != rows or part.shape[1] != known.shape[-1]:
      raise ValueError(
        f"features of the {name} have shape {part.shape}; pass [{rows}, D], with one D "
        "for the population and the records"
      )
    refuse(f"features of the {name}", ~np.isfinite(part), "not finite", "impute them")
  return _standardise(known, queried)


def _standardise(
  known: np.ndarray, queried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Shift and scale both arrays by the column statistics of the first."""
  spread = known.std(0)
  spread = np.where(spread > 0, spread, 1.0)
  return (known - known.mean(0)) / spread, (queried - known.mean(0)) / spread


def _gaussian(
  known: np.ndarray, values: np.ndarray, queried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Return mu and log sigma [N] of the queried records, linear in centred features."""
  spread = values.std() if values.std() > 0 else 1.0
  scaled = (values - values.mean()) / spread
  design = np.insert(known, 0, 1.0, axis=1)
  penalty = np.eye(design.shape[1])
  penalty[0, 0] = 0
  slope = np.zeros(design.shape[1])
  for _ in range(_STEPS):
    weight = np.exp(-2 * np.maximum(design @ slope, _LOWEST))
    weighted = design.T * weight
    centre = np.linalg.solve(weighted @ design + penalty, weighted @ scaled)
    surprise = (scaled - design @ centre) ** 2 * weight
    # Average the expected and the observed curvature: with either one alone, a step
    # overshoots where outliers, or perfect fits, cluster.
    curvature = design.T * (1 + surprise) @ design + penalty
    step = np.linalg.solve(curvature, design.T @ (surprise - 1) - penalty @ slope)
    largest = np.abs(design @ step).max()
    slope += step / max(largest, 1.0)
    if largest < 1e-13:
      break
  fitted = design @ slope
  log_sigma = np.clip(queried @ slope[1:] + slope[0], fitted.min(), fitted.max())
  mu = values.mean() + spread * (queried @ centre[1:] + centre[0])
  return mu, np.log(spread) + np.maximum(log_sigma, _LOWEST)


def _pinball(
  known: np.ndarray, values: np.ndarray, queried: np.ndarray, level: float
) -> np.ndarray:
  """Return the quantile [N] of the queried records, linear in the features."""
  from sklearn.linear_model import QuantileRegressor

  model = QuantileRegressor(quantile=level, alpha=0.0).fit(known, values)
  return queried @ model.coef_ + model.intercept_

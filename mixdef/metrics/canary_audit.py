"""Audit of one run of DP-SGD by its canaries: score, guess, bounds and moments."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixdef.metrics.canary_moments import (
  Moments,
  canary_moments,
  checked_leaves,
  checked_observations,
)
from mixdef.metrics.gdp import gdp_epsilon
from mixdef.metrics.one_run import (
  correct_guesses,
  one_run_bound,
  one_run_mu,
  one_run_p,
)
from mixdef.metrics.order_statistics import order_statistics_mu

_LEAST_NOISE = 0.02
_TO_STD = 1.4826  # from the median absolute deviation of a Gaussian
_IMPLAUSIBLE = 1e-3
_LARGEST_MOMENT = 5.0


class CanaryAudit(NamedTuple):
  """What the canaries of one run say about its claim.

  Attributes:
    canaries: m.
    errors: wrong guesses of the membership of all canaries.
    claimed: the epsilon of the claim.
    delta: at which it and the bounds are stated.
    epsilon_one_run: lower bound that assumes (epsilon, delta)-DP only, from those
      canaries that are guessed with most confidence, as the next.
    epsilon_one_run_gdp: lower bound for a mechanism that is mu-GDP for some mu.
    epsilon_order_statistics: lower bound for independent identical Gaussian canaries,
      from guesses of all of them. It is not a bound for any other mechanism, and exact
      for DP-SGD without sampling.
    ceiling: the largest `epsilon_one_run` that this number of canaries can show.
    p: of the exact test of the claim, `one_run_p`.
    moments: z-scores of the noise and of the sampling.
  """

  canaries: int
  errors: int
  claimed: float
  delta: float
  epsilon_one_run: float
  epsilon_one_run_gdp: float
  epsilon_order_statistics: float
  ceiling: float
  p: float
  moments: Moments

  @property
  def failures(self) -> tuple[str, ...]:
    """The reasons why the claim is refuted, one sentence each; empty if it stands."""
    found = []
    if self.epsilon_one_run > self.claimed:
      found.append(
        f"epsilon is at least {self.epsilon_one_run:.2f}, above the claimed "
        f"{self.claimed:.2f}"
      )
    if self.p < _IMPLAUSIBLE:
      found.append(
        f"{self.errors} of {self.canaries} guesses are wrong, as few as under the "
        f"claim with probability {self.p:.1e}"
      )
    found += [
      f"{name} deviates by {value:.1f} standard errors"
      for name, value in self.moments._asdict().items()
      if abs(value) > _LARGEST_MOMENT
    ]
    return tuple(found)

  def to_json(self) -> dict[str, Any]:
    """Return the fields and the failures as JSON values; NaN and infinity are None."""
    moments = self.moments._asdict().items()
    return {
      **self._asdict(),
      "claimed": self.claimed if np.isfinite(self.claimed) else None,
      "moments": {name: None if np.isnan(z) else z for name, z in moments},
      "failures": list(self.failures),
    }


def audit_canaries(
  observed: ArrayLike,
  members: ArrayLike,
  leaves: ArrayLike,
  *,
  noise_multiplier: float,
  sampling_probability: float,
  steps_per_epoch: int,
  epsilon: float,
  advantage: float,
  delta: float = 1e-5,
  significance: float = 0.05,
) -> CanaryAudit:
  """Test the claim of a run of DP-SGD on the canaries that were trained with it.

  The score of a canary is its log-likelihood ratio under the claimed sampling and the
  noise that its leaf shows. The m/2 highest scores are guessed IN and the others OUT.
  The two bounds that do not assume independent canaries use the m/20 highest and lowest
  if a bound from them can exceed the claim, and otherwise the m/4.

  Guarantee: each bound is above the true epsilon with probability `significance` at
    most, under the assumption named in `CanaryAudit`. A true claim gives a p-value
    below 0.001 in at most one run of 1000, and with 100 canaries or more a moment
    beyond 5 in about one of 10,000. No failures do not prove the claim: a wrong number
    of members, a wrong delta, tuning and faults of the clipping of real records do not
    show here. The observations reveal the noise, and with the model the gradients at
    the coordinates of the canaries. They are not private: keep them with the trainer.

  Args:
    observed: [T, m], see `canary_moments`.
    members: bool [m], drawn independently with probability 1/2.
    leaves: int [m], the parameter array of each canary.
    noise_multiplier: z >= 0 of the claim, like all that follow.
    sampling_probability: q, in (0, 1].
    steps_per_epoch: steps in which a record is drawn once on average.
    epsilon: that the T steps spend at `delta`; infinity without noise.
    advantage: delta(0) of the T steps, in [0, 1].
    delta: in (0, 1).
    significance: of each bound, in (0, 1).

  Returns:
    A `CanaryAudit`.

  Raises:
    ValueError: for arrays that do not fit each other, observations that are not finite,
      fewer than 4 canaries, or a number out of range.

  Deviation: guesses are made by rank, never by the sign of the ratio. With too little
    noise the ratio is negative for every canary, so that its sign guesses all of them
    OUT and a run with half of its noise passes [ours]. The numbers of guesses depend
    on the claim, not on the scores: 100 guesses about 1000 canaries cannot refute an
    epsilon above 3.5. Of the bounds only the one without further assumptions refutes
    the claim; the p-value is the sharper test of the same errors.

  Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run",
    2023, arXiv 2305.08846; Xiang et al., "Tight Privacy Audit in One Run", 2025, arXiv
    2509.08704.

  >>> rng = np.random.default_rng(0)
  >>> members = rng.random(400) < 0.5
  >>> drawn = (rng.random((100, 400)) < 0.1) * members
  >>> claim = dict(
  ...   noise_multiplier=2.0, sampling_probability=0.1, steps_per_epoch=10,
  ...   epsilon=2.31, advantage=0.2)
  >>> leaves = np.arange(400) // 100
  >>> noise = rng.normal(size=(100, 400))
  >>> audit_canaries(drawn + 2.0 * noise, members, leaves, **claim).failures
  ()
  >>> found = audit_canaries(drawn + 0.2 * noise, members, leaves, **claim)
  >>> found.epsilon_one_run > 2.31, found.p < 1e-9, found.moments.variance < -5
  (True, True, True)
  """
  if not epsilon >= 0:
    raise ValueError(f"epsilon={epsilon}; pass what the claim states, >= 0")
  moments = canary_moments(
    observed,
    members,
    leaves,
    noise_multiplier=noise_multiplier,
    sampling_probability=sampling_probability,
    steps_per_epoch=steps_per_epoch,
  )
  scores = log_likelihood_ratio(
    observed,
    noise_multiplier=noise_scales(observed, leaves),
    sampling_probability=sampling_probability,
  )
  canaries = len(scores)
  if canaries < 4:
    raise ValueError(f"{canaries} canaries; pass at least 4")
  side, ceiling = _design(canaries, epsilon, delta, significance)
  _, correct = correct_guesses(scores, members, side, side)
  counts = {"guesses": 2 * side, "significance": significance}
  _, right = correct_guesses(scores, members, canaries // 2, canaries - canaries // 2)
  mu = one_run_mu(canaries, correct=correct, **counts)
  independent_mu = order_statistics_mu(
    canaries, guesses=canaries, correct=right, significance=significance
  )
  return CanaryAudit(
    canaries=canaries,
    errors=canaries - right,
    claimed=float(epsilon),
    delta=delta,
    epsilon_one_run=one_run_bound(canaries, correct=correct, delta=delta, **counts),
    epsilon_one_run_gdp=gdp_epsilon(mu, delta),
    epsilon_order_statistics=gdp_epsilon(independent_mu, delta),
    ceiling=ceiling,
    p=one_run_p(canaries, correct=right, advantage=advantage),
    moments=moments,
  )


def _design(
  canaries: int, claimed: float, delta: float, significance: float
) -> tuple[int, float]:
  """Return the guesses on each side and the bound if all of them are right."""
  for side in (canaries // 20, canaries // 4):
    guesses = 2 * side
    ceiling = guesses and one_run_bound(
      canaries, guesses=guesses, correct=guesses, delta=delta, significance=significance
    )
    if ceiling > claimed:
      break
  return side, ceiling


def log_likelihood_ratio(
  observed: ArrayLike, *, noise_multiplier: ArrayLike, sampling_probability: float
) -> np.ndarray:
  """Return how much more likely each canary's observations are if it is in.

      L_j = sum_t ln(1 - q + q exp((r_tj - 1/2)/z^2))

  Args:
    observed: r, [T, m], see `canary_moments`.
    noise_multiplier: z >= 0, one number or [m]; below 0.02 it counts as 0.02.
    sampling_probability: q, in (0, 1].

  Returns:
    float64 [m]; higher means member.

  Raises:
    ValueError: for observations that are not finite, or a number out of range.

  Deviation: the ratio replaces the sum of the observations, which is much weaker for
    noise below 1 [ours].

  >>> log_likelihood_ratio(
  ...   [[1.0, 0.0], [0.5, 0.5]], noise_multiplier=1.0, sampling_probability=1.0)
  array([ 0.5, -0.5])
  """
  seen = checked_observations(observed)
  q = sampling_probability
  if not 0 < q <= 1:
    raise ValueError(f"sampling_probability={q}; pass a probability in (0, 1]")
  scale = np.asarray(noise_multiplier, np.float64)
  if scale.shape not in ((), seen.shape[1:]) or not (scale >= 0).all():
    raise ValueError(
      f"noise_multiplier={noise_multiplier}; pass one number >= 0, or one per canary"
    )
  exponent = (seen - 0.5) / np.maximum(scale, _LEAST_NOISE) ** 2
  with np.errstate(divide="ignore"):
    stays = np.log1p(-q)  # -inf without sampling
  return np.logaddexp(stays, np.log(q) + exponent).sum(axis=0)


def noise_scales(observed: ArrayLike, leaves: ArrayLike) -> np.ndarray:
  """Return the scale of the noise that each canary's leaf shows, robustly.

      z_leaf = max(0.02, 1.4826 median |r - median(r)|)

  over all steps and canaries of a leaf. The memberships do not enter, so a score may
  depend on it.

  Args:
    observed: r, [T, m], see `canary_moments`.
    leaves: int [m], the parameter array of each canary.

  Returns:
    float64 [m].

  Raises:
    ValueError: for observations that are not finite, or leaves that do not fit them.

  Deviation: with the scale of the leaf in place of the claimed one, leaves without
    noise and wrong scales show in the errors [ours].

  >>> noise_scales([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0]], [0, 1])
  array([1.4826, 0.02  ])
  """
  seen = checked_observations(observed)
  leaf = checked_leaves(leaves, seen.shape[1])
  scales = np.empty(leaf.max() + 1)
  for number in range(len(scales)):
    values = seen[:, leaf == number].astype(np.float64)
    scales[number] = _TO_STD * np.median(np.abs(values - np.median(values)))
  return np.maximum(scales, _LEAST_NOISE)[leaf]

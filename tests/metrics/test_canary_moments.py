import numpy as np
import pytest
from scipy import stats

from mixdef.metrics.canary_moments import Moments, canary_moments

CLAIM = {"noise_multiplier": 0.5, "sampling_probability": 0.25, "steps_per_epoch": 4}


def observations(seed, steps=16, canaries=24, *, noise=0.5, probability=0.25):
  rng = np.random.default_rng(seed)
  members = rng.random(canaries) < 0.5
  took_part = (rng.random((steps, canaries)) < probability) & members
  return took_part + noise * rng.normal(size=took_part.shape), members


def naive(observed, members, noise_multiplier, sampling_probability, epoch):
  """All moments but those of the worst leaf and pair, term by term."""
  z, q = noise_multiplier, sampling_probability
  steps, canaries = observed.shape
  spread = z**2 + q * (1 - q)

  def score(terms, expected, variance):
    return sum(term - expected for term in terms) / np.sqrt(len(terms) * variance)

  def squares():
    return [
      (observed[t, j] / z) ** 2
      for t in range(steps)
      for j in range(canaries)
      if not members[j]
    ]

  def products(lag):
    return [
      observed[t, j] * observed[t + lag, j] / z**2
      for t in range(steps - lag)
      for j in range(canaries)
      if not members[j]
    ]

  def sums(length):
    # The fourth cumulant of a Bernoulli draw is E(b-q)^4 - 3 (E(b-q)^2)^2.
    fourth = q * (1 - q) ** 4 + (1 - q) * q**4 - 3 * (q * (1 - q)) ** 2
    terms = [
      (sum(observed[first : first + length, j]) - length * q) ** 2
      for first in range(0, steps - length + 1, length)
      for j in range(canaries)
      if members[j]
    ]
    variance = 2 * (length * spread) ** 2 + length * fourth
    return score(terms, length * spread, variance)

  inside = [x for t in range(steps) for x in observed[t, members]]
  return {
    "variance": score(squares(), 1, 2),
    "lag_step": score(products(1), 0, 1),
    "lag_epoch": score(products(epoch), 0, 1),
    "mean": score(inside, q, spread),
    "epoch_sums": sums(epoch),
    "run_sums": sums(steps),
  }


@pytest.mark.parametrize("seed", range(3))
def test_the_moments_are_those_of_the_naive_loops(seed):
  observed, members = observations(seed, steps=18)  # half an epoch is left over
  found = canary_moments(observed, members, np.zeros(24), **CLAIM)._asdict()
  expected = naive(observed, members, 0.5, 0.25, 4)
  assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_the_worst_leaf_is_tested_against_all_leaves(factor):
  observed, members = observations(2)
  leaves = np.random.default_rng(3).choice([3, 7, 9], 24)
  members[leaves == 7] = True  # a leaf without a canary that is out
  observed[:, leaves == 9] *= factor
  found = canary_moments(observed, members, leaves, **CLAIM).leaf_variance
  tails = {}
  for leaf in (3, 9):
    x = observed[:, ~members & (leaves == leaf)] / 0.5
    tails[leaf] = stats.chi2.cdf((x**2).sum(), x.size)
  tail = tails[min(tails, key=lambda leaf: min(tails[leaf], 1 - tails[leaf]))]
  assert tail == tails[9]
  p = 2 * 2 * min(tail, 1 - tail)
  assert found == pytest.approx(np.sign(factor - 1) * stats.norm.isf(p / 2), rel=1e-6)


def test_the_most_correlated_pair_is_tested_against_all_pairs():
  observed, members = observations(0)
  found = canary_moments(observed, members, np.zeros(24), **CLAIM).pairs
  outside = observed[:, ~members].T
  pairs = [
    (observed_i @ observed_j / np.linalg.norm(observed_i) / np.linalg.norm(observed_j))
    for i, observed_i in enumerate(outside)
    for observed_j in outside[:i]
  ]
  r = max(pairs, key=abs)
  # Student's test of a correlation about a known mean of 0 has T - 1 degrees.
  p = 2 * stats.t.sf(abs(r) * np.sqrt(15 / (1 - r**2)), 15) * len(pairs)
  expected = np.copysign(stats.norm.isf(min(p, 1) / 2), r)
  assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
  ("noise", "probability"), [(0.5, 0.25), (0.05, 0.05), (2.0, 1.0)]
)
def test_a_true_claim_gives_standard_scores(noise, probability):
  claim = {"noise_multiplier": noise, "sampling_probability": probability}
  runs = 300
  found = np.array(
    [
      canary_moments(
        *observations(seed, noise=noise, probability=probability),
        np.arange(24) // 8,
        **claim,
        steps_per_epoch=4,
      )
      for seed in range(runs)
    ]
  )
  for name, values in zip(Moments._fields, found.T, strict=True):
    if name in ("leaf_variance", "pairs"):  # Bonferroni's correction is conservative
      assert (np.abs(values) > 1.96).mean() < 0.09, name
    else:
      assert abs(values.mean()) < 4 / np.sqrt(runs), name
      assert 0.75 < values.var() < 1.3, name


def test_what_cannot_be_measured_is_nan():
  observed, members = observations(0, steps=1)
  leaves = np.zeros(24, int)
  one = canary_moments(observed, members, leaves, **CLAIM)
  unmeasured = {name for name, z in one._asdict().items() if np.isnan(z)}
  assert unmeasured == {"lag_step", "lag_epoch", "pairs", "epoch_sums"}
  silent = {**CLAIM, "noise_multiplier": 0.0}
  found = canary_moments(*observations(0, noise=0.0), leaves, **silent)
  unmeasured = {name for name, z in found._asdict().items() if np.isnan(z)}
  assert unmeasured == set(Moments._fields[:5])
  certain = {**silent, "sampling_probability": 1.0}
  assert np.isnan(canary_moments(observed, members, leaves, **certain)).all()
  nobody = canary_moments(observed, np.zeros(24, bool), leaves, **CLAIM)
  assert np.isnan([nobody.mean, nobody.run_sums]).all()


def test_two_models_with_the_same_noise_are_seen_side_by_side():
  (one, members), (other, others) = observations(0, steps=40), observations(1, steps=40)
  both, leaves = np.concatenate([members, others]), np.zeros(48)
  apart = canary_moments(np.concatenate([one, other], axis=1), both, leaves, **CLAIM)
  assert abs(apart.pairs) < 4
  rng = np.random.default_rng(0)
  noise = 0.5 * rng.normal(size=(40, 24))
  same = [noise + (rng.random((40, 24)) < 0.25) * who for who in (members, others)]
  found = canary_moments(np.concatenate(same, axis=1), both, leaves, **CLAIM)
  assert found.pairs > 10


def test_the_names_of_leaves_and_the_order_of_canaries_do_not_matter():
  observed, members = observations(4)
  leaves = np.arange(24) % 3
  found = canary_moments(observed, members, leaves, **CLAIM)
  order = np.random.default_rng(0).permutation(24)
  shuffled = canary_moments(
    observed[:, order], members[order], 100 - 7 * leaves[order], **CLAIM
  )
  assert shuffled == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"observed": np.zeros(24)}, r"shape \(24,\); pass \[steps, canaries\]"),
    ({"observed": np.full((16, 24), np.nan)}, r"observed\[0, 0\] is nan"),
    ({"members": np.zeros(23, bool)}, r"members has shape \(23,\)"),
    ({"leaves": np.zeros(23)}, r"leaves has shape \(23,\); pass one per canary, 24"),
    ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
    ({"sampling_probability": 0.0}, "sampling_probability=0.0"),
    ({"steps_per_epoch": 0}, "steps_per_epoch=0; pass at least 1"),
  ],
)
def test_unusable_input_is_refused(change, message):
  observed, members = observations(0)
  given = {"observed": observed, "members": members, "leaves": np.zeros(24)}
  with pytest.raises(ValueError, match=message):
    canary_moments(**{**given, **CLAIM, **change})

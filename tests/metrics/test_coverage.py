"""Bounds on mechanisms whose epsilon is known must not exceed it too often."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mixdef.metrics import error_rates
from mixdef.metrics.epsilon import (
  epsilon_at_threshold,
  epsilon_bonferroni,
  epsilon_multisplit,
  epsilon_split,
)
from mixdef.metrics.gdp import gdp_epsilon, gdp_mu
from mixdef.metrics.one_run import epsilon_one_run, epsilon_one_run_gdp, one_run_bound

RUNS = 300
EPSILONS = (0.5, 1.0, 2.0)
MEMBER = np.arange(2000) < 1000
ALLOWED = stats.binom.isf(stats.norm.sf(3), RUNS, 0.05)
"""5 % of the runs and three standard errors: 27 of 300."""

GUESSES = {"guesses_in": 100, "guesses_out": 100}


def laplace(epsilon, run, member=MEMBER):
  """The membership bit released with exactly (epsilon, 0)-DP."""
  rng = np.random.default_rng([run, int(10 * epsilon)])
  return member + rng.laplace(scale=1 / epsilon, size=len(member))


def gaussian(mu, run, member=MEMBER):
  rng = np.random.default_rng([run, int(10 * mu)])
  return mu * member + rng.normal(size=len(member))


def fair(run):
  return np.random.default_rng([run, 99]).random(1000) < 0.5


def misses(values, truth):
  return sum(value > truth for value in values)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(
  "bound",
  [
    # The likelihood ratio of the Laplace mechanism is e^eps from score 1 on.
    lambda s, m, run: epsilon_at_threshold(s, m, threshold=1.0),
    lambda s, m, run: epsilon_bonferroni(s, m, thresholds=[-0.5, 0.0, 1.0, 1.5]),
    lambda s, m, run: epsilon_bonferroni(s, m),
    lambda s, m, run: epsilon_split(s, m, seed=run),
    lambda s, m, run: epsilon_multisplit(s, m, splits=9, seed=run),
  ],
  ids=["threshold", "thresholds", "bonferroni", "split", "multisplit"],
)
def test_pitfall_130_bounds_hold_on_the_laplace_mechanism(bound, epsilon):
  bounds = [bound(laplace(epsilon, run), MEMBER, run) for run in range(RUNS)]
  assert misses(bounds, epsilon) <= ALLOWED
  # And they are not valid by being empty.
  assert np.median(bounds) > 0.3 * epsilon


def test_pitfall_130_the_maximum_over_thresholds_does_not_hold():
  upper = error_rates.upper(np.arange(1001), 1000, 0.025)
  missed = 0
  for epsilon in EPSILONS:
    for run in range(RUNS):
      order = np.argsort(-laplace(epsilon, run))
      fpr_high = upper[np.cumsum(~MEMBER[order])]
      fnr_high = upper[1000 - np.cumsum(MEMBER[order])]
      both = np.maximum((1 - fnr_high) / fpr_high, (1 - fpr_high) / fnr_high)
      missed += np.log(both.max()) > epsilon
  runs = RUNS * len(EPSILONS)
  assert missed > stats.binom.isf(stats.norm.sf(3), runs, 0.05)


@pytest.mark.parametrize("scale", [1, 100])
def test_thresholds_at_fixed_ranks_hold_with_ties(scale):
  # Whole scores have runs of ties at every threshold.
  bounds = [
    epsilon_bonferroni(np.floor(laplace(1.0, run) * 3 / scale), MEMBER)
    for run in range(RUNS)
  ]
  assert misses(bounds, 1.0) <= ALLOWED


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_at_fixed_ranks_hold_for_each_law_of_few_scores(seed):
  """No simulation: all draws of six scores in any order, with their probabilities."""
  law = np.random.default_rng(seed).dirichlet(np.ones(4) * (0.3 if seed % 2 else 2))
  # Members score 0 and cannot help; scores 1 to 4 are the non-members'.
  true_fpr = np.append(law[::-1].cumsum()[::-1], 0)
  missed = np.zeros(6)
  for draw in itertools.combinations_with_replacement(range(4), 6):
    outside = np.array(draw) + 1.0
    high, _ = error_rates.bounds(
      np.append(outside, 0.0), np.arange(7) == 6, thresholds=100, confidence=0.4
    )
    ranks = np.append(np.nextafter(outside[-1], np.inf), outside[:0:-1])
    truth = true_fpr[np.ceil(ranks).astype(int) - 1]
    chance = stats.multinomial.pmf(np.bincount(draw, minlength=4), 6, law)
    missed += chance * (high < truth - 1e-12)
  # Six ranks and two rates share the error of 0.6.
  assert missed.max() <= 0.05 + 1e-12


@pytest.mark.parametrize("thresholds", [20, [-0.5, 0.5, 1.5]])
@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_pitfall_130_gdp_bounds_hold_on_the_gaussian_mechanism(mu, thresholds):
  bounds = [
    gdp_mu(gaussian(mu, run), MEMBER, thresholds=thresholds) for run in range(RUNS)
  ]
  assert misses(bounds, mu) <= ALLOWED
  assert np.median(bounds) > 0.5 * mu


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_pitfall_130_one_run_bounds_hold_on_the_laplace_mechanism(epsilon):
  bounds = []
  for run in range(RUNS):
    member = fair(run)
    scores = laplace(epsilon, run, member)
    bounds.append(epsilon_one_run(scores, member, **GUESSES, delta=0.0))
  assert misses(bounds, epsilon) <= ALLOWED
  assert np.median(bounds) > 0.2 * epsilon


def test_pitfall_130_one_run_bounds_hold_on_the_gaussian_mechanism():
  truth = gdp_epsilon(1.0, 1e-5)
  bounds = []
  for run in range(RUNS):
    member = fair(run)
    bounds.append(epsilon_one_run_gdp(gaussian(1.0, run, member), member, **GUESSES))
  assert misses(bounds, truth) <= ALLOWED
  assert np.median(bounds) > 0.5 * truth


def test_pitfall_133_the_best_numbers_of_guesses_in_hindsight_do_not_hold():
  numbers = (10, 20, 40, 80, 160, 320, 500)
  # The fewest correct guesses whose bound exceeds the truth of 0.5.
  enough = [
    next(
      correct
      for correct in range(number // 2, number + 1)
      if one_run_bound(1000, guesses=number, correct=correct, delta=0.0) > 0.5
    )
    for number in numbers
  ]
  once = np.zeros(len(numbers))
  hindsight = 0
  for run in range(RUNS):
    member = fair(run)
    right = np.cumsum(member[np.argsort(-laplace(0.5, run, member))])
    exceeds = right[np.array(numbers) - 1] >= enough
    once += exceeds
    hindsight += exceeds.any()
  assert once.max() <= ALLOWED < hindsight

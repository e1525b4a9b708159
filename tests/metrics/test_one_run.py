import numpy as np
import pytest
from jax_privacy.auditing import CanaryScoreAuditor, Explicit
from scipy import stats

from mixdef.metrics.gdp import gdp_epsilon
from mixdef.metrics.one_run import (
  epsilon_one_run,
  epsilon_one_run_gdp,
  one_run_bound,
  one_run_mu,
)

GOLDEN = [
  (1000, 100, 100, 3.493, 3.465),
  (1000, 100, 95, 2.172, 2.165),
  (1000, 1000, 700, 0.732, 0.732),
  (5000, 500, 500, 5.114, 4.978),
]


def auditor(canaries, guesses, correct):
  """Members and non-members of which those with score 1 are guessed IN."""
  inside = max(correct, canaries // 2)
  outside = canaries - inside
  wrong = guesses - correct
  return CanaryScoreAuditor(
    np.arange(inside) < correct, (np.arange(outside) < wrong).astype(int)
  )


def fair(canaries, seed=0):
  return np.random.default_rng(seed).random(canaries) < 0.5


@pytest.mark.parametrize(("canaries", "guesses", "correct", "pure", "approx"), GOLDEN)
def test_pitfall_132_golden_values(canaries, guesses, correct, pure, approx):
  counts = {"guesses": guesses, "correct": correct}
  assert one_run_bound(canaries, **counts, delta=0.0) == pytest.approx(pure, abs=5e-4)
  got = one_run_bound(canaries, **counts, delta=1e-5)
  assert got == pytest.approx(approx, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("canaries", "guesses", "correct"),
  [row[:3] for row in GOLDEN] + [(200, 60, 41), (300, 20, 13), (50, 49, 49)],
)
@pytest.mark.parametrize(("delta", "significance"), [(1e-5, 0.05), (1e-3, 0.2)])
def test_both_forms_agree_with_jax_privacy(
  canaries, guesses, correct, delta, significance
):
  oracle = auditor(canaries, guesses, correct)
  counts = {"guesses": guesses, "correct": correct, "significance": significance}
  explicit = {"threshold_strategy": Explicit(0.5)}
  assert one_run_bound(canaries, **counts, delta=delta) == pytest.approx(
    oracle.epsilon_one_run(significance, delta, **explicit), abs=1e-5
  )
  assert gdp_epsilon(one_run_mu(canaries, **counts), delta) == pytest.approx(
    oracle.epsilon_one_run_fdp(significance, delta, **explicit), abs=1e-3
  )


def test_the_bound_is_where_the_naive_p_value_crosses_the_significance():
  m, r, v, delta = 300, 40, 33, 1e-4
  epsilon = one_run_bound(m, guesses=r, correct=v, delta=delta)

  def p_value(epsilon):
    law = stats.binom(r, np.exp(epsilon) / (1 + np.exp(epsilon)))
    tail = sum(law.pmf(b) for b in range(v, r + 1))
    below = [sum(law.pmf(b) for b in range(v - i, v)) / i for i in range(1, v + 1)]
    return tail + 2 * m * delta * max(below)

  assert p_value(epsilon) == pytest.approx(0.05, abs=1e-6)


def test_guesses_at_chance_refute_nothing():
  assert one_run_bound(1000, guesses=100, correct=50) == 0
  assert one_run_bound(1000, guesses=100, correct=0) == 0
  assert one_run_mu(1000, guesses=100, correct=50) == 0
  assert one_run_mu(1000, guesses=100, correct=0) == 0


def test_scores_are_guessed_from_both_ends():
  member = fair(200)
  scores = np.random.default_rng(1).normal(size=200) + member
  order = np.argsort(scores)
  correct = int(member[order[-30:]].sum() + (~member[order[:20]]).sum())
  guessed = {"guesses_in": 30, "guesses_out": 20}
  counts = {"guesses": 50, "correct": correct}
  assert epsilon_one_run(scores, member, **guessed) == one_run_bound(200, **counts)
  assert epsilon_one_run_gdp(scores, member, **guessed) == gdp_epsilon(
    one_run_mu(200, **counts), 1e-5
  )


@pytest.mark.parametrize("members_first", [True, False])
def test_ties_do_not_reveal_membership_through_the_order_of_records(members_first):
  member = np.arange(400) < 200
  if not members_first:
    member = ~member
  got = epsilon_one_run(np.zeros(400), member, guesses_in=100, guesses_out=100)
  assert got == 0


def test_canaries_without_a_score_count_but_are_not_guessed():
  member = fair(300)
  scores = member + np.where(np.arange(300) < 200, 0, np.nan)
  got = epsilon_one_run(scores, member, guesses_in=40, guesses_out=0, delta=1e-3)
  assert got == one_run_bound(300, guesses=40, correct=40, delta=1e-3)
  assert got < one_run_bound(200, guesses=40, correct=40, delta=1e-3)


def test_pitfall_132_other_designs_and_concatenated_targets_are_refused():
  member = fair(1000)
  guessed = {"guesses_in": 10, "guesses_out": 10}
  with pytest.raises(ValueError, match="uses a single target"):
    epsilon_one_run(np.zeros((2, 500)), member.reshape(2, 500), **guessed)
  with pytest.raises(ValueError, match="900 of 1000 canaries are members"):
    epsilon_one_run(np.zeros(1000), np.arange(1000) < 900, **guessed)
  with pytest.raises(ValueError, match="probability 1/2"):
    epsilon_one_run_gdp(np.zeros(1000), np.arange(1000) < 0, **guessed)
  # Two-sided binomial p-values around one in a million, for 1000 canaries.
  for inside in (423, 577):
    assert stats.binomtest(inside, 1000).pvalue > 1e-6
    epsilon_one_run(np.zeros(1000), np.arange(1000) < inside, **guessed)
  for inside in (422, 578):
    assert stats.binomtest(inside, 1000).pvalue < 1e-6
    with pytest.raises(ValueError, match=f"{inside} of 1000"):
      epsilon_one_run(np.zeros(1000), np.arange(1000) < inside, **guessed)


def test_pitfall_133_the_numbers_of_guesses_have_no_default():
  member = fair(100)
  for given in ({}, {"guesses_in": 10}, {"guesses_out": 10}):
    with pytest.raises(TypeError, match="guesses_"):
      epsilon_one_run(member.astype(float), member, **given)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: one_run_bound(10, guesses=11, correct=1), "guesses=11"),
    (lambda: one_run_bound(10, guesses=5, correct=6), "correct=6"),
    (lambda: one_run_bound(10, guesses=0, correct=0), "guesses=0"),
    (lambda: one_run_bound(10, guesses=5, correct=5, delta=1.0), "delta=1.0"),
    (lambda: one_run_mu(10, guesses=5, correct=5, significance=5), "significance=5"),
    (
      lambda: epsilon_one_run(np.zeros(9), fair(9), guesses_in=9, guesses_out=1),
      "pass 1 to 9",
    ),
    (
      lambda: epsilon_one_run(np.zeros(9), fair(9), guesses_in=-1, guesses_out=5),
      "guesses_in=-1",
    ),
    (
      lambda: epsilon_one_run(np.zeros(9), fair(8), guesses_in=1, guesses_out=1),
      r"members has shape \(8,\)",
    ),
  ],
)
def test_unusable_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()

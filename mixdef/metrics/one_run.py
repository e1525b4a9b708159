"""Epsilon lower bounds from one training run with many random canaries.

Each of m canaries is in the training set with probability 1/2, independently of the
others. The attack guesses some as IN and some as OUT. Under (epsilon, delta)-DP the
number of correct guesses is bounded, even though the canaries share one training run.
"""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.metrics.gdp import gdp_epsilon, largest

_IMPLAUSIBLE = 1e-6


def epsilon_one_run(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  guesses_in: int,
  guesses_out: int,
  delta: float = 1e-5,
  significance: float = 0.05,
) -> float:
  """Bound epsilon from the canaries of one training run.

  The `guesses_in` highest scores are guessed IN, the `guesses_out` lowest OUT, and
  `one_run_bound` converts the number of correct guesses to a bound.

  Guarantee: below the true epsilon with probability 1 - significance, if canaries were
    included independently with probability 1/2 and both numbers of guesses were fixed
    before the scores were seen. The best of several is a selection, and the membership
    test below cannot see a balanced design.

  Args:
    scores: [m] of one target; higher means member. A canary with a NaN score is not
      guessed.
    members: bool [m], drawn independently with probability 1/2.
    guesses_in: k+ >= 0.
    guesses_out: k- >= 0, with 1 <= k+ + k- <= canaries with a score.
    delta: of (epsilon, delta)-DP, in [0, 1).
    significance: probability of a bound above the true epsilon, in (0, 1).

  Returns:
    The bound, >= 0.

  Raises:
    ValueError: for several targets, a number out of range, or a share of members that
      inclusion with probability 1/2 gives with probability below 1e-6.

  Deviation: ties at the border count as wrong guesses as far as possible, so the order
    of records cannot tell their membership.

  Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run",
    2023, arXiv 2305.08846.

  >>> members = np.random.default_rng(0).random(1000) < .5
  >>> bound = epsilon_one_run(
  ...   members.astype(float), members, guesses_in=50, guesses_out=50)
  >>> round(bound, 3)
  3.465
  """
  canaries, correct = correct_guesses(scores, members, guesses_in, guesses_out)
  return one_run_bound(
    canaries,
    guesses=guesses_in + guesses_out,
    correct=correct,
    delta=delta,
    significance=significance,
  )


def epsilon_one_run_gdp(
  scores: ArrayLike,
  members: ArrayLike,
  *,
  guesses_in: int,
  guesses_out: int,
  delta: float = 1e-5,
  significance: float = 0.05,
) -> float:
  """Bound epsilon from one training run of a Gaussian mechanism.

  This is `epsilon_one_run`, except that the number of correct guesses bounds mu
  (`one_run_mu`). The additional assumption gives a larger epsilon.

  Guarantee: as `epsilon_one_run`, if moreover the mechanism is mu-GDP for some mu.

  Args:
    scores: [m] of one target; higher means member. A canary with a NaN score is not
      guessed.
    members: bool [m], drawn independently with probability 1/2.
    guesses_in: k+ >= 0.
    guesses_out: k- >= 0, with 1 <= k+ + k- <= canaries with a score.
    delta: value at which mu is converted to epsilon, in (0, 1).
    significance: probability of a bound above the true epsilon, in (0, 1).

  Returns:
    The bound, >= 0.

  Raises:
    ValueError: as `epsilon_one_run`.

  Reference: Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One
    Run", 2025, arXiv 2410.22235.

  >>> members = np.random.default_rng(0).random(1000) < .5
  >>> bound = epsilon_one_run_gdp(
  ...   members.astype(float), members, guesses_in=50, guesses_out=50)
  >>> round(bound, 2)
  5.55
  """
  canaries, correct = correct_guesses(scores, members, guesses_in, guesses_out)
  mu = one_run_mu(
    canaries,
    guesses=guesses_in + guesses_out,
    correct=correct,
    significance=significance,
  )
  return gdp_epsilon(mu, delta)


def one_run_bound(
  canaries: int,
  *,
  guesses: int,
  correct: int,
  delta: float = 1e-5,
  significance: float = 0.05,
) -> float:
  """Bound epsilon from v correct guesses out of r about m canaries.

      p(eps) = Pr[B >= v] + 2 m delta max_{1<=i<=v} Pr[v > B >= v-i] / i,
      B ~ Bin(r, e^eps / (1 + e^eps)),   eps_LB = sup{eps : p(eps) < significance}

  Args:
    canaries: m, all canaries of the run, guessed or not.
    guesses: r <= m, fixed in advance.
    correct: v <= r.
    delta: of (epsilon, delta)-DP, in [0, 1).
    significance: in (0, 1).

  Returns:
    The bound, 0 if epsilon = 0 is not refuted.

  Raises:
    ValueError: if a number is out of range.

  Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run",
    2023, arXiv 2305.08846.

  >>> round(one_run_bound(1000, guesses=100, correct=95, delta=0.), 3)
  2.172
  """
  check_counts(canaries, guesses, correct, significance)
  if not 0 <= delta < 1:
    raise ValueError(f"delta={delta}; pass a probability in [0, 1)")
  from scipy.special import bdtrc, expit, gammaln, log_expit

  fewer = np.arange(correct)[::-1]
  more = guesses - fewer
  ways = gammaln(guesses + 1) - gammaln(fewer + 1) - gammaln(more + 1)

  def refuted(epsilon: float) -> bool:
    p_value = bdtrc(correct - 1, guesses, expit(epsilon))
    if delta and correct:
      chances = np.exp(ways + fewer * log_expit(epsilon) + more * log_expit(-epsilon))
      below = chances.cumsum()
      p_value += 2 * canaries * delta * (below / np.arange(1, correct + 1)).max()
    return bool(p_value < significance)

  return largest(refuted)


def one_run_mu(
  canaries: int, *, guesses: int, correct: int, significance: float = 0.05
) -> float:
  """Bound the mu of a Gaussian mechanism from v correct guesses out of r.

  Let r_i and h_i be the probabilities that the guess of a uniformly random canary is
  right (r) or wrong (h), and that at least i guesses are right. Flipping the membership
  of a wrongly guessed canary adds a right guess, so mu-GDP requires

      h_i >= g(r_{i+1}),   g(x) = Phi(Phi^-1(x) - mu),

  and the probability of exactly i right guesses links them,

      (r_i - r_{i+1}) / i = (h_i - h_{i+1}) / (guesses - i).

  If v or more guesses were right with probability `significance`, then r_v >=
  significance v/m and r_v + h_v = significance guesses/m. The recursion down to i = 0
  must not exceed r_0 + h_0 = guesses/m. A mu for which it does is refuted.

  Args:
    canaries: m, all canaries of the run, guessed or not.
    guesses: number of guesses <= m, fixed in advance.
    correct: v <= guesses.
    significance: in (0, 1).

  Returns:
    The bound, 0 if mu = 0 is not refuted.

  Raises:
    ValueError: if a number is out of range.

  Reference: Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One
    Run", 2025, arXiv 2410.22235.

  >>> round(one_run_mu(1000, guesses=100, correct=95), 2)
  0.79
  """
  check_counts(canaries, guesses, correct, significance)
  from scipy.special import ndtr, ndtri

  total = guesses / canaries

  def refuted(mu: float) -> bool:
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
      needed = ndtr(ndtri(right) - mu)
      if needed <= wrong:
        return False  # nothing changes from here on
      right += i / (guesses - i) * (needed - wrong)
      wrong = needed
      if right + wrong > total:
        return True
    return False

  return largest(refuted)


def one_run_p(canaries: int, *, correct: int, advantage: float) -> float:
  """Return the p-value of a claim about a mechanism from guesses of all canaries.

      p = P[B <= u],   B ~ Bin(m, e),   e = (1 - delta(0))/2

  Under the claim each guess errs with probability e or more, whatever the rule,
  independently of the others. The test involves no family of mechanisms and no
  inversion, so it detects smaller faults than a bound on epsilon does.

  Guarantee: Pr(p <= x) <= x under the claim, if canaries were included independently
    with probability 1/2 and their channels are independent. Randomness that all
    canaries share breaks the independence.

  Args:
    canaries: m, all guessed.
    correct: m - u <= m.
    advantage: delta(0) of the claim, the largest TPR - FPR of any attack; see
      `mixdef.defenses.accounting.largest_advantage`.

  Returns:
    The p-value, in [0, 1].

  Raises:
    ValueError: if a number is out of range.

  Deviation: no paper has this test [ours].

  >>> round(one_run_p(1000, correct=700, advantage=0.3372), 4)
  0.0183
  """
  check_counts(canaries, canaries, correct, 0.5)
  if not 0 <= advantage <= 1:
    raise ValueError(f"advantage={advantage}; pass a number in [0, 1]")
  from scipy.stats import binom

  return float(binom.cdf(canaries - correct, canaries, (1 - advantage) / 2))


def correct_guesses(
  scores: ArrayLike, members: ArrayLike, guesses_in: int, guesses_out: int
) -> tuple[int, int]:
  """Return the number of canaries and of correct guesses, ties counted as wrong."""
  scores = np.asarray(scores, dtype=np.float64)
  if scores.ndim != 1:
    raise ValueError(
      f"scores have shape {scores.shape}; pass the canaries [m] of one target: a "
      "one-run audit uses a single target"
    )
  members = validate.mask(members, scores.shape, "members")
  _check_design(members)
  scored = ~np.isnan(scores)
  values, truth = scores[scored], members[scored]
  if (
    guesses_in < 0
    or guesses_out < 0
    or not 1 <= guesses_in + guesses_out <= len(values)
  ):
    raise ValueError(
      f"guesses_in={guesses_in}, guesses_out={guesses_out}; pass 1 to {len(values)} "
      "guesses in total, none negative"
    )
  highest = np.lexsort((truth, -values))[:guesses_in]
  lowest = np.lexsort((~truth, values))[:guesses_out]
  return len(scores), int(truth[highest].sum() + (~truth[lowest]).sum())


def _check_design(members: np.ndarray) -> None:
  """Reject a membership matrix that independent fair coins would hardly give."""
  from scipy.stats import binomtest

  inside = int(members.sum())
  if len(members) and binomtest(inside, len(members)).pvalue < _IMPLAUSIBLE:
    raise ValueError(
      f"{inside} of {len(members)} canaries are members; a one-run audit needs each one"
      " included independently with probability 1/2"
    )


def check_counts(
  canaries: int, guesses: int, correct: int, significance: float
) -> None:
  """Raise if numbers of canaries and guesses, or a significance, are out of range."""
  if not 0 <= correct <= guesses <= canaries or guesses < 1:
    raise ValueError(
      f"canaries={canaries}, guesses={guesses}, correct={correct}; pass correct <="
      " guesses <= canaries, guesses >= 1"
    )
  if not 0 < significance < 1:
    raise ValueError(f"significance={significance}; pass a rate in (0, 1)")

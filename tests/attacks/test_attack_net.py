import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mixdef.attacks._attack_net import fit_attack_net

RATES = np.array([0.1, 0.35, 0.5, 0.65, 0.9])  # share of members in each group


def grouped(count=2000):
  """Return examples of five groups with exactly these shares of members."""
  group = np.repeat(np.arange(5), count)
  member = np.concatenate([np.arange(count) < rate * count for rate in RATES])
  return np.eye(5)[group], member


def probabilities(log_odds):
  return 1 / (1 + np.exp(-log_odds))


def test_pitfall_58_one_layer_is_an_exact_logistic_regression():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 4))
  member = x @ [2.0, -1.0, 0.5, 0.0] + rng.logistic(size=600) > 0.5
  net = fit_attack_net(x, member, n_hidden=0, most=600)
  # C = 1 weighs one example's loss like half the squared weights.
  exact = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, member)
  prior = np.log(member.sum() / (~member).sum())  # the score is at one of 1/2
  expected = exact.decision_function(x) - prior
  assert np.abs(expected).max() > 5
  np.testing.assert_allclose(net.log_odds(x), expected, atol=0.01)


def test_pitfall_58_separable_members_are_scored_beyond_a_second_softmax():
  x = np.repeat([[0.0], [1.0]], 500, axis=0)
  member = x[:, 0] > 0.5
  net = fit_attack_net(x, member, n_hidden=0, most=1000)
  exact = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, member)
  low, high = net.log_odds(np.array([[0.0], [1.0]]))
  expected = exact.decision_function([[0.0], [1.0]])
  np.testing.assert_allclose([low, high], expected, atol=0.05)
  assert low < -3
  assert high > 3


@pytest.mark.parametrize("n_hidden", [0, 8, 64])
def test_pitfall_58_scores_are_the_log_odds_of_the_shares(n_hidden):
  """A loss of logits on a probability p in [0, 1] would make p = clip(log-odds)."""
  x, member = grouped()
  net = fit_attack_net(x, member, n_hidden=n_hidden, most=10_000)
  found = probabilities(net.log_odds(np.eye(5)))
  np.testing.assert_allclose(found, RATES, atol=0.02)
  uncalibrated = np.clip(np.log(RATES / (1 - RATES)), 0, 1)
  assert np.abs(uncalibrated - RATES).max() > 0.3


@pytest.mark.parametrize("n_hidden", [0, 64])
def test_pitfall_58_as_many_members_are_expected_as_there_are(n_hidden):
  """The intercept bears no penalty: where the loss is least, residuals sum to zero."""
  rng = np.random.default_rng(1)
  x = rng.random((2000, 3))
  member = rng.random(2000) < probabilities(6 * np.sin(4 * x[:, 0]) - 3)
  net = fit_attack_net(x, member, n_hidden=n_hidden, most=2000)
  expected = probabilities(net.log_odds(x)).mean()
  assert 0.2 < member.mean() < 0.8
  assert expected == pytest.approx(member.mean(), abs=0.005)

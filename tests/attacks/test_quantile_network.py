import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_pinball_loss

from mixdef.attacks import Signals, quantile, quantile_network
from mixdef.attacks.quantile import _gaussian, _pinball
from mixdef.attacks.quantile_network import gaussian_loss
from mixdef.metrics import auc

FOUR = np.array([1.0, 2.0, 3.0, 6.0])


def make(count, seed, images=False):
  """Records, labels, scores of non-members, and how they depend on the record."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, 8)).astype(np.float32)
  y = rng.integers(0, 3, count)
  centre, spread = 3 * x[:, 0] + 2 * y, np.exp(0.7 * x[:, 1])
  if images:
    x = np.tile(x[:, :4].reshape(-1, 2, 2), (1, 6, 6))
  return x, y, centre + spread * rng.normal(size=count), centre, spread


def test_check_values_of_the_gaussian_head():
  mu, log_sigma = _gaussian(np.zeros((4, 1)), FOUR, np.zeros((1, 1)))
  assert mu[0] == pytest.approx(3)
  assert np.exp(log_sigma)[0] == pytest.approx(1.870829, abs=5e-7)
  output = jnp.array([[mu[0], log_sigma[0]]] * 4)
  losses = gaussian_loss(output, jnp.asarray(FOUR))
  assert losses.mean() == pytest.approx(1.126381, abs=5e-6)
  phi = np.array([[6.0]])
  signals = Signals.from_phi(phi, [[False]], population=FOUR[None])
  features = np.zeros((4, 1)), np.zeros((1, 1))
  score = quantile(signals, target=0, score="phi", features=features)[0]
  assert score == pytest.approx(1.603567, abs=5e-7)


def test_check_values_of_the_pinball_loss():
  for q, expected in ((2, 1.0), (3, 0.75), (4.5, 0.75), (6, 0.75)):
    loss = mean_pinball_loss(FOUR, np.full(4, q), alpha=0.75)
    assert loss == pytest.approx(expected)
  fitted = _pinball(np.zeros((4, 1)), FOUR, np.zeros((1, 1)), 0.75)
  assert 3 - 1e-9 <= fitted[0] <= 6 + 1e-9


def test_a_regressor_fitted_on_the_hold_out_has_another_rate_there():
  rng = np.random.default_rng(0)
  rates = []
  for _ in range(20):
    known, values = rng.normal(size=(100, 40)), rng.normal(size=100)
    other = rng.normal(size=(2000, 40)), rng.normal(size=2000)
    found = []
    for u, s in ((known, values), other):
      mu, log_sigma = _gaussian(known, values, u)
      found.append((s > mu + 1.2816 * np.exp(log_sigma)).mean())
    rates.append(found)
  inside, fresh = np.mean(rates, 0)
  assert fresh > 0.15  # nominal 10 %
  assert abs(inside - 0.1) < abs(fresh - 0.1) / 2


def test_a_population_that_is_scored_is_refused():
  x, y, s, *_ = make(200, 0)
  for population in ((x, y, s), (x[150:] + 0.0, y[150:], s[150:])):
    with pytest.raises(ValueError, match=r"have the same values as audited records"):
      quantile_network(x, y, s, population=population)


def test_arrays_that_do_not_fit_are_refused():
  x, y, s, *_ = make(100, 0)
  known = make(50, 1)[:3]
  for args, match in (
    ((x, y, s[:5]), "one per record"),
    ((x, y, np.where(s > 0, np.inf, s)), "not finite"),
    ((x[:, :5], y, s), "prepare both alike"),
    ((np.ones((100, 8), int), y, s), "categories"),
  ):
    with pytest.raises(ValueError, match=match):
      quantile_network(*args, population=known)
  with pytest.raises(ValueError, match="at least 20"):
    quantile_network(x, y, s, population=[part[:10] for part in known])


@pytest.mark.slow
def test_members_are_found_among_records_of_unequal_difficulty():
  x, y, s, centre, spread = make(2000, 0)
  members = np.arange(2000) % 2 == 0
  s = s + 2 * spread * members
  scores = quantile_network(x, y, s, population=make(3000, 1)[:3], epochs=30)
  best = auc((s - centre) / spread, members)
  assert auc(scores, members) > best - 0.06 > auc(s, members) + 0.1
  assert abs(scores[~members].mean()) < 0.3
  assert 0.7 < scores[~members].std() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("channels", [(), (1,)])
def test_images_are_read_with_their_labels(channels):
  x, y, s, _, spread = make(1500, 0, images=True)
  members = np.arange(1500) % 2 == 0
  s = s + 2 * spread * members
  others = make(2500, 1, images=True)[:3]
  x, known = (part.reshape(*part.shape, *channels) for part in (x, others[0]))
  scores = quantile_network(x, y, s, population=(known, *others[1:]), epochs=15)
  assert auc(scores, members) > auc(s, members) + 0.1
  again = quantile_network(x, y, s, population=(known, *others[1:]), epochs=15)
  np.testing.assert_array_equal(scores, again)

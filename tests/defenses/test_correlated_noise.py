"""Correlated noise in bands: coefficients, recursion, what it costs and gains."""

import gan_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_banded

from mixdef.core import Ctx, Spec
from mixdef.defenses import accounting, correlated_noise, dp_sgd, privacy
from mixdef.defenses.correlated_noise import best_bands, coefficients, error
from mixdef.learners import wgan_gp

TRAINING = {"sampling_probability": 0.01, "steps": 1000}
STEPS, BANDS, CLIP, NOISE, SIZE, BATCH = 8, 3, 0.5, 2.0, 20_000, 4


@pytest.mark.parametrize(
  ("steps", "expected", "least"),
  [
    (64, (0.708061, 0.474553, 0.397745, 0.339483), 10.5014),
    (
      128,
      (0.626449, 0.396589, 0.335968, 0.302081, 0.277540, 0.256942, 0.237467, 0.216133),
      11.7843,
    ),
  ],
)
def test_coefficients_equal_those_of_jax_privacy(steps, expected, least):
  found = coefficients(steps, len(expected))
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert error(found, steps) == pytest.approx(least, abs=1e-4)


def test_errors_of_sums_equal_check_values_and_fall_with_every_band():
  assert error(coefficients(1000, 16), 1000) == pytest.approx(39.4153, abs=1e-4)
  errors = [error(coefficients(1000, bands), 1000) for bands in (1, 2, 4)]
  assert errors[0] == pytest.approx(500.5)
  assert (np.diff(errors) < 0).all()
  # As many bands as steps, or more, find the same factorization.
  every = error(coefficients(20, 20), 20)
  assert error(coefficients(20, 30), 20) == pytest.approx(every, rel=1e-5)


def test_the_error_is_that_of_dense_matrices():
  steps, c = 9, (0.8, 0.5, 0.3)
  matrix = sum(np.diag([x] * (steps - k), -k) for k, x in enumerate(c))
  sums = np.tril(np.ones((steps, steps))) @ np.linalg.inv(matrix)
  dense = (sums**2).sum(1).mean() * np.dot(c, c)
  assert error(c, steps) == pytest.approx(dense)
  slope = correlated_noise._log_error(np.array([0.6, 0.7]), steps)[1]
  for place in range(2):
    nearby = [np.array([0.6, 0.7]) + h * np.eye(2)[place] for h in (1e-5, -1e-5)]
    up, down = (correlated_noise._log_error(ratios, steps)[0] for ratios in nearby)
    assert slope[place] == pytest.approx((up - down) / 2e-5, rel=1e-6)


def noises(c, fresh):
  """Return x [T,...] from z [T,...] by the recursion of a training."""
  state = {
    "coefficients": jnp.float32(c),
    "past": jnp.zeros((len(c) - 1, *fresh[0].shape)),
  }

  def one(state, step_and_z):
    x, state = correlated_noise.correlate(step_and_z[1], state, step_and_z[0])
    return state, x

  steps = jnp.arange(len(fresh)), jnp.asarray(fresh)
  return np.asarray(jax.lax.scan(one, state, steps)[1])


@pytest.mark.parametrize("bands", [2, 3, 7])
def test_the_recursion_solves_the_banded_system(bands):
  c = np.array(coefficients(40, bands))
  fresh = np.random.default_rng(0).normal(size=(40, 2, 3)).astype(np.float32)
  banded = np.repeat(c[:, None], 40, 1)
  expected = solve_banded((bands - 1, 0), banded, fresh.reshape(40, -1))
  found = noises(c, fresh).reshape(40, -1)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_impulse_response_and_what_it_costs_equal_check_values():
  """Columns of C three apart are orthogonal, and two apart they are not."""
  response = noises((1, 0.5, 0.25), np.eye(10, dtype=np.float32))
  first = [1, -0.5, 0, 0.125, -0.0625, 0, 0.015625, -0.0078125]
  np.testing.assert_allclose(response[:8, 0], first, atol=1e-6)
  matrix = np.linalg.inv(response.astype(np.float64))

  def squared(separation, times):
    return (matrix[:, ::separation][:, :times].sum(1) ** 2).sum()

  for times, expected in ((1, 1.3125), (2, 2.625), (4, 4.9375)):
    assert squared(3, times) == pytest.approx(expected, abs=1e-5)
  for times, expected in ((2, 3.125), (5, 8.5)):
    assert squared(2, times) == pytest.approx(expected, abs=1e-5)


def spec_of(size=SIZE, members=100):
  variables = {"params": {"w": jnp.zeros(size)}}
  return Spec(jnp.zeros((1, 2)), variables, None, members, members, 2, BATCH, 4, 2)


def noise_of_steps(part, seed=0):
  """Return what `dp_sgd` adds to a gradient of zero in every step [T,SIZE]."""
  zero = {"w": jnp.zeros(SIZE)}

  @jax.jit
  def run(key):
    def one(state, step):
      ctx = Ctx(jax.random.fold_in(key, step), step, 0, 2, 4, BATCH)
      value, state = part.grads(zero, state, ctx)
      return state, value["w"]

    state = part.init(key, spec_of())
    return jax.lax.scan(one, state, jnp.arange(STEPS))[1]

  return np.asarray(run(jax.random.key(seed)), np.float64)


def check_costs(bands):
  """The noise hides a record as a single step of noise z hides it, in each step.

  A record moves the step by at most C/B, so its squared distance from zero in standard
  deviations of the noise is that of the accountant, 1/z^2, and adds up over steps.
  """
  part = dp_sgd(NOISE, CLIP, bands=bands, delta=1e-3)
  covariance = np.cov(noise_of_steps(part), bias=True)
  inverse = np.linalg.inv(covariance) * (CLIP / BATCH) ** 2
  # Standard errors are below 1%, as 20,000 entries are drawn.
  for first in range(bands):
    turns = np.arange(first, STEPS, bands)
    assert inverse[np.ix_(turns, turns)].sum() <= 1.05 * len(turns) / NOISE**2
  assert inverse[0, 0] == pytest.approx(1 / NOISE**2, rel=0.05)


def test_noise_hides_each_turn_of_a_record_as_the_accountant_says():
  check_costs(BANDS)


def test_noise_without_the_norm_of_the_coefficients_is_caught(monkeypatch):
  def unscaled(steps, bands):
    return tuple(np.array(coefficients(steps, bands)) / coefficients(steps, bands)[0])

  monkeypatch.setattr(correlated_noise, "coefficients", unscaled)
  with pytest.raises(AssertionError):
    check_costs(BANDS)


def test_noise_of_steps_has_the_covariance_of_the_factorization():
  found = np.cov(
    noise_of_steps(dp_sgd(NOISE, CLIP, bands=BANDS, delta=1e-3)), bias=True
  )
  c = coefficients(STEPS, BANDS)
  matrix = sum(np.diag([x] * (STEPS - k), -k) for k, x in enumerate(c))
  expected = np.linalg.inv(matrix.T @ matrix) * (NOISE * CLIP / BATCH) ** 2
  # Five standard errors of a covariance of 20,000 draws.
  bound = 5 * np.sqrt(2 / SIZE) * expected.max()
  np.testing.assert_allclose(found, expected, atol=bound)
  assert expected[1, 0] < -5 * bound, "neighbouring steps cancel"


def test_one_band_is_plain_dp_sgd_bit_for_bit():
  part = dp_sgd(NOISE, CLIP, delta=1e-3, bands=1)
  assert str(part) == str(dp_sgd(NOISE, CLIP, delta=1e-3))
  assert part.finish is None
  state = part.init(jax.random.key(0), spec_of())
  assert "noises" not in state
  found = noise_of_steps(part)
  for step in range(STEPS):
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 1)[0]
    plain = jnp.float32(NOISE) * CLIP / BATCH * jax.random.normal(key, (SIZE,))
    np.testing.assert_array_equal(found[step], np.asarray(plain, np.float64))


def check_shadows_differ():
  """The noise of models trained side by side is independent."""
  part, zero = dp_sgd(NOISE, CLIP, bands=BANDS, delta=1e-3), {"w": jnp.zeros(2000)}

  def two_steps(key):
    state = part.init(key, spec_of(2000))
    sums = []
    for step in range(2):
      ctx = Ctx(jax.random.fold_in(key, step), step, 0, 2, 4, BATCH)
      value, state = part.grads(zero, state, ctx)
      sums.append(value["w"])
    return jnp.stack(sums)

  drawn = np.asarray(jax.vmap(two_steps)(jax.random.split(jax.random.key(0), 3)))
  for step in range(2):
    apart = np.corrcoef(drawn[:, step]) - np.eye(3)
    assert np.abs(apart).max() < 5 / np.sqrt(2000)


def test_shadow_models_have_their_own_noise():
  check_shadows_differ()


def test_noise_shared_by_shadow_models_is_caught(monkeypatch):
  draw = privacy._standard_normal
  shared = lambda tree, key: draw(tree, jax.random.key(0))  # noqa: E731
  monkeypatch.setattr(privacy, "_standard_normal", shared)
  with pytest.raises(AssertionError):
    check_shadows_differ()


def test_the_noises_end_with_the_training():
  part = dp_sgd(NOISE, CLIP, bands=BANDS, delta=1e-3)
  state = part.init(jax.random.key(0), spec_of())
  assert state["noises"]["past"]["w"].shape == (BANDS - 1, SIZE)
  assert "noises" not in part.finish(state, None)
  silent = dp_sgd(0, bands=BANDS, delta=1e-3)
  assert "noises" not in silent.init(jax.random.key(0), spec_of())


EPSILONS = {1: 1.8289, 2: 2.7737, 4: 4.1852, 8: 6.2284, 16: 9.0830, 32: 12.7886}


@pytest.mark.parametrize(
  ("bands", "expected"),
  [
    (100, 17.8566),  # every record of the group whose turn it is
    *(pytest.param(*row, marks=pytest.mark.slow) for row in EPSILONS.items()),
  ],
)
def test_epsilon_of_bands_equals_check_values(bands, expected):
  """The check values are on a grid ten times as coarse, which adds up to 7e-4."""
  found = accounting.spent(1.0, **TRAINING, delta=1e-5, bands=bands)
  assert expected - 7e-4 < found.pld <= expected + 5e-5
  if bands == 16:
    assert found.rdp == pytest.approx(10.176, abs=5e-4)


def test_a_record_has_a_turn_every_bands_steps():
  """Epsilon falls if bands fall, and is that of ceil(T/b) steps with b q."""
  sampled = {"sampling_probability": 0.1, "steps": 11, "delta": 1e-5}
  plain, banded = (accounting.spent(2.0, **sampled, bands=b) for b in (1, 4))
  assert plain.epsilon < banded.epsilon
  turns = {"sampling_probability": 0.4, "steps": 3, "delta": 1e-5}
  assert banded == accounting.spent(2.0, **turns)


SIZES = {"sampling_probability": BATCH / 100, "steps": 8, "bands": BANDS}


def test_dp_sgd_states_its_bands_and_their_epsilon():
  part = dp_sgd(NOISE, CLIP, bands=BANDS, delta=1e-3)
  state = part.init(jax.random.key(0), spec_of())
  stated = {name: float(value) for name, value in part.guarantee(state).items()}
  expected = accounting.epsilon(NOISE, **SIZES, delta=1e-3)
  assert stated["epsilon"] == pytest.approx(expected)
  assert (stated["steps"], stated["bands"]) == (8, BANDS)
  assert stated["sampling_probability"] == pytest.approx(0.04)


@pytest.mark.slow
@pytest.mark.heavy
def test_budgets_are_those_of_the_bands():
  state = dp_sgd(epsilon=1.0, bands=BANDS, delta=1e-3).init(None, spec_of())
  noise = accounting.noise_multiplier(1.0, **SIZES, delta=1e-3)
  assert float(state["noise_multiplier"]) == pytest.approx(noise)
  assert 0.99 < state["epsilon"] <= 1.0
  state = dp_sgd(max_tpr=0.05, bands=BANDS, delta=1e-3).init(None, spec_of())
  noise = float(state["noise_multiplier"])
  assert 0.049 < accounting.largest_tpr(0.01, noise, **SIZES) <= 0.0501


@pytest.mark.slow
@pytest.mark.parametrize(
  ("epsilon", "best", "check"),
  [
    (1.0, 4, {1: (1.4159, 1), 2: (1.8794, 0.945), 4: (2.5605, 0.924)}),
    (2.0, 8, {1: (0.9593, 1), 8: (2.0385, 0.793), 16: (2.7851, 0.815)}),
    (8.0, 32, {1: (0.5863, 1), 16: (1.0747, 0.514), 32: (1.3501, 0.505)}),
  ],
)
@pytest.mark.heavy
def test_the_best_bands_have_the_least_error_of_sums(epsilon, best, check):
  assert best_bands(epsilon, **TRAINING, delta=1e-5) == best
  errors = {}
  for bands, (noise, gain) in check.items():
    found = accounting.noise_multiplier(epsilon, **TRAINING, delta=1e-5, bands=bands)
    assert found == pytest.approx(noise, rel=2e-3)
    errors[bands] = found * np.sqrt(error(coefficients(1000, bands), 1000))
    assert errors[bands] / errors[1] == pytest.approx(gain, abs=3e-3)
  assert min(errors, key=errors.get) == best


def test_bands_out_of_range_are_refused():
  with pytest.raises(ValueError, match="bands is 0; pass an integer of at least 1"):
    dp_sgd(bands=0)
  with pytest.raises(ValueError, match=r"bands=101 .* must be in \[1, 100\]"):
    accounting.spent(1.0, **TRAINING, delta=1e-5, bands=101)
  with pytest.raises(ValueError, match="wgan_gp does not support the correlated noise"):
    wgan_gp(gan_cases.NETWORKS, optax.sgd(0.1), defense=dp_sgd(bands=2))

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbing_cases import leak, linear, overfitted

from mixdef.attacks.white_box import distance_to_confident, gradient_norm
from mixdef.defenses.averaging import ema

W = np.array([3.0, 4.0])


def two_classes(masked=False):
  """Margin (3, 4) . x of class 0; the wide range never stops a push."""
  x = np.array([[0, 0], [1, 1], [-5, -5], [5, 5], [0.2, -0.1]], np.float32)
  return linear(x, [0, 0, 0, 1, 1], np.stack([W, 0 * W], 1), masked=masked)


@pytest.fixture(scope="module")
def ensemble():
  return two_classes()


@pytest.fixture(scope="module")
def leaky():
  return overfitted()


@pytest.fixture(scope="module")
def averaged():
  return overfitted(60, 1, ema(0.9))


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "distance"), [(0.9, 0.439445), (0.99, 0.919024)])
@pytest.mark.parametrize("criterion", ["probability", "margin"])
def test_golden_distance_of_a_linear_model(ensemble, tau, distance, criterion):
  scores = distance_to_confident(ensemble, target=0, tau=tau, criterion=criterion)
  assert scores[0] == pytest.approx(-distance, abs=1e-5)


@pytest.mark.slow
def test_distances_of_a_linear_model(ensemble):
  """(log 99 - margin)/5, 0 where that is negative, infinite beyond 100 steps of .05."""
  needed = np.log(99) - W @ ensemble.data.x.T * np.array([1, 1, 1, -1, -1])
  expected = np.maximum(needed / 5, 0)
  expected[expected > 5] = np.inf
  np.testing.assert_array_equal(np.isinf(expected), [False, False, True, True, False])
  scores = distance_to_confident(ensemble, target=0)
  np.testing.assert_allclose(-scores, expected, atol=1e-5)
  assert scores[1] == 0
  away = distance_to_confident(ensemble, target=0, direction="away")
  flipped = np.maximum((2 * np.log(99) - needed) / 5, 0)
  flipped[flipped > 5] = np.inf
  np.testing.assert_allclose(away, flipped, atol=1e-5)


def test_steps_infinity_norm_and_predicted_label(ensemble):
  # The sign step (.05, .05) raises the margin by .35.
  most = distance_to_confident(ensemble, target=0, norm="linf")
  assert most[0] == pytest.approx(-np.log(99) / 7, abs=1e-5)
  # ceil(.919024 / .05) = 19 steps; a limit of 18 does not arrive.
  steps = distance_to_confident(ensemble, target=0, score="steps", steps=19)
  assert (steps[0], steps[1]) == (-19, 0)
  short = distance_to_confident(ensemble, target=0, score="steps", steps=18)
  assert (short[0], short[1]) == (-np.inf, 0)
  # Of the class predicted: record 2 is sure of class 1, and so is 3 of class 0.
  own = distance_to_confident(ensemble, target=0, label="predicted")
  np.testing.assert_array_equal(own[[2, 3]], [0, 0])


def test_pushes_end_at_the_corner_of_a_picture():
  """Two pixels, margin 10(x1 + x2 - 1.2): p = .99 at a sum of 1.2 + log(99)/10."""
  x = np.array([[[[0], [255]]], [[[0], [0]]], [[[255], [255]]]], np.uint8)
  kernel = 10 * np.array([[1.0, 0.0], [1.0, 0.0]])
  ensemble = linear(x, [0, 0, 0], kernel, [-12.0, 0.0])
  total = 1.2 + np.log(99) / 10
  scores = distance_to_confident(ensemble, target=0)
  # The second pixel is full: the first one does it alone.
  expected = [total - 1, total / np.sqrt(2), 0]
  np.testing.assert_allclose(-scores, expected, atol=1e-4)
  # Two full pixels reach a margin of 8 only.
  never = distance_to_confident(ensemble, target=0, tau=0.9999)
  np.testing.assert_array_equal(never, -np.inf)


def test_a_saturated_softmax_can_be_climbed():
  """Margins of 1000: every probability is 0 or 1 in float32."""
  x = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
  steep = linear(x, [1, 0], [[1000.0, 0.0], [0.0, 0.0]])
  scores = distance_to_confident(steep, target=0)
  np.testing.assert_allclose(-scores, 1 + np.log(99) / 1000, rtol=1e-5)
  faint = linear(x, [1, 0], [[1e-25, 0.0], [0.0, 0.0]], [-10.0, 0.0])
  assert distance_to_confident(faint, target=0)[1] == -np.inf


@pytest.mark.slow
def test_a_push_in_a_network_arrives_just_there(leaky):
  """Rebuild each push with its own loop of gradients and no tricks."""
  state = jax.tree.map(lambda leaf: leaf[0], leaky.states)
  learner, data = leaky.source, leaky.data

  @jax.jit
  def loss(x, y):
    return -learner.predict(state, x[None], raw=True)[0, y]

  slope = jax.jit(jax.grad(loss))
  records = np.array([5, 17, 60, 61, 62, 159])
  scores = distance_to_confident(leaky, target=0, records=records, tau=0.9)
  low, high = data.x.min(0), data.x.max(0)
  for i in records:
    now, steps = data.x[i], 0
    while loss(now, data.y[i]) > -np.log(0.9):
      gradient = slope(now, data.y[i])
      before, steps = now, steps + 1
      now = np.clip(now - 0.05 * gradient / np.linalg.norm(gradient), low, high)
    if not steps:
      assert scores[i] == 0
      continue
    shares = np.linspace(0, 1, 501)[:, None]
    segment = before + shares * (now - before)
    first = next(x for x in segment if loss(x, data.y[i]) <= -np.log(0.9))
    assert -scores[i] == pytest.approx(np.linalg.norm(first - data.x[i]), abs=2e-3)


def test_what_is_done_to_the_answers_at_release_is_no_protection(ensemble):
  masked = two_classes(masked=True)
  for attack in (distance_to_confident, gradient_norm):
    np.testing.assert_array_equal(attack(masked, target=0), attack(ensemble, target=0))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_norm_of_a_linear_model(ensemble, norm):
  """grad_x = -(1 - p_y) s W; for weights, (1 - p_y) times x and 1, once a class."""
  margin = W @ ensemble.data.x.T * np.array([1, 1, 1, -1, -1])
  doubt = 1 / (1 + np.exp(margin))
  order = {"l1": 1, "l2": 2}[norm]
  by_input = gradient_norm(ensemble, target=0, norm=norm)
  np.testing.assert_allclose(-by_input, doubt * np.linalg.norm(W, order), rtol=1e-5)
  rows = np.column_stack([ensemble.data.x, np.ones(5)])
  sizes = np.linalg.norm(np.concatenate([rows, rows], 1), order, axis=1)
  by_weight = gradient_norm(ensemble, target=0, wrt="weights", norm=norm)
  np.testing.assert_allclose(-by_weight, doubt * sizes, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wrt", ["input", "weights"])
def test_gradient_norm_is_that_of_one_record_at_a_time(leaky, wrt):
  state = jax.tree.map(lambda leaf: leaf[1], leaky.states)

  @jax.jit
  def loss(params, x, y):
    return -leaky.source.predict(state._replace(params=params), x[None], raw=True)[0, y]

  slope = jax.jit(jax.grad(loss, 1 if wrt == "input" else 0))
  records = np.arange(0, 160, 20)
  scores = gradient_norm(leaky, target=1, records=records, wrt=wrt, norm="l1")
  for i in records:
    leaves = jax.tree.leaves(slope(state.params, leaky.data.x[i], leaky.data.y[i]))
    naive = sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in leaves)
    assert -scores[i] == pytest.approx(naive, rel=1e-3, abs=1e-5)
  assert np.isnan(np.delete(scores, records)).all()


@pytest.mark.slow
def test_gradients_of_sure_records_keep_their_order():
  """(1 - p_y) of e^-200 is no float32, and its square none either."""
  x = np.array([[2.0], [1.0], [0.5], [-1.0]], np.float32)
  ensemble = linear(x, [0, 0, 0, 0], [[100.0, 0.0]])
  scores = gradient_norm(ensemble, target=0)
  np.testing.assert_allclose(np.log(-scores[:3] / 100), -100 * x[:3, 0], rtol=1e-6)
  assert scores[3] == pytest.approx(-100)


@pytest.mark.slow
def test_pitfall_03_averaged_weights_are_what_is_differentiated(averaged):
  """Compare with an undefended model whose weights are the average."""
  plain = overfitted(60, 1)
  average = averaged.states.defense["ema"]["params"]
  released = dataclasses.replace(plain, held=plain.states._replace(params=average))
  options = {"records": np.arange(12)}
  for wrt in ("input", "weights"):
    np.testing.assert_allclose(
      gradient_norm(averaged, target=0, wrt=wrt, **options),
      gradient_norm(released, target=0, wrt=wrt, **options),
      rtol=1e-4,
    )
  np.testing.assert_allclose(
    distance_to_confident(averaged, target=0, **options),
    distance_to_confident(released, target=0, **options),
    atol=1e-4,
  )
  end = gradient_norm(plain, target=0, wrt="weights", **options)
  assert not np.allclose(
    gradient_norm(averaged, target=0, wrt="weights", **options), end, rtol=0.1
  )


@pytest.mark.parametrize("wrt", ["input", "weights"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_members_of_an_overfitted_model_have_small_gradients(leaky, wrt, norm):
  scores = gradient_norm(leaky, target=0, wrt=wrt, norm=norm)
  assert leak(scores, leaky.members[0]) > 0.7
  anyone = np.random.default_rng(5).random(len(scores)) < 0.5
  assert leak(scores, anyone) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("direction", ["toward", "away"])
@pytest.mark.parametrize("criterion", ["probability", "margin"])
def test_members_of_an_overfitted_model_need_another_push(leaky, direction, criterion):
  scores = distance_to_confident(
    leaky, target=0, direction=direction, criterion=criterion
  )
  assert leak(scores, leaky.members[0]) > 0.6
  anyone = np.random.default_rng(5).random(len(scores)) < 0.5
  assert leak(scores, anyone) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("attack", [distance_to_confident, gradient_norm])
def test_scores_do_not_depend_on_the_others_attacked(leaky, attack):
  scores = attack(leaky, target=1)
  records = np.array([159, 3, 140, 0])
  some = attack(leaky, target=1, records=records)
  np.testing.assert_array_equal(some[records], scores[records])
  assert scores.shape == (160,)
  assert scores.dtype == np.float64


@pytest.mark.parametrize("attack", [distance_to_confident, gradient_norm])
def test_a_model_that_diverged_is_refused(attack, ensemble):
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, ensemble.states.params)
  broken = dataclasses.replace(ensemble, held=ensemble.states._replace(params=broken))
  with pytest.raises(ValueError, match="the target outputs NaN"):
    attack(broken, target=0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tau": 1.0}, "tau is 1.0; pass a number of at least 0.5 and below 1"),
    ({"step": 0.0}, "step is 0.0; pass a number above 0"),
    ({"norm": "l1"}, "norm is 'l1'; choose from 'l2', 'linf'"),
    ({"direction": "up"}, "direction is 'up'; choose from 'toward', 'away'"),
    ({"target": 2}, "target=2 is not a model"),
  ],
)
def test_wrong_options_are_named(ensemble, options, message):
  with pytest.raises(ValueError, match=message):
    distance_to_confident(ensemble, **{"target": 0, **options})

"""Rules of clipping: sensitivity, noise and the private count of adaptive clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from per_example_cases import CTX, B, K, Small, cross_entropy, init, make_batch

import mixdef
from mixdef.core.hooks import Spec
from mixdef.defenses import accounting, clipping, dp_sgd
from mixdef.models import mlp

CLIP = 0.3
SPEC = Spec(jnp.zeros((1, 2)), None, None, 100, 100, 3, B, 5, 2)
LARGE = SPEC._replace(batch_size=50)
RULES = ["flat", "automatic", "adaptive"]
FACTORS = {
  "flat": lambda norm: min(1, CLIP / norm) if norm else 1,
  "automatic": lambda norm: CLIP / (norm + 0.01),
}
FACTORS["adaptive"] = FACTORS["flat"]


def made(rule, noise=0.0, spec=SPEC, **options):
  """A part, and its first state."""
  part = dp_sgd(noise, CLIP, clipping=rule, **options)
  return part, part.init(jax.random.key(0), spec)


def outputs(rule, estimator, weights, batch, model, params):
  """B times the gradient of every row of weights, and the counts if there are any."""
  part, state = made(rule, estimator=estimator)
  run = part.value_and_grad(cross_entropy(model))

  def one(weight):
    value = run(params, batch._replace(weight=weight), state, CTX)[1]
    grads, extras = value if rule == "adaptive" else (value, {"count": jnp.zeros(())})
    count = extras["count"]
    return B * jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)]), count

  return [np.asarray(out, np.float64) for out in jax.jit(jax.vmap(one))(weights)]


def mixed_batch():
  """Records with large, small and vanishing gradients, one of which is broken."""
  batch = make_batch()
  scales = jnp.array([100.0, 1, 1, 1e-3, 0, 1]).reshape(-1, 1, 1, 1)
  x, y = (batch.x * scales).at[5].set(jnp.nan), batch.y.at[4].set(1 / K)
  return batch._replace(x=x, y=y)


@pytest.mark.parametrize(
  "rule", [*(pytest.param(r, marks=pytest.mark.slow) for r in RULES[:2]), "adaptive"]
)
def test_a_record_moves_the_sum_by_at_most_the_clip(rule):
  """By both estimators, and as a loop over the records says."""
  model, batch = Small(), mixed_batch()
  # Without biases, all classes are as likely for a record of zeros as its label says.
  params = jax.tree.map(lambda p: 30 * p if p.ndim > 1 else 0 * p, init(model))
  weights = jnp.stack([jnp.ones(B), *(1 - jnp.eye(B)), *jnp.eye(B)])
  given = weights, batch, model, params
  sums, counts = outputs(rule, "ghost", *given)
  other, other_counts = outputs(rule, "microbatch", *given)
  np.testing.assert_allclose(sums, other, atol=1e-6)
  np.testing.assert_array_equal(counts, other_counts)

  def gradient(row):
    alone = jax.tree.map(lambda leaf: leaf[None], row)
    grads = jax.grad(lambda p: cross_entropy(model)(p, alone, CTX)[0][0])(params)
    return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

  each = np.asarray(jax.jit(jax.vmap(gradient))(batch), np.float64)
  norms = np.linalg.norm(each, axis=1)
  assert norms[:3].min() > CLIP
  assert norms[4] < 1e-6
  for i in range(B):
    moved = np.linalg.norm(sums[0] - sums[1 + i])
    assert moved <= CLIP * (1 + 1e-5)
    own = np.zeros_like(sums[0])
    if i < 5:
      own = FACTORS[rule](norms[i]) * each[i]
    np.testing.assert_allclose(sums[1 + B + i], own, atol=1e-5 * CLIP)
  if rule == "adaptive":
    below = np.where(norms[:5] <= CLIP, 0.5, -0.5)
    np.testing.assert_array_equal(counts[1 + B : -1], below)
    assert counts[-1] == 0, "a record that is skipped is not counted"
    assert counts[0] == counts[B] == below.sum()
    assert np.abs(counts[0] - counts[1 : 1 + B]).max() == 0.5


@pytest.mark.parametrize("rule", RULES)
def test_the_noise_of_every_leaf_has_the_deviation_that_is_accounted(rule):
  noise = 2.0
  part, state = made(rule, noise, LARGE)
  zeros = {"a": jnp.zeros((300, 300)), "b": jnp.zeros(90_000)}
  value = (zeros, {"count": jnp.float32(0)}) if rule == "adaptive" else zeros
  noised, _ = part.grads(value, state, CTX)
  expected = noise * CLIP / 50
  if rule == "adaptive":
    expected = CLIP / 50 / math.sqrt(noise**-2 - (2 * 50 / 20) ** -2)
  for leaf in noised.values():
    assert float(leaf.std()) == pytest.approx(expected, rel=0.01)
  assert abs(np.corrcoef(noised["a"].ravel(), noised["b"])[0, 1]) < 0.02
  assert float(part.noise_std(state)) == pytest.approx(expected, rel=1e-6)
  assert float(state["noise_multiplier"]) == noise, "the total is accounted"
  sizes = {"sampling_probability": 0.5, "steps": 10, "delta": 1e-5}
  assert float(state["epsilon"]) == pytest.approx(accounting.epsilon(noise, **sizes))


def fractions(step, count, batch_size):
  """Mean and deviation of the fraction that a step estimates, over 20,000 keys."""
  keys = jax.random.split(jax.random.key(1), 20_000)
  clips = jax.vmap(lambda key: step(1.0, 1.0, count, key, batch_size))(keys)
  found = 0.5 - np.log(np.asarray(clips, np.float64)) / 0.2
  return found.mean(), found.std()


def obeys(step, drawn, batch_size=50):
  """Whether a step of the clip has the law that is accounted for.

  All drawn records are below the clip, and B is the public batch size.
  """
  mean, std = fractions(step, drawn / 2, batch_size)
  expected = 0.5 + drawn / (2 * batch_size)
  return abs(mean - expected) < 0.002 and abs(std / 0.05 - 1) < 0.03


def test_the_count_is_noised_and_divided_by_the_public_batch_size(monkeypatch):
  assert obeys(clipping.next_clip, drawn=30)

  def by_realised(clip, start, count, key, batch_size):
    del batch_size
    return clipping.next_clip(clip, start, count, key, 30)

  assert not obeys(by_realised, drawn=30)
  monkeypatch.setattr(clipping, "_SHARE", math.inf)
  assert not obeys(clipping.next_clip, drawn=30), "the count is not noised"


def test_the_noise_of_the_count_is_not_that_of_a_gradient():
  part, state = made("adaptive", 2.0, LARGE)
  keys = jax.random.split(jax.random.key(0), 2000)

  def one(key):
    value = {"w": jnp.zeros(3)}, {"count": jnp.float32(0)}
    value, after = part.grads(value, state, CTX._replace(key=key))
    return jnp.append(value["w"], jnp.log(after["clip"]))

  drawn = np.corrcoef(np.asarray(jax.jit(jax.vmap(one))(keys)).T)
  assert np.abs(drawn[3, :3]).max() < 5 / math.sqrt(2000)


def test_the_clip_moves_to_the_median_of_fixed_norms():
  norms = np.random.default_rng(0).lognormal(1.0, 1.0, 256).astype(np.float32)
  keys = jax.random.split(jax.random.key(2), 150)
  start = 0.1

  def step(clip, key):
    count = clipping.count_below(jnp.append(norms, jnp.nan), clip)
    clip = clipping.next_clip(clip, start, count, key, 256)
    return clip, clip

  _, path = jax.jit(lambda: jax.lax.scan(step, jnp.float32(start), keys))()
  clip = start
  for key, found in zip(keys, path, strict=True):
    below = sum(0.5 if norm <= clip else -0.5 for norm in norms)
    drawn = float(jax.random.normal(clipping.fold_in_name(key, "count")))
    fraction = (below + 256 / 20 * drawn) / 256 + 0.5
    clip *= math.exp(-0.2 * (min(max(fraction, 0), 1) - 0.5))
    assert float(found) == pytest.approx(clip, rel=1e-3)
    clip = float(found)
  last = np.asarray(path)[-50:]
  assert np.mean(norms <= last.mean()) == pytest.approx(0.5, abs=0.04)
  assert last.std() < 0.1 * last.mean()


def test_the_clip_stays_in_its_range():
  low, high = (
    clipping.next_clip(at, 1.0, count, jax.random.key(0), 50)
    for at, count in ((1e-3, 25.0), (1e3, -25.0))
  )
  assert (float(low), float(high)) == pytest.approx((1e-3, 1e3))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"clipping": "median"}, "'flat', 'automatic', 'adaptive'"),
    ({"clipping": "automatic"}, "clip=inf clips nothing, but clipping='automatic'"),
    ({"clipping": "adaptive"}, "finite clip"),
  ],
)
def test_rules_that_cannot_be_used_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    dp_sgd(0, math.inf, **options)


def test_more_noise_than_the_count_can_pay_is_refused():
  with pytest.raises(ValueError, match="below batch_size / 10 = 5, not 5: increase"):
    made("adaptive", 5.0, LARGE)
  made("automatic", 5.0, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["automatic", "adaptive"])
@pytest.mark.parametrize(
  "options",
  [
    {"epsilon": 3.0},
    {"max_tpr": 0.2, "at_fpr": 0.05, "estimator": "microbatch"},
    {"multiplicity": 2},
    {"unit": "person", "per_person": 2},
  ],
  ids=lambda options: next(iter(options)),
)
def test_a_training_with_a_rule(rule, options):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(200, 4)), rng.integers(0, 2, 200)
  groups = np.arange(200) // 2
  data = mixdef.Dataset.from_arrays(x, (x[:, 0] > 0) & (y >= 0), groups=groups)
  part = dp_sgd(clipping=rule, clip=0.5, delta=1e-3, **options)
  learner = mixdef.classifier(mlp(4, num_classes=2), optax.adam(0.1), part)
  run = mixdef.fit(learner, data, epochs=10, batch_size=50, noise_seed=0)
  state = run.state.defense["dp_sgd"]
  assert not run.diverged
  assert run.accuracy(data) > 0.7
  assert (rule == "adaptive") == ("clip" in state)
  if rule == "adaptive":
    assert float(state["clip"]) != 0.5
  assert run.guarantee["accounting"]["noise_multiplier"] > 0


@pytest.mark.slow
def test_the_noise_of_adaptive_clipping_can_be_swept():
  rng = np.random.default_rng(0)
  data = mixdef.Dataset.from_arrays(rng.normal(size=(60, 4)), rng.integers(0, 2, 60))

  def learner(noise):
    part = dp_sgd(noise, clipping="adaptive", delta=1e-3)
    return mixdef.classifier(mlp(4, num_classes=2), optax.sgd(0.1), part)

  noises = np.array([0.0, 1.0, 9.0], np.float32)
  ensemble = mixdef.fit_many(
    learner,
    data,
    np.ones((3, 60), bool),
    sweep={"noise": noises},
    **{"epochs": 1, "batch_size": 30, "num_members": 60, "noise_seed": 0},
  )
  assert [run.diverged for run in ensemble] == [False, False, True]
  sizes = {"sampling_probability": 0.5, "steps": 2, "delta": 1e-3}
  stated = ensemble[1].guarantee["epsilon"]
  assert stated == pytest.approx(accounting.epsilon(1.0, **sizes), rel=1e-4)


def test_correlated_noise_needs_one_norm():
  with pytest.raises(ValueError, match="one clipping norm for all steps"):
    dp_sgd(clipping="adaptive", bands=2)

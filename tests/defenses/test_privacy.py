import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from mixdef.core.chaining import chain, from_optax
from mixdef.core.hooks import Batch, Ctx, Data, Defense, Rows, Spec
from mixdef.core.randomness import batch_keys, fold_in_name, row_keys
from mixdef.core.traits import Traits
from mixdef.defenses import accounting
from mixdef.defenses.augment import gaussian_noise
from mixdef.defenses.labels import disturb_label
from mixdef.defenses.mixing import mixup
from mixdef.defenses.privacy import dp_sgd
from mixdef.learners.classifier import classifier

N, B, K, WIDTH = 12, 6, 3, 5
CLIP = 0.1


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.Dense(8)(x)))


class NormNet(nn.Module):
  @nn.compact
  def __call__(self, x, train=True, weight=None):
    mask = None if weight is None else weight[:, None] > 0
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x), mask=mask)
    return nn.Dense(K)(x)


def make_data(seed=0):
  rng = np.random.default_rng(seed)
  return Data(
    x=jnp.asarray(rng.normal(size=(N, WIDTH)), jnp.float32),
    y=jnp.asarray(rng.integers(0, K, N)),
    auxiliary=jnp.zeros(N, bool),
  )


def make_spec(**changes):
  spec = Spec(
    example=jnp.zeros((1, WIDTH)),
    variables=None,
    table=None,
    num_records=N,
    num_members=N,
    num_classes=K,
    batch_size=B,
    steps_per_epoch=2,
    epochs=3,
  )
  return spec._replace(**changes)


def make_rows(weight=None):
  weight = jnp.ones(B) if weight is None else jnp.asarray(weight, jnp.float32)
  return Rows(jnp.arange(B), weight, jnp.zeros(B))


def learner_of(defense, model=None, rate=1.0):
  return classifier(model or Net(), optax.sgd(rate), defense)


def init(learner, seed=0, **changes):
  spec = make_spec(**changes)
  return jax.jit(lambda key: learner.init(key, spec))(jax.random.key(seed))


def step(learner, state, data=None, rows=None, seed=7):
  ctx = Ctx(jax.random.key(seed), 0, 0, 3, 1, B)
  return jax.jit(learner.step)(state, data or make_data(), rows or make_rows(), ctx)


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def moved(before, after):
  return flat(after.params) - flat(before.params)


def spent(noise, **changes):
  spec = make_spec(**changes)
  return accounting.epsilon(
    noise,
    sampling_probability=spec.batch_size / spec.num_members,
    steps=spec.epochs * spec.steps_per_epoch,
    delta=1e-5,
  )


@pytest.mark.slow
def test_a_step_is_that_of_optax_without_noise():
  aggregate = optax.contrib.differentially_private_aggregate(
    CLIP, 0.0, jax.random.key(0)
  )
  theirs = from_optax("optax_dp", aggregate, per_example=True)
  updates = []
  for part in (dp_sgd(0, CLIP), dp_sgd(0, CLIP, estimator="microbatch"), theirs):
    learner = learner_of(part)
    state = init(learner)
    updates.append(moved(state, step(learner, state)[0]))
  np.testing.assert_allclose(updates[0], updates[2], atol=1e-7)
  np.testing.assert_allclose(updates[1], updates[2], atol=1e-7)


@pytest.mark.parametrize("estimator", ["ghost", "microbatch"])
def test_pitfall_91_a_record_moves_the_step_by_at_most_clip_over_batch(estimator):
  learner = learner_of(dp_sgd(0, CLIP, estimator=estimator))
  state = init(learner)
  everyone = moved(state, step(learner, state)[0])
  for out in range(B):
    weight = np.arange(B) != out
    without = moved(state, step(learner, state, rows=make_rows(weight))[0])
    distance = np.linalg.norm(everyone - without)
    assert distance <= CLIP / B * (1 + 1e-4)
    assert distance == pytest.approx(CLIP / B, rel=1e-4), "these records are clipped"


def test_the_divisor_is_the_public_batch_size():
  """A padded batch [6] of a public size of 4 is divided by 4."""
  learner = learner_of(dp_sgd(0, CLIP))
  rows = make_rows([1, 1, 1, 0, 0, 0])
  updates = []
  for size in (4, 8):
    state = init(learner, batch_size=size)
    updates.append(moved(state, step(learner, state, rows=rows)[0]))
  np.testing.assert_allclose(updates[0], 2 * updates[1], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_an_empty_poisson_batch_takes_a_step_of_noise_alone():
  learner = learner_of(dp_sgd(2.0, CLIP))
  state = init(learner)
  after, metrics = step(learner, state, rows=make_rows(np.zeros(B)))
  assert np.isfinite(flat(after.params)).all()
  assert np.any(moved(state, after))
  assert float(metrics["loss"]) == 0


@pytest.mark.slow
def test_pitfall_88_vmapped_models_get_their_own_noise_at_every_step():
  learner = learner_of(dp_sgd(1.0, CLIP))
  spec, data = make_spec(), make_data()
  key = jax.random.key(0)
  same = jax.vmap(lambda _: learner.init(key, spec))(jnp.arange(3))
  run = jax.jit(
    jax.vmap(learner.step, in_axes=(0, None, None, Ctx(0, *[None] * 5)), out_axes=0)
  )
  state, noises = same, []
  for number in range(3):
    keys = jax.random.split(jax.random.fold_in(key, number), 3)
    after, _ = run(same, data, make_rows(), Ctx(keys, number, 0, 3, 1, B))
    update = jax.vmap(
      lambda p: jnp.concatenate([q.ravel() for q in jax.tree.leaves(p)])
    )
    noises.extend(np.asarray(update(after.params) - update(state.params)))
  noises = np.stack(noises)  # the gradient is the same in all nine
  apart = np.abs(noises[:, None] - noises[None]).max(-1)
  assert (apart[~np.eye(9, dtype=bool)] > 1e-3).all()


def test_pitfall_89_noise_without_a_key_is_an_error():
  part = dp_sgd(1.0, CLIP)
  state = {"noise_multiplier": 1.0, "batch_size": 1.0}
  with pytest.raises((TypeError, ValueError)):
    part.grads({"w": jnp.zeros(3)}, state, Ctx(None, 0, 0, 1, 1, B))
  learner = learner_of(part)
  with pytest.raises((TypeError, ValueError)):
    learner.step(init(learner), make_data(), make_rows(), Ctx(None, 0, 0, 1, 1, B))


@pytest.mark.parametrize("estimator", ["ghost", "microbatch"])
def test_pitfall_90_bad_records_add_nothing_and_are_counted(estimator):
  learner = learner_of(dp_sgd(0, CLIP, estimator=estimator))
  state = init(learner)
  data = make_data()
  data = data._replace(x=data.x.at[1].set(jnp.nan).at[4].set(jnp.inf))
  rows = make_rows([1, 1, 1, 1, 1, 0])
  after, metrics = step(learner, state, data, rows)
  clean, _ = step(learner, state, rows=make_rows([1, 0, 1, 1, 0, 0]))
  np.testing.assert_allclose(flat(after.params), flat(clean.params), rtol=1e-6)
  assert int(after.defense["dp_sgd"]["skipped"]) == 2
  assert int(clean.defense["dp_sgd"]["skipped"]) == 0
  assert np.isfinite(float(metrics["loss"]))
  again, _ = step(learner, after, data, rows)
  assert int(again.defense["dp_sgd"]["skipped"]) == 4


def part_that_couples(what, name):
  traits = Traits(couples=what)
  return Defense(name, text=name, batch=lambda b, s, c: b, traits=traits)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ghost", "microbatch"])
def test_pitfall_92_equal_views_are_one_view(estimator):
  updates = []
  for multiplicity in (1, 4):
    options = {"estimator": estimator, "multiplicity": multiplicity}
    learner = learner_of(dp_sgd(0, CLIP, **options))
    state = init(learner)
    after, metrics = step(learner, state, rows=make_rows([1, 1, 1, 1, 0, 1]))
    updates.append([moved(state, after), metrics["loss"], metrics["accuracy"]])
  for one, four in zip(*updates, strict=True):
    np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ghost", "microbatch"])
def test_pitfall_92_a_step_clips_the_mean_of_views_that_differ(estimator):
  """Against a loop over records: gradient of the mean of three noisy views, clipped."""
  augment = gaussian_noise(1.0, clip=False)
  part = dp_sgd(0, CLIP, estimator=estimator, multiplicity=3)
  learner, data = learner_of(chain(augment, part)), make_data()
  state = init(learner)
  update = moved(state, step(learner, state)[0])
  keys = row_keys(own_key("gaussian_noise"), jnp.arange(B))

  def view_loss(params, i, v):
    key = keys[i]
    if v > 0:
      key = batch_keys(own_key("gaussian_noise"), views_of([i], [v]))[0]
    x = data.x[i] + jax.random.normal(key, (WIDTH,))
    return -jax.nn.log_softmax(Net().apply({"params": params}, x))[data.y[i]]

  expected = 0
  for i in range(B):
    g = sum(flat(jax.grad(view_loss)(state.params, i, v)) for v in range(3)) / 3
    expected -= g * min(1, CLIP / np.linalg.norm(g)) / B
  np.testing.assert_allclose(update, expected, atol=1e-6)
  for out in range(B):
    rows = make_rows(np.arange(B) != out)
    distance = np.linalg.norm(update - moved(state, step(learner, state, rows=rows)[0]))
    assert distance <= CLIP / B * (1 + 1e-4), "one record has one clipping norm"


def own_key(name):
  """The key of a part's batch hook in `step`."""
  return fold_in_name(jax.random.key(7), "batch", name)


def views_of(index, view):
  rows = jnp.asarray(index)
  ones = jnp.ones(len(index))
  x, y = jnp.zeros((len(index), WIDTH)), jax.nn.one_hot(rows % K, K)
  return Batch(x, y, rows, ones, 0 * ones, rows, ones, jnp.asarray(view))


@pytest.mark.slow
def test_every_view_draws_its_own_augmentation_wherever_dp_sgd_stands():
  parts = [gaussian_noise(0.5, clip=False), disturb_label(0.5), dp_sgd(multiplicity=16)]
  batch = views_of(range(2), [0, 0])._replace(view=None)
  ctx = Ctx(jax.random.key(7), 0, 0, 1, 1, B)
  state = {part.name: () for part in parts}
  changed = chain(*parts).batch(batch, state, ctx)
  np.testing.assert_array_equal(changed.index, np.repeat([0, 1], 16))
  np.testing.assert_array_equal(changed.view, np.tile(np.arange(16), 2))
  np.testing.assert_array_equal(changed.weight, np.ones(32))
  assert len(np.unique(changed.x[:, 0])) == 32
  assert 2 < len(np.unique(changed.y, axis=0)) <= 3
  first = chain(*parts[::-1]).batch(batch, state, ctx)
  np.testing.assert_array_equal(first.x, changed.x)
  alone = chain(*parts[:2]).batch(batch, state, ctx)
  np.testing.assert_array_equal(changed.x[::16], alone.x)
  np.testing.assert_array_equal(changed.y[::16], alone.y)


def test_keys_of_views_are_no_keys_that_a_part_splits_off():
  key = jax.random.key(0)
  keys = batch_keys(key, views_of([4] * 3, range(3)))
  assert keys[0] == row_keys(key, jnp.array([4]))[0]
  split = jax.random.split(keys[0], 4)
  every = jax.random.key_data(jnp.concatenate([keys, split]))
  assert len(np.unique(every, axis=0)) == 7


def test_views_change_neither_epsilon_nor_what_is_counted():
  learner = learner_of(dp_sgd(1.0, CLIP, multiplicity=4))
  state = init(learner)
  assert float(state.defense["dp_sgd"]["epsilon"]) == pytest.approx(spent(1.0))
  data = make_data()
  data = data._replace(x=data.x.at[1].set(jnp.nan).at[4].set(jnp.inf))
  after, _ = step(learner, state, data, make_rows([1, 1, 1, 1, 1, 0]))
  assert int(after.defense["dp_sgd"]["skipped"]) == 2


@pytest.mark.slow
def test_a_mixer_that_reorders_the_rows_is_refused_with_views():
  private = dp_sgd(guarantee=False, multiplicity=2)
  learner = learner_of(chain(mixup(pairs=True), private))
  with pytest.raises(ValueError, match="drop pairs"):
    step(learner, init(learner))
  learner = learner_of(chain(mixup(), private))
  state = init(learner)
  assert np.isfinite(flat(step(learner, state)[0].params)).all()


def test_pitfall_93_parts_that_mix_records_are_refused():
  mixer = part_that_couples("records", "mixer")
  coupled = part_that_couples("batch", "pair")
  with pytest.raises(ValueError, match="guarantee=False"):
    chain(mixer, dp_sgd())
  with pytest.raises(ValueError, match="whole batch"):
    chain(coupled, dp_sgd())
  with pytest.raises(ValueError, match="whole batch"):
    chain(coupled, dp_sgd(guarantee=False))
  learner = learner_of(chain(mixer, dp_sgd(1.0, guarantee=False)))
  state = init(learner)
  after, _ = step(learner, state)
  assert np.isfinite(flat(after.params)).all()
  assert math.isnan(float(after.defense["dp_sgd"]["epsilon"]))
  assert learner.traits.no_guarantee


class Centred(nn.Module):
  """Keeps a running mean of its records."""

  @nn.compact
  def __call__(self, x, train=False):
    mean = self.variable("running", "mean", jnp.zeros, x.shape[-1])
    if train:
      mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
    return nn.Dense(K)(x - mean.value)


@pytest.mark.parametrize(
  ("model", "kept"), [(NormNet(), "batch_stats"), (Centred(), "running")]
)
def test_pitfall_94_batch_norm_and_all_state_without_noise_are_refused(model, kept):
  instead = "use nn.GroupNorm or nn.LayerNorm instead of BatchNorm"
  message = f"the model keeps {kept}, as BatchNorm does.*: {instead}"
  with pytest.raises(ValueError, match=message):
    init(learner_of(dp_sgd(), model))
  assert kept in init(learner_of(None, model)).stats


@pytest.mark.slow
@pytest.mark.parametrize(
  "options", [{}, {"estimator": "microbatch", "microbatch_size": 2}]
)
def test_pitfall_95_noise_is_added_once_after_the_sum(options):
  """Its size is z C / B, whatever the number of records or microbatches."""
  noise, trials = 3.0, 200
  learner = learner_of(dp_sgd(noise, CLIP, **options))
  quiet = learner_of(dp_sgd(0, CLIP))
  state = init(learner)
  center = flat(step(quiet, init(quiet))[0].params)
  data, rows = make_data(), make_rows()
  keys = jax.random.split(jax.random.key(1), trials)
  run = jax.vmap(
    lambda key: learner.step(state, data, rows, Ctx(key, 0, 0, 3, 1, B))[0]
  )
  draws = jax.vmap(lambda p: jnp.concatenate([q.ravel() for q in jax.tree.leaves(p)]))(
    jax.jit(run)(keys).params
  )
  draws = np.asarray(draws) - center
  deviation = noise * CLIP / B
  # 200 x 75 draws: the standard deviation has a standard error of 0.6 %.
  assert draws.std() == pytest.approx(deviation, rel=0.03)
  assert abs(draws.mean()) < 5 * deviation / math.sqrt(draws.size)
  # Entries are independent: neighbours, and the leaves, do not share draws.
  correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
  assert np.abs(correlation).max() < 5.5 / math.sqrt(trials)


def test_pitfall_96_the_accountant_uses_the_sampler_of_the_training():
  sizes = {"num_members": 10_520, "batch_size": 128, "steps_per_epoch": 83}
  state = init(learner_of(dp_sgd(1.0)), **sizes, epochs=100).defense["dp_sgd"]
  assert float(state["epsilon"]) == pytest.approx(spent(1.0, **sizes, epochs=100))
  assert float(state["rdp"]) == pytest.approx(7.6, rel=5e-3)
  assert float(state["pld"]) == float(state["epsilon"]) < 7.6
  assert dp_sgd().traits.poisson


def test_epsilon_calibrates_the_noise():
  sizes = {"num_members": 10_520, "batch_size": 128, "steps_per_epoch": 83}
  state = init(learner_of(dp_sgd(epsilon=1.0)), **sizes, epochs=100).defense["dp_sgd"]
  assert float(state["noise_multiplier"]) == pytest.approx(4.21, abs=0.01)
  assert 0.99 < float(state["epsilon"]) <= 1.0


@pytest.mark.slow
def test_a_risk_calibrates_the_noise():
  """The noise of one full batch is 1/(quantile of the TPR - that of the FPR)."""
  sizes = {"num_members": 8, "batch_size": 8, "steps_per_epoch": 1, "epochs": 1}
  defense = dp_sgd(max_tpr=0.05, at_fpr=0.01, delta=0.01)
  state = init(learner_of(defense), **sizes).defense["dp_sgd"]
  exact = 1 / (norm.ppf(0.05) - norm.ppf(0.01))
  assert exact <= float(state["noise_multiplier"]) < 1.01 * exact


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_tpr": 0.01, "at_fpr": 0.05}, "0 < at_fpr < max_tpr < 1"),
    ({"max_tpr": 0.05, "epsilon": 1.0}, "drop one"),
    ({"max_tpr": 0.05, "noise_multiplier": 2.0}, "max_tpr=0.05 determines the noise"),
    ({"max_tpr": jnp.float32(0.05)}, "pass a plain number"),
  ],
)
def test_a_risk_that_cannot_be_met_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    dp_sgd(**options)


@pytest.mark.slow
def test_pitfall_97_no_noise_has_no_finite_epsilon():
  for noise in (0, 0.0):
    state = init(learner_of(dp_sgd(noise))).defense["dp_sgd"]
    assert float(state["epsilon"]) == math.inf
  with pytest.raises(ValueError, match="clip=inf"):
    dp_sgd(1.0, math.inf)
  with pytest.raises(ValueError, match="clip=inf"):
    dp_sgd(clip=math.inf, epsilon=1.0)
  learner = learner_of(dp_sgd(0, math.inf))
  plain = learner_of(None)
  state = init(learner)
  assert float(state.defense["dp_sgd"]["epsilon"]) == math.inf
  np.testing.assert_allclose(
    flat(step(learner, state)[0].params),
    flat(step(plain, init(plain))[0].params),
    atol=1e-6,
  )


def test_pitfall_98_the_reported_delta_is_the_one_used():
  state = init(learner_of(dp_sgd(1.0, delta=1e-3))).defense["dp_sgd"]
  assert float(state["delta"]) == pytest.approx(1e-3)
  expected = accounting.epsilon(
    1.0, sampling_probability=B / N, steps=6, delta=float(np.float32(1e-3))
  )
  assert float(state["epsilon"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_noise_can_be_swept_over_models_and_each_gets_its_epsilon():
  noises = jnp.asarray([0.0, 1.0, 2.0])
  spec, data, rows = make_spec(), make_data(), make_rows()
  key = jax.random.key(0)

  def run(noise):
    learner = learner_of(dp_sgd(noise, CLIP))
    state = learner.init(key, spec)
    return state, learner.step(state, data, rows, Ctx(key, 0, 0, 3, 1, B))[0]

  before, after = jax.jit(jax.vmap(run))(noises)
  epsilon = before.defense["dp_sgd"]["epsilon"]
  np.testing.assert_allclose(epsilon, [math.inf, spent(1.0), spent(2.0)], rtol=1e-5)
  quiet = learner_of(dp_sgd(0, CLIP))
  params = np.stack(
    [flat(jax.tree.map(lambda leaf, i=i: leaf[i], after.params)) for i in range(3)]
  )
  np.testing.assert_allclose(
    params[0],
    flat(
      quiet.step(quiet.init(key, spec), data, rows, Ctx(key, 0, 0, 3, 1, B))[0].params
    ),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    params[2] - params[0], 2 * (params[1] - params[0]), atol=1e-5
  )


def test_a_step_is_traced_once():
  learner, traces = learner_of(dp_sgd()), []

  @jax.jit
  def run(state, ctx):
    traces.append(1)
    return learner.step(state, make_data(), make_rows(), ctx)[0]

  state = init(learner)
  for number in range(3):
    state = run(state, Ctx(jax.random.key(number), jnp.int32(number), 0, 3, 1, B))
  assert len(traces) == 1


@pytest.mark.slow
def test_private_training_still_learns():
  data = make_data()
  data = data._replace(y=(data.x[:, 0] > 0).astype(jnp.int32))
  learner = learner_of(dp_sgd(0.5, 1.0), rate=0.5)
  state = init(learner)
  rows = Rows(jnp.arange(N), jnp.ones(N), jnp.zeros(N))
  first = step(learner, state, data, rows)[1]["loss"]
  for number in range(30):
    state, metrics = step(learner, state, data, rows, seed=number)
  assert metrics["loss"] < 0.6 * first


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
    ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
    ({"clip": 0.0}, "clip is 0.0"),
    ({"clip": -1.0}, "clip is -1.0"),
    ({"epsilon": 0.0}, "epsilon is 0.0"),
    ({"epsilon": math.inf}, "epsilon is inf"),
    ({"epsilon": 8.0, "noise_multiplier": 2.0}, "drop noise_multiplier"),
    ({"delta": 0.0}, "delta is 0.0"),
    ({"delta": 1.0}, "delta is 1.0"),
    ({"estimator": "fast"}, "'ghost', 'microbatch'"),
    ({"microbatch_size": 0}, "microbatch_size is 0"),
    ({"multiplicity": 0}, "multiplicity is 0; pass an integer of at least 1"),
    ({"multiplicity": 2.0}, "multiplicity is 2.0"),
    ({"multiplicity": True}, "multiplicity is True"),
  ],
)
def test_arguments_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    dp_sgd(**options)

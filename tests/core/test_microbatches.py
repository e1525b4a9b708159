"""Gradients summed over groups of rows: equal to the whole batch's, or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli.settings import Settings
from mixdef.core.estimators import mean_value_and_grad
from mixdef.core.hooks import (
  Batch,
  Ctx,
  Data,
  Defense,
  Rows,
  Spec,
  defense,
  take,
)
from mixdef.models.layers import conv_layer, normalize

RECORDS, CLASSES = 20, 3


def draw_data(shape=(6,)):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(RECORDS, *shape)), jnp.float32)
  y = jnp.asarray(rng.integers(0, CLASSES, RECORDS))
  return Data(x, y, jnp.zeros(RECORDS, bool))


def one_step(learner, data, rows, *, seed=0):
  """Take a step from fresh parameters; return the state and the metrics."""
  spec = Spec(*(data.x[:1], None, None, RECORDS, RECORDS, CLASSES, 7, 2, 3))

  @jax.jit
  def run(key):
    state = learner.init(key, spec)
    return learner.step(state, data, rows, Ctx(key, 0, 0, 3, 1, 1))

  return run(jax.random.key(seed))


def deal(weight):
  weight = jnp.asarray(weight, jnp.float32)
  return Rows(jnp.arange(weight.shape[0]) + 3, weight, jnp.zeros_like(weight))


def assert_same(actual, desired):
  for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
    if jnp.issubdtype(d.dtype, jax.dtypes.prng_key):
      continue
    scale = max(float(jnp.abs(d).max()), 1e-3)
    np.testing.assert_allclose(a, d, rtol=0, atol=3e-6 * scale)


MLP = mixdef.models.mlp(16, 16, num_classes=CLASSES)
PADDED = deal([1, 1, 0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize("microbatch", [4, 5, 64])
def test_a_step_equals_that_of_the_whole_batch(microbatch):
  data, sgd = draw_data(), optax.sgd(0.5)
  desired = one_step(mixdef.classifier(MLP, sgd), data, PADDED)
  learner = mixdef.classifier(MLP, sgd, microbatch=microbatch)
  assert_same(one_step(learner, data, PADDED), desired)


@pytest.mark.slow
def test_a_network_of_convolutions_and_group_norms_does_so_too():
  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = conv_layer("auto", bias=False, standardize=False)(4, 3)(x)
      options = {"train": True, "weight": None, "lowering": "auto"}
      x = normalize(x, norm="group", relu=True, **options)
      return nn.Dense(CLASSES)(x.mean((1, 2)))

  data, rows = draw_data((6, 6, 1)), deal(jnp.ones(6))
  desired, actual = (
    one_step(mixdef.classifier(Network(), optax.sgd(0.5), microbatch=m), data, rows)
    for m in (None, 4)
  )
  assert_same(actual, desired)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["mixup(1.0)", "adamixup"])
def test_records_may_be_mixed_across_groups(text):
  chain, data, rows = mixdef.parse(text), draw_data(), deal([1] * 6 + [0])
  whole, cut = (
    mixdef.classifier(MLP, optax.sgd(0.5), chain, microbatch=size) for size in (None, 3)
  )
  assert_same(one_step(cut, data, rows), one_step(whole, data, rows))


@pytest.mark.slow
def test_a_batch_without_weight_moves_nothing():
  data, rows = draw_data(), deal(jnp.zeros(10))
  still = mixdef.classifier(MLP, optax.sgd(0.0))
  learner = mixdef.classifier(MLP, optax.sgd(0.5), microbatch=4)
  assert_same(one_step(learner, data, rows), one_step(still, data, rows))


@pytest.mark.slow
def test_hooks_see_their_own_rows_and_the_update_sees_the_whole_batch():
  @defense
  def table_of_records():
    def init(key, spec):
      del key
      slope = jnp.arange(1.0, 1 + spec.num_records)
      return {
        "table": slope,
        "seen": jnp.zeros(10),
        "answers": jnp.zeros((10, CLASSES)),
      }

    def loss(losses, state, ctx):
      return losses * take(state["table"], ctx.batch)

    def update(state, ctx):
      seen = ctx.losses * ctx.batch.index
      return {**state, "seen": seen, "answers": ctx.log_probs}

    return Defense("", init=init, loss=loss, update=update)

  data, part = draw_data(), table_of_records()
  desired, actual = (
    one_step(mixdef.classifier(MLP, optax.sgd(0.1), part, microbatch=m), data, PADDED)
    for m in (None, 3)
  )
  assert_same(actual, desired)
  assert len(np.unique(actual[0].defense["table_of_records"]["seen"])) == 10


@pytest.mark.slow
def test_models_side_by_side_equal_models_alone():
  data = draw_data()
  learner = mixdef.classifier(MLP, optax.sgd(0.5), microbatch=4)
  together = jax.vmap(lambda seed: one_step(learner, data, PADDED, seed=seed)[1])
  losses = together(jnp.arange(2))["loss"]
  for seed in range(2):
    alone = one_step(learner, data, PADDED, seed=seed)[1]["loss"]
    np.testing.assert_allclose(losses[seed], alone, rtol=1e-6)


def test_rows_that_fill_up_the_last_group_count_nothing():
  def losses_fn(params, batch, ctx):
    del ctx
    return params * batch.x, {"x": batch.x}

  ones = jnp.ones(5)
  batch = Batch(jnp.arange(1.0, 6), ones, ones, ones, ones, ones, ones)
  run = mean_value_and_grad(losses_fn, microbatch=2)
  (value, (losses, aux)), grad = run(jnp.float32(2), batch, (), None)
  assert (value, grad) == (6.0, 3.0)
  np.testing.assert_array_equal(losses, 2 * batch.x)
  np.testing.assert_array_equal(aux["x"], batch.x)


def test_many_groups_of_half_precision_parameters_are_summed_in_single():
  def losses_fn(params, batch, ctx):
    del ctx
    return params * batch.x, {}

  ones = jnp.ones(1024)
  run = mean_value_and_grad(losses_fn, microbatch=1)
  _, grad = run(jnp.bfloat16(1), Batch(*[ones] * 7), (), None)
  assert grad == 1
  assert grad.dtype == jnp.bfloat16


def test_memory_does_not_grow_with_the_batch():
  def needed(size, microbatch):
    learner = mixdef.classifier(MLP, optax.sgd(0.1), microbatch=microbatch)
    data, rows = draw_data(), deal(jnp.ones(size))
    spec = Spec(data.x[:1], None, None, RECORDS, RECORDS, CLASSES, size, 1, 1)
    state = jax.eval_shape(lambda key: learner.init(key, spec), jax.random.key(0))
    ctx = Ctx(jax.random.key(0), 0, 0, 1, 1, size)
    step = jax.jit(learner.step).lower(state, data, rows, ctx).compile()
    return step.memory_analysis().temp_size_in_bytes

  whole, cut = needed(4096, None), needed(4096, 16)
  assert cut < 0.3 * whole


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("dp_sgd", "dp_sgd estimates gradients in its own way"),
    ("mmd", "mmd couples the records of a batch"),
  ],
)
def test_chains_that_need_the_whole_batch_are_refused_in_one_line(text, message):
  with pytest.raises(ValueError, match=message) as error:
    mixdef.classifier(MLP, optax.sgd(0.1), mixdef.parse(text), microbatch=4)
  assert "microbatch=4" in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("microbatch", [0, -1, 2.0, True])
def test_sizes_that_are_no_positive_integers_are_refused(microbatch):
  with pytest.raises(ValueError, match=f"microbatch={microbatch} must be an integer"):
    mixdef.classifier(MLP, optax.sgd(0.1), microbatch=microbatch)


def test_batch_statistics_are_refused():
  class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False, weight=None):
      norm = nn.BatchNorm(use_running_average=not train)
      return nn.Dense(CLASSES)(
        norm(x, mask=None if weight is None else weight[:, None])
      )

  learner = mixdef.classifier(Normalized(), optax.sgd(0.1), microbatch=4)
  with pytest.raises(ValueError, match="batch_stats, which microbatch=4 would update"):
    one_step(learner, draw_data(), PADDED)


def test_the_text_says_it_and_the_teachers_take_it_too():
  def make(microbatch):
    parts = mixdef.parse("distillation")
    return mixdef.classifier(MLP, optax.sgd(0.1), parts, microbatch=microbatch)

  plain, cut = make(None), make(4)
  assert cut.text == f"{plain.text}|microbatch=4"
  assert "microbatch" not in plain.text
  (_, teacher), *_ = cut.stages
  assert teacher.text.endswith("|microbatch=4")


def test_each_group_of_rows_draws_its_own_dropout_mask():
  model = mixdef.models.mlp(64, num_classes=CLASSES, dropout=0.5)
  data = draw_data()._replace(x=jnp.ones((RECORDS, 6)))

  @defense
  def keep_answers():
    def update(state, ctx):
      del state
      return ctx.log_probs

    return Defense("", update=update)

  learner = mixdef.classifier(model, optax.sgd(0.1), keep_answers(), microbatch=1)
  state, _ = one_step(learner, data, deal(jnp.ones(8)))
  assert len(np.unique(state.defense["keep_answers"][:, 0])) == 8


def test_the_flag_reaches_the_classifier_and_no_other_learner():
  settings = Settings(model="mlp(8)", microbatch=4)
  assert settings.make_learner(settings.load()).text.endswith("|microbatch=4")
  plain = Settings(model="mlp(8)")
  assert "microbatch" not in plain.make_learner(plain.load()).text
  with pytest.raises(ValueError, match="--learner=model_stacking uses whole batches"):
    Settings(learner="model_stacking", model="mlp(8), mlp(4)", microbatch=4)
  with pytest.raises(ValueError, match="--microbatch=-1 must be 0 or more"):
    Settings(microbatch=-1)

"""Optimizers as people bring them: given what they read, or refused in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import mixdef
from mixdef import models
from mixdef.core.chaining import chain
from mixdef.core.hooks import Ctx, Data, Rows, Spec
from mixdef.core.optimizers import check_optimizer
from mixdef.core.randomness import random_key
from mixdef.learners.classifier import classifier
from mixdef.models import table_networks

SPEC = Spec(jnp.ones((1, 5)), None, None, 200, 100, 3, 4, 2, 1)
PLATEAU = optax.chain(optax.adam(1e-3), contrib.reduce_on_plateau())
BY_NAME = functools.partial(jax.tree.map, lambda p: "kernel" if p.ndim > 1 else "bias")
READ_THE_LOSS = {
  "reduce_on_plateau": PLATEAU,
  "polyak_sgd": optax.polyak_sgd(),
  "momo": contrib.momo(),
  "multi_steps": optax.MultiSteps(PLATEAU, 2),
  "apply_if_finite": optax.apply_if_finite(PLATEAU, 3),
}
SEARCH = {
  "lbfgs": optax.lbfgs(),
  "backtracking": optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)
  ),
}
PLAIN = {
  "schedule": optax.adam(optax.cosine_decay_schedule(1e-3, 10)),
  "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
  "masked": optax.adamw(1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
  "partition": optax.partition(
    {"kernel": optax.adam(1e-3), "bias": optax.sgd(0.1)}, BY_NAME
  ),
  "noisy": optax.noisy_sgd(0.1, key=0),
  "prodigy": contrib.prodigy(),
  "mechanize": contrib.mechanize(optax.adam(1e-3)),
  "multi_steps": optax.MultiSteps(optax.adam(1e-3), 2),
}
REFUSED = {
  "schedule_free": (contrib.schedule_free_sgd(0.1), "keeps its averaged weights"),
  "schedule_free inside": (
    optax.chain(optax.clip(1.0), contrib.schedule_free_adamw(0.1)),
    "keeps its averaged weights",
  ),
  "sam": (contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), "weights perturbed"),
  "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "fast and slow weights"),
  "dpsgd": (
    contrib.differentially_private_aggregate(1.0, 1.0, key=0),
    "use the defense dp_sgd",
  ),
  "sophia": (contrib.sophia(0.1), "cannot be used here .obj_fn must be provided"),
  "a mask of other parameters": (
    optax.adamw(0.1, mask={"other": True}),
    "cannot be used here .pytree structure error",
  ),
}


def init(optimizer, defense=None):
  """Start a training with shapes alone."""
  learner = classifier(models.mlp(4, num_classes=3), optimizer, defense)
  return jax.eval_shape(lambda key: learner.init(key, SPEC), random_key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*READ_THE_LOSS, *SEARCH, *PLAIN])
def test_optimizers_are_given_what_they_read(name):
  init({**READ_THE_LOSS, **SEARCH, **PLAIN}[name])


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line(name):
  optimizer, message = REFUSED[name]
  with pytest.raises(ValueError, match=message) as caught:
    init(optimizer)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*READ_THE_LOSS, *SEARCH])
def test_the_loss_is_no_part_of_what_dp_sgd_covers(name):
  with pytest.raises(ValueError, match=r"'value'.*for dp_sgd covers no loss"):
    init({**READ_THE_LOSS, **SEARCH}[name], mixdef.dp_sgd())


@pytest.mark.parametrize("name", PLAIN)
def test_optimizers_of_gradients_alone_go_with_dp_sgd(name):
  init(PLAIN[name], mixdef.dp_sgd())


@pytest.mark.parametrize("name", SEARCH)
def test_a_line_search_needs_the_loss_of_its_gradient(name):
  with pytest.raises(ValueError, match="'value_fn'"):
    init(SEARCH[name], mixdef.weight_decay(1e-3))


@pytest.mark.parametrize("name", ["reduce_on_plateau", "multi_steps"])
def test_gans_have_no_one_loss_to_give(name):
  learner = mixdef.wgan_gp(table_networks(5, 3), READ_THE_LOSS[name])
  with pytest.raises(ValueError, match=r"'value'.*a GAN has no single loss"):
    jax.eval_shape(lambda key: learner.init(key, SPEC), random_key(0))


WRONG = {
  "uncalled": (optax.adam, "the function adam, which must be called"),
  "schedule": (optax.constant_schedule(0.1), "which must be called"),
  "number": (1e-3, "0.001 of type float"),
  "None": (None, "None of type NoneType"),
  "text": ("adam", "'adam' of type str"),
  "model": (models.mlp(4), "a MLP, a model"),
  "list": ([optax.clip(1.0), optax.sgd(0.1)], r"optax.chain\(\*...\)"),
  "class": (optax.GradientTransformation, "must be called"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
  "make",
  [
    lambda optimizer: classifier(models.mlp(4), optimizer),
    lambda optimizer: mixdef.model_stacking((models.mlp(4), models.mlp(2)), optimizer),
    lambda optimizer: mixdef.wgan_gp(table_networks(5, 3), optimizer),
  ],
)
def test_what_is_no_optimizer_is_named(make, name):
  wrong, message = WRONG[name]
  with pytest.raises(TypeError, match=f"optimizer is .*{message}") as caught:
    make(wrong)
  assert "\n" not in str(caught.value)


def test_what_is_no_pair_of_networks_is_named():
  with pytest.raises(TypeError, match=r"networks is MLP.*image_networks\(...\)"):
    mixdef.wgan_gp(models.mlp(4))


def spy(seen):
  """An optimizer that keeps the loss it is given, and steps where it is told."""

  def update(updates, state, params, *, value, grad, value_fn, **extra):
    del state, extra
    return jax.tree.map(lambda g: -seen * g, grad), (value, value_fn(params))

  zeros = (jnp.float32(0), jnp.float32(0))
  return optax.GradientTransformationExtraArgs(lambda params: zeros, update)


def test_the_loss_given_is_that_of_the_step():
  learner = classifier(models.mlp(4, num_classes=3), spy(0.1), chain())
  x, y = jnp.eye(5)[:4], jnp.array([0, 1, 2, 0])
  data = Data(x, y, jnp.zeros(4, bool))
  rows = Rows(jnp.arange(4), jnp.array([1.0, 1, 0, 0]), jnp.zeros(4))

  @jax.jit
  def one(key):
    state = learner.init(key, SPEC)
    ctx = Ctx(key, jnp.int32(0), jnp.int32(0), 1, 1, 1)
    new, metrics = learner.step(state, data, rows, ctx)
    log_probs = learner.predict(state, x)
    return new.opt, metrics["loss"], -log_probs[jnp.arange(2), y[:2]].mean()

  (value, again), reported, mean = one(random_key(0))
  np.testing.assert_allclose([value, again, reported], mean, rtol=1e-6)


def test_models_trained_together_never_share_noise():
  learner = classifier(models.mlp(4, num_classes=3), optax.noisy_sgd(0.1, key=0))
  with jax.default_prng_impl("rbg"):
    states = jax.vmap(lambda key: learner.init(key, SPEC))(
      jax.random.split(random_key(0), 2)
    )
  keys = [
    leaf for leaf in jax.tree.leaves(states.opt) if leaf.dtype == states.key.dtype
  ]
  assert len(keys) == 1
  assert keys[0][0] != keys[0][1]


def test_extra_arguments_are_dropped_where_none_reads_them():
  plain = check_optimizer(optax.sgd(0.5))
  updates, _ = plain.update({"w": jnp.ones(2)}, plain.init({"w": jnp.ones(2)}), value=1)
  np.testing.assert_array_equal(updates["w"], [-0.5, -0.5])

"""Models of every library train alike, under every kind of defense, side by side."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from defense_harness import DATA, KEEP, SPEC, ctx_at, rows_at
from defense_harness import D as FEATURES
from defense_harness import K as CLASSES
from flax import nnx

import mixdef
from mixdef.core.parsing import parse
from mixdef.learners.classifier import classifier

HIDDEN, MODELS = 6, 2
DEFENSES = (
  "none",
  "mixup",
  "relaxloss(1.0)",
  "dp_sgd(1.0, clip=0.5)",
  "dp_sgd(1.0, clip=0.5, estimator='microbatch')",
  "weighted_smoothing(start=0)",
  "selena(2, non_models=1)",
  "memguard(steps=5, epochs=3)",
  "early_stopping(patience=1)",
)


def fixed(key, shape, dtype=jnp.float32):
  """Initialize with numbers that depend on the shape alone."""
  del key
  return jnp.sin(jnp.arange(np.prod(shape), dtype=dtype)).reshape(shape)


Dense = functools.partial(nn.Dense, kernel_init=fixed)
Linear = functools.partial(nnx.Linear, kernel_init=fixed)


class OfLinen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Dense(CLASSES, name="b")(nn.relu(Dense(HIDDEN, name="a")(x)))


class OfNNX(nnx.Module):
  def __init__(self, rngs):
    self.a = Linear(FEATURES, HIDDEN, rngs=rngs)
    self.b = Linear(HIDDEN, CLASSES, rngs=rngs)

  def __call__(self, x):
    return self.b(nnx.relu(self.a(x)))


def make(key, x):
  sizes = (x.shape[-1], HIDDEN, CLASSES)
  layers = zip("ab", sizes, sizes[1:], strict=False)
  return {n: {"kernel": fixed(key, (i, o)), "bias": jnp.zeros(o)} for n, i, o in layers}


def run(params, x):
  hidden = nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
  return hidden @ params["b"]["kernel"] + params["b"]["bias"]


def of_equinox(key):
  """Make the same network; Equinox keeps its kernels transposed."""
  keys = jax.random.split(key)
  layers = [
    eqx.nn.Linear(FEATURES, HIDDEN, key=keys[0]),
    eqx.nn.Lambda(jax.nn.relu),
    eqx.nn.Linear(HIDDEN, CLASSES, key=keys[1]),
  ]
  return eqx.nn.Sequential(layers)


LIBRARIES = {
  "linen": OfLinen(),
  "nnx": OfNNX,
  "pair": (make, run),
  "equinox": of_equinox,
}
FAST = {("nnx", "none"), ("nnx", "dp_sgd(1.0, clip=0.5)"), ("pair", "mixup")}
TABLE = [
  pytest.param(library, text, marks=() if (library, text) in FAST else pytest.mark.slow)
  for library in LIBRARIES
  if library != "linen"
  for text in DEFENSES
]


@functools.cache
def trained(library, text):
  """Two steps of two models, one epoch: their parameters and what they answer."""
  learner = classifier(LIBRARIES[library], optax.sgd(0.1), parse(text))

  def one(key):
    state = learner.init(key, SPEC)
    for step in range(2):
      ctx = ctx_at(step)._replace(key=jax.random.fold_in(key, step))
      state, metrics = learner.step(state, DATA, rows_at(step), ctx)
    for hook in (learner.epoch, learner.finish):
      state = hook(state, DATA, KEEP, ctx) if hook else state
    return state.params, learner.predict(state, DATA.x), metrics

  keys = jax.random.split(jax.random.key(0), MODELS)
  return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize(("library", "text"), TABLE)
def test_two_steps_of_any_model_are_those_of_a_linen_module(library, text):
  params, log_probs, metrics = trained(library, text)
  assert log_probs.shape == (MODELS, len(DATA.x), CLASSES)
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-5)
  assert np.isfinite(metrics["loss"]).all()
  if library == "equinox":  # its parameters are its own
    assert jax.tree.structure(params).num_leaves == 4
    return
  expected, answers, theirs = trained("linen", text)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params, expected
  )
  np.testing.assert_allclose(log_probs, answers, rtol=1e-5, atol=2e-5)
  np.testing.assert_allclose(metrics["loss"], theirs["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_model_without_known_layers_is_clipped_and_that_is_said_once(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  trained.__wrapped__("pair", "dp_sgd(1.0, clip=0.5)")
  (message,) = {
    text for text in said if text.startswith("ghost")
  }  # accountants warn, too
  assert "microbatches of 16 are used instead: a/kernel is used outside" in message


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_shadows_of_any_model_learn_and_keep_their_folder(library, strategy, tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(80, FEATURES)).astype(np.float32)
  data = mixdef.Dataset.from_arrays(x, x[:, :CLASSES].argmax(1), name="mine")
  learner = mixdef.classifier(LIBRARIES[library], optax.adam(0.05), parse("mixup"))
  members = mixdef.subsets(data, 3, seed=0)
  how = {"epochs": 15, "batch_size": 8, "strategy": strategy, "out": tmp_path}
  first = mixdef.fit_many(learner, data, members, **how).log_probs(x)
  assert (first.argmax(-1) == data.y).mean() > 0.8
  # The folder of a run is found again by a model that is made anew.
  again = mixdef.classifier(LIBRARIES[library], optax.adam(0.05), parse("mixup"))
  np.testing.assert_array_equal(
    mixdef.fit_many(again, data, members, **how).log_probs(x), first
  )
  other = mixdef.classifier(
    lambda rngs: nnx.Linear(FEATURES, CLASSES, rngs=rngs),
    optax.adam(0.05),
    parse("mixup"),
  )
  with pytest.raises(ValueError, match="learner"):
    mixdef.fit_many(other, data, members, **how)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["selena(2, non_models=1)", "distillation"])
def test_teachers_of_any_model_train_before_it(text):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, FEATURES)).astype(np.float32)
  data = mixdef.Dataset.from_arrays(x, x[:, :CLASSES].argmax(1), name="mine")
  members = mixdef.subsets(data, 2, seed=0)
  found = [
    mixdef.fit_many(
      mixdef.classifier(LIBRARIES[name], optax.sgd(0.1), parse(text)),
      *(data, members),
      epochs=2,
      batch_size=8,
      strategy="vmap",
    ).log_probs(x)
    for name in ("linen", "nnx", "pair")
  ]
  np.testing.assert_allclose(found[1], found[0], atol=2e-5)
  np.testing.assert_allclose(found[2], found[0], atol=2e-5)


def test_a_defense_that_sets_a_field_needs_a_linen_module():
  with pytest.raises(ValueError, match="dropout sets a field of a linen module"):
    classifier(OfNNX, optax.sgd(0.1), parse("dropout(0.5)"))


def test_statistics_and_clipping_do_not_go_together():
  class Normed(OfNNX):
    def __init__(self, rngs):
      super().__init__(rngs)
      self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)

    def __call__(self, x):
      return super().__call__(self.norm(x))

  learner = classifier(Normed, optax.sgd(0.1), parse("dp_sgd(1.0)"))
  instead = "use nnx.GroupNorm or nnx.LayerNorm instead of BatchNorm"
  with pytest.raises(ValueError, match=f"keeps batch_stats, as BatchNorm .*{instead}"):
    learner.init(jax.random.key(0), SPEC)

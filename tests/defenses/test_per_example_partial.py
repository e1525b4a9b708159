"""Per-example gradients of layers that are partly frozen or have low-rank changes."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from per_example_cases import (
  CLIP,
  CTX,
  K,
  assert_close,
  clipped,
  flat,
  make_batch,
  make_views,
)
from per_example_cases import naive as loop
from training_cases import halves
from training_cases import records as training_records

import mixdef
from mixdef.core.randomness import random_key
from mixdef.defenses.per_example import ghost
from mixdef.models import adapt, partial


def words(x):
  return (jnp.abs(flat(x)[:, :9]) * 3).astype(jnp.int32) % 7


class Linen(nn.Module):
  """Layers of one and of several positions, and of each kind that has a rule."""

  @nn.compact
  def __call__(self, x):
    ids = words(x)
    x = nn.tanh(nn.Conv(4, (3, 3), strides=2, name="conv")(x))
    x = nn.GroupNorm(2, name="group")(x).reshape(x.shape[0], 9, 4)
    x = nn.Dense(8, name="wide")(x) + nn.Embed(50, 8, name="table")(ids)
    x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x)
    x = nn.LayerNorm(name="norm")(x)
    x = nn.tanh(nn.Dense(6, name="flat")(flat(x)))
    return nn.Dense(K, name="head")(x)


class Small(nn.Module):
  """One layer of few positions, and two of one."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(20, name="pair")(x.reshape(x.shape[0], 2, 36)))
    x = nn.LayerNorm(name="norm")(x)
    x = nn.tanh(nn.Dense(6, name="flat")(flat(x)))
    return nn.Dense(K, name="head")(x)


class Nnx(nnx.Module):
  """The same layers as `Linen`."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
    self.group = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
    self.wide = nnx.Linear(4, 8, rngs=rngs)
    self.table = nnx.Embed(50, 8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.norm = nnx.LayerNorm(8, rngs=rngs)
    self.flat = nnx.Linear(72, 6, rngs=rngs)
    self.head = nnx.Linear(6, K, rngs=rngs)

  def __call__(self, x):
    ids = words(x)
    x = self.group(jnp.tanh(self.conv(x))).reshape(x.shape[0], 9, 4)
    x = self.wide(x) + self.table(ids)
    x = self.norm(x + self.attention(x))
    return self.head(jnp.tanh(self.flat(flat(x))))


class Tied(nn.Module):
  """A table that is looked up and read out, and a layer that is called twice."""

  @nn.compact
  def __call__(self, x):
    table, layer = nn.Embed(7, 4, name="table"), nn.Dense(4, name="twice")
    x = table(words(x))
    return table.attend(layer(nn.tanh(layer(x))).mean(1))[:, :K]


class Adapted(nn.Module):
  """A normalized layer and a head, for records of one axis."""

  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm(name="norm")(nn.tanh(nn.Dense(8, name="body")(x)))
    return nn.Dense(3, name="head")(x)


class Remat(nn.Module):
  """A layer whose calls are hidden, and a visible one with larger inputs."""

  @nn.compact
  def __call__(self, x):
    x = nn.remat(nn.Dense)(36, name="hidden")(flat(x))
    return nn.Dense(K, name="head")(nn.tanh(x))


MODELS = {
  "small": Small(),
  "linen": Linen(),
  "nnx": lambda rngs: Nnx(rngs),
  "tied": Tied(),
  "remat": Remat(),
}


def chooser(expression):
  return lambda path: re.fullmatch(expression, path) is not None


def lora(rank=2, layers=".*", train=""):
  chosen = {"layers": chooser(layers), "train": chooser(train) if train else None}
  return functools.partial(partial.lora, rank=rank, scale=0.7, **chosen)


def only(expression):
  return functools.partial(partial.head_only, head=chooser(expression))


CHOICES = {
  "biases": only(".*/bias"),
  "kernels": only(".*/(kernel|scale|embedding)"),
  "scales": only("(norm|group)/scale"),
  "lora": lora(),
  "lora 1": lora(1, "(wide|flat|attention/.*)/kernel", "head/.*"),
  "lora and biases": lora(5, ".*", ".*/bias"),
}
FAST = ("small", "biases"), ("small", "lora and biases")
CASES = [
  pytest.param(kind, choice, marks=() if (kind, choice) in FAST else pytest.mark.slow)
  for kind in ("small", "linen", "nnx", "tied")
  for choice in CHOICES
  if kind != "tied" or choice not in ("scales", "lora 1")
]


def start(kind, choice, shift=0.3):
  """Return the losses and the parameters, of which none is zero if they are shifted."""
  network = CHOICES[choice](adapt(MODELS[kind]))
  variables = dict(jax.jit(network.init)(random_key(0), make_batch().x[:1]))
  params = variables.pop("params")
  keys = iter(jax.random.split(random_key(1), 99))
  params = jax.tree.map(
    lambda leaf: leaf + shift * jax.random.normal(next(keys), leaf.shape), params
  )

  def losses_fn(params, batch, ctx):
    del ctx
    logits, _ = network.apply({"params": params, **variables}, batch.x, train=True)
    log_probs = jax.nn.log_softmax(logits)
    return -(batch.y * log_probs).sum(-1), (log_probs, {})

  return losses_fn, params


def check_equal(kind, choice, batch, views):
  losses_fn, params = start(kind, choice)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0, views=views))
  _, grads = estimate(params, batch, None, CTX)
  assert_close(grads, loop(losses_fn, params, batch, CLIP, 4.0, views), 3e-6)


@pytest.mark.parametrize(("kind", "choice"), CASES)
def test_what_is_held_is_clipped_as_by_a_loop(kind, choice, warnings):
  check_equal(kind, choice, make_batch([1, 1, 0, 1, 1, 1]), 1)
  assert not warnings


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "choice"), CASES)
def test_views_of_a_record_share_what_is_held(kind, choice, warnings):
  check_equal(kind, choice, make_views(2, [1, 0, 1]), 2)
  assert not warnings


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["biases", "lora and biases"])
def test_a_bad_record_adds_exactly_zero_to_what_is_held(choice):
  losses_fn, params = start("small", choice)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  batch = make_batch()
  others = batch._replace(weight=batch.weight.at[0].set(0))
  _, expected = estimate(params, others, None, CTX)
  bad = batch._replace(x=batch.x.at[0, 1].set(jnp.nan))
  (_, (losses, _)), grads = estimate(params, bad, None, CTX)
  np.testing.assert_array_equal(np.isnan(losses), np.arange(len(losses)) == 0)
  assert_close(grads, expected, 1e-6)


@pytest.mark.slow
def test_the_first_step_of_a_low_rank_change_moves_b_alone():
  losses_fn, params = start("small", "lora", shift=0.0)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  _, grads = estimate(params, make_batch(), None, CTX)
  for factors in grads["lora"].values():
    assert not factors["a"].any()
    assert factors["b"].any()


@pytest.mark.slow
def test_factors_that_no_layer_shows_are_not_copied_as_whole_kernels(warnings):
  """Copies of the factors are small; the kernels that they make are not."""
  check_equal("remat", "lora", make_batch(), 1)
  assert "kernel/a is used outside a plain leaf module" in warnings[0]


CHAIN = "start_from({file!r}, fresh='head/.*')|{part}|dp_sgd(1.0, delta=1e-3{how})"


@pytest.mark.slow
@pytest.mark.parametrize(
  "part",
  ["lora(2, train='head/.*')", "head_only('(head|norm)/.*|.*/bias')"],
)
def test_both_estimators_train_the_same_private_adapters(part, tmp_path, caplog):
  """End to end, with the same noise from the same seed."""
  records = training_records()
  file = str(tmp_path / "start.npz")
  model = Adapted()
  begun = mixdef.fit(mixdef.classifier(model, optax.sgd(0.1)), records, epochs=1)
  mixdef.models.save_weights(file, begun.state.params)

  def trained(how):
    chain = CHAIN.format(file=file, part=part, how=how)
    learner = mixdef.classifier(model, optax.sgd(0.3), chain)
    sizes = {"epochs": 2, "batch_size": 6, "num_members": 20, "strategy": "vmap"}
    return mixdef.fit_many(learner, records, halves(2), noise_seed=1, **sizes).states

  found, expected = trained(""), trained(", estimator='microbatch'")
  assert "ghost clipping is not available" not in caplog.text
  assert_close(found.params, expected.params, 1e-5)
  still = trained(", clip=1e-9")
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.params, still.params)
  assert all(size > 1e-3 for size in jax.tree.leaves(moved))

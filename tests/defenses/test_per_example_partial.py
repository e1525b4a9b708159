"""Per-example gradients of layers that are partly frozen or have low-rank changes."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from absl import logging
from flax import nnx
from per_example_cases import CLIP, CTX, K, assert_close, flat, make_batch, make_views
from per_example_cases import naive as loop

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


class Nnx(nnx.Module):
  """The same layers."""

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


MODELS = {"linen": Linen(), "nnx": lambda rngs: Nnx(rngs), "tied": Tied()}


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
FAST = ("linen", "biases"), ("linen", "lora"), ("nnx", "lora and biases")
CASES = [
  pytest.param(kind, choice, marks=() if (kind, choice) in FAST else pytest.mark.slow)
  for kind in MODELS
  for choice in CHOICES
  if (kind, choice) != ("tied", "scales") and (kind, choice) != ("tied", "lora 1")
]


def start(kind, choice):
  """Return the losses and the parameters, of which none is zero."""
  network = CHOICES[choice](adapt(MODELS[kind]))
  variables = dict(jax.jit(network.init)(random_key(0), make_batch().x[:1]))
  params = variables.pop("params")
  keys = iter(jax.random.split(random_key(1), 99))
  params = jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params
  )

  def losses_fn(params, batch, ctx):
    del ctx
    logits, _ = network.apply({"params": params, **variables}, batch.x, train=True)
    log_probs = jax.nn.log_softmax(logits)
    return -(batch.y * log_probs).sum(-1), (log_probs, {})

  return losses_fn, params


@pytest.fixture
def warnings(monkeypatch):
  """What was logged, as text."""
  said = []
  monkeypatch.setattr(
    logging, "warning", lambda message, *args: said.append(message % args)
  )
  return said


@pytest.mark.parametrize(("kind", "choice"), CASES)
@pytest.mark.parametrize("views", [1, 2])
def test_what_is_held_is_clipped_as_by_a_loop(kind, choice, views, warnings):
  batch = make_batch([1, 1, 0, 1, 1, 1]) if views == 1 else make_views(2, [1, 0, 1])
  losses_fn, params = start(kind, choice)
  estimate = jax.jit(ghost(losses_fn, clip=CLIP, denominator=4.0, views=views))
  _, grads = estimate(params, batch, None, CTX)
  assert not warnings
  expected = loop(losses_fn, params, batch, CLIP, 4.0, views)
  assert_close(grads, expected, 3e-6)

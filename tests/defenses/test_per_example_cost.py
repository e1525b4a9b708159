"""What per-example gradients cost, by the compiler's own account."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from per_example_cases import (
  CLIP,
  CTX,
  K,
  clipped,
  cross_entropy,
  flat,
  init,
  make_batch,
)

from mixdef.core.randomness import random_key
from mixdef.defenses.per_example import ghost, microbatch
from mixdef.models import adapt, partial

pytestmark = pytest.mark.slow


class Wide(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(128)(flat(x)))
    return nn.Dense(K)(nn.relu(nn.Dense(128)(x)))


def compiled(function, model, batch):
  arguments = (init(model), batch, None, CTX)
  return jax.jit(function).lower(*arguments).compile()


def test_the_memory_of_microbatches_does_not_grow_with_the_batch():
  model, batch = Wide(), make_batch()
  estimate = clipped(
    microbatch, cross_entropy(model), clip=CLIP, denominator=1.0, size=2
  )

  def held(times):
    many = jax.tree.map(lambda a: jnp.concatenate([a] * times), batch)
    program = compiled(estimate, model, many)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(many))
    return program.memory_analysis().temp_size_in_bytes, size

  (few, small), (many, large) = held(1), held(20)
  gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(init(model)))
  assert gradient < few < 8 * gradient
  assert many - few < 2 * (large - small), "only the rows themselves are more"


def test_ghost_clipping_computes_little_more_than_an_ordinary_gradient():
  model, losses_fn = Wide(), cross_entropy(Wide())
  rows = jax.tree.map(lambda a: jnp.concatenate([a] * 10), make_batch())

  def ordinary(params, batch, state, ctx):
    return jax.grad(lambda params: losses_fn(params, batch, ctx)[0].mean())(params)

  private = clipped(ghost, losses_fn, clip=CLIP, denominator=1.0)
  ours, plain = (
    compiled(function, model, rows).cost_analysis()["flops"]
    for function in (private, ordinary)
  )
  assert ours < 1.25 * plain


def test_a_low_rank_change_costs_less_memory_than_kernels_of_every_record():
  network = partial.lora(
    adapt(Wide()), rank=2, scale=1.0, layers=lambda path: path == "Dense_1/kernel"
  )
  batch = jax.tree.map(lambda a: jnp.concatenate([a] * 20), make_batch())
  variables = dict(jax.jit(network.init)(random_key(0), batch.x[:1]))
  params = variables.pop("params")

  def losses_fn(params, batch, ctx):
    del ctx
    logits, _ = network.apply({"params": params, **variables}, batch.x, train=True)
    return -(batch.y * jax.nn.log_softmax(logits)).sum(-1), (logits, {})

  estimate = clipped(ghost, losses_fn, clip=CLIP, denominator=1.0)
  program = jax.jit(estimate).lower(params, batch, None, CTX).compile()
  kernel = 4 * 128 * 128
  assert program.memory_analysis().temp_size_in_bytes < len(batch.x) * kernel / 8

"""A small training by `dp_sgd` with canaries, whose records have gradients to clip."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.auditing.self_audit import self_audit
from mixdef.core.hooks import Batch, Ctx, Spec
from mixdef.core.randomness import fold_in_name

ROWS, B, EPOCH = 8, 4, 10
PARAMS = {
  "a": jnp.zeros((50, 40)),
  "b": jnp.zeros(9),
  "c": jnp.zeros((200, 10)),
}


def spec_of(steps=300):
  return Spec(
    example=jnp.zeros((1, 3)),
    variables={"params": PARAMS},
    table=None,
    num_records=B * EPOCH,
    num_members=B * EPOCH,
    num_classes=2,
    batch_size=B,
    steps_per_epoch=EPOCH,
    epochs=steps // EPOCH,
  )


def losses_fn(params, batch, ctx):
  """Losses [R] whose gradients differ in direction, and are longer than 1."""
  del ctx
  sums = jnp.stack([leaf.sum() for leaf in jax.tree.leaves(params)])
  return batch.x @ sums, ()


def batch_of(weight, views=1):
  """A batch of records of which those of weight 1 are there, each with some views."""
  count = len(weight)
  x = jnp.cos(jnp.arange(3.0 * count).reshape(-1, 3)) + 0.5
  index, weight, x = (
    jnp.repeat(leaf, views, 0)
    for leaf in (jnp.arange(count), jnp.asarray(weight, jnp.float32), x)
  )
  ones = jnp.ones_like(weight)
  return Batch(x, ones[:, None], index, weight, 0 * ones, index, ones)


def gradients(part, weights, *, views=1, nan=None):
  """Return the gradients [., P] of a step for several weights of the records.

  The record `nan` has no finite gradient.
  """

  def step(weight):
    batch = batch_of(weight, views)
    if nan is not None:
      batch = batch._replace(x=batch.x.at[nan].set(jnp.nan))
    state = part.init(jax.random.key(0), spec_of())
    ctx = Ctx(jax.random.key(1), jnp.int32(0), 0, 1, EPOCH, B)
    _, value = part.value_and_grad(losses_fn)(PARAMS, batch, state, ctx)
    return flat(part.grads(value, state, ctx)[0])

  weights = jnp.asarray(np.asarray(weights, np.float32))
  return np.asarray(jax.jit(jax.vmap(step))(weights), np.float64)


def flat(tree):
  return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def trained(part, *, steps=300, seed=0, views=1):
  """Train one model; return its state, and the gradients [T, P] of its steps."""
  estimate = part.value_and_grad(losses_fn)

  def run(key, state, t):
    ctx = Ctx(jax.random.fold_in(key, t), t, 0, 1, EPOCH, B)
    there = jax.random.bernoulli(fold_in_name(ctx.key, "rows"), B / ROWS, (ROWS,))
    batch = batch_of(there, views)
    _, value = estimate(PARAMS, batch, state, ctx)
    grads, state = part.grads(value, state, ctx)
    return state, flat(grads)

  state, times = part.init(jax.random.key(seed), spec_of(steps)), jnp.arange(steps)
  key = jax.random.key(seed + 1000)
  train = jax.jit(lambda state: jax.lax.scan(functools.partial(run, key), state, times))
  return train(state)


def audited(part, **options):
  """Return the self-audit of a training."""
  state, _ = trained(part, **options)
  run = types.SimpleNamespace(
    state=types.SimpleNamespace(defense={"dp_sgd": state}),
    plan=types.SimpleNamespace(steps_per_epoch=EPOCH),
  )
  return self_audit(run)

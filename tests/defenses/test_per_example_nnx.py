"""Per-example gradients of NNX layers, each against a loop over the records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nnx_cases import FALLBACK, GHOST, Dense, Dropped
from per_example_cases import (
  CLIP,
  CTX,
  assert_close,
  clipped,
  make_batch,
  make_views,
  naive,
)

from mixdef.core.randomness import random_key
from mixdef.defenses.per_example import ghost
from mixdef.models import adapt

FAST = (Dense, Dropped)


def start(kind, batch):
  """Return a model's losses and its parameters."""
  network = adapt(kind)

  def losses_fn(params, batch, ctx):
    key = jax.random.fold_in(ctx.key, batch.index[0])
    logits, _ = network.apply({"params": params}, batch.x, train=True, key=key)
    log_probs = jax.nn.log_softmax(logits)
    return -(batch.y * log_probs).sum(-1), (log_probs, {})

  return losses_fn, jax.jit(network.init)(random_key(0), batch.x[:1])["params"]


def assert_same(grads, expected):
  """Equal to 1e-6, of which the bound of rounding errors may take a part."""
  assert_close(grads, expected, 1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), grads, expected
  )


@pytest.mark.parametrize(
  "kind",
  [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in GHOST],
  ids=lambda kind: kind.__name__,
)
def test_every_layer_equals_a_loop_over_the_records(kind, warnings):
  batch = make_batch([1, 1, 0, 1, 1, 1])
  losses_fn, params = start(kind, batch)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  (_, (losses, _)), grads = estimate(params, batch, None, CTX)
  assert not warnings
  assert_same(grads, naive(losses_fn, params, batch, CLIP, 4.0))
  one = jax.jit(lambda row: losses_fn(params, row, CTX)[0][0])
  rows = [jax.tree.map(lambda a, i=i: a[i : i + 1], batch) for i in range(len(losses))]
  np.testing.assert_allclose(losses, [one(row) for row in rows], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind",
  [kind for kind in GHOST if kind is not Dropped],  # the loop draws other masks
  ids=lambda kind: kind.__name__,
)
def test_views_of_a_record_are_clipped_together(kind, warnings):
  batch = make_views(2, [1, 0, 1])
  losses_fn, params = start(kind, batch)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0, views=2))
  _, grads = estimate(params, batch, None, CTX)
  assert not warnings
  assert_same(grads, naive(losses_fn, params, batch, CLIP, 4.0, 2))


@pytest.mark.parametrize("kind", FALLBACK, ids=lambda kind: kind.__name__)
def test_what_is_not_known_is_named_once(kind, warnings):
  batch = make_batch()
  losses_fn, params = start(kind, batch)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0, size=4))
  _, grads = estimate(params, batch, None, CTX)
  estimate(params, batch, None, CTX)
  assert len(warnings) == 1
  assert f"instead: {FALLBACK[kind]}" in warnings[0]
  assert_same(grads, naive(losses_fn, params, batch, CLIP, 4.0))


def test_one_bad_record_adds_exactly_zero():
  batch = make_batch()
  losses_fn, params = start(Dense, batch)
  estimate = jax.jit(clipped(ghost, losses_fn, clip=CLIP, denominator=4.0))
  others = batch._replace(weight=batch.weight.at[0].set(0))
  _, expected = estimate(params, others, None, CTX)
  bad = batch._replace(x=batch.x.at[0, 1].set(jnp.nan))
  _, grads = estimate(params, bad, None, CTX)
  assert_close(grads, expected, 1e-6)

"""Clipped per-example gradients: `ghost` (one pass) and `microbatch` (any model).

Both estimate, for records i with weight w_i and gradient g_i of the mean loss of their
`views` adjacent rows (one by default),

  sum_i w_i f(||g_i||) g_i,    f(n) = min(1, C / n) or another rule of `clipping.py`

The mean is weighted by the rows' weights, so that rows of weight 0 are padding, and w_i
is the mean weight of the others. A record with its views may also be a person with its
records.

and both satisfy the contract of `Defense.value_and_grad`, except that in place of the
gradients they return this sum, in float32, and the norms [R] of the records, NaN for
padding and for a record with a loss or gradient that is not finite. Such a record
contributes exactly zero, and the losses of its rows are returned as NaN so that it can
be counted. In shapes, R is the number of records and B =
R views the number of rows.
"""

import jax
import jax.numpy as jnp
from absl import logging

from mixdef.core.hooks import weighted_mean
from mixdef.defenses.ghost_rules import (
  UnsupportedError,
  finite_or_zero,
  grouped,
  measure,
  shares,
  sharing,
  square,
  ungrouped,
)
from mixdef.defenses.ghost_tape import record_calls


def ghost(losses_fn, factor, *, size=16, views=1):
  """Clip per-example gradients at about the cost of one ordinary pass.

  One forward and one backward pass record each layer's input a and the cotangents b of
  its output (book-keeping). They give every record's squared gradient norm, layer by
  layer, and, with b scaled by the records' clipping factors, the clipped sum: no second
  backward pass is needed.

  Layers of linen and of NNX are found by their type. Dense layers, also over several
  axes as in attention, convolutions and embeddings, also tied to the logits, have
  closed forms, in which the views of a record, and the calls of a layer that is applied
  more than once, are treated as additional positions. A kernel with a low-rank change
  (`lora`) is measured as the two matrices of the change. Of a layer that is partly
  frozen, only what is trained is measured. For every other leaf module (norms, grouped
  convolutions, custom layers), for layers that share some of their parameters, and for
  a recurrent layer (`RNN`) as a whole, small per-record gradients are computed.

  A parameter may also act anywhere except in calls of leaf modules: next to submodules,
  as learned positions do, under a transform such as `nn.remat`, read as an array, in a
  penalty, or in a layer that has an input that does not lead with the batch axis, or a
  second input or output. Every record then gets a copy of it, if all such copies
  and what is computed from them alone are no larger than the inputs and outputs of the
  layers. Otherwise, for
  models of other libraries, and if a custom layer draws random numbers, the model is
  estimated by `microbatch`, and a message is logged.

  Each record passes through the model and its losses in a batch of only its own views,
  so a layer or loss that would let rows interact sees one record.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`; it is called with batches of
      one record, and each leaf of `aux` must lead with the axis B.
    factor: `norms -> factors`, both [R]; f above.
    size: number of records held at once if `microbatch` must take over.
    views: number of adjacent rows that belong to one record, >= 1.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), (sum, norms))`.

  Deviation: norms have float32 rounding errors, which are bounded from above where
    terms cancel, so that they can only cause more clipping. The sum is rounded like the
    products of the model (bfloat16 layers, TF32 on a GPU), which the norms do not
    account for.

  Reference: Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv
    1510.01799; Li et al., "Large Language Models Can Be Strong Differentially Private
    Learners", 2021, arXiv 2110.05679; Bu et al., "Scalable and Efficient Training of
    Large Convolutional Neural Networks with Differential Privacy", 2022, arXiv
    2205.10683, and "Differentially Private Optimization on Large Model at Small Cost",
    2022, arXiv 2210.00038.
  """
  fallback = microbatch(losses_fn, factor, size=size, views=views)

  def run(params, batch, state, ctx):
    try:
      losses, aux, calls = record_calls(losses_fn, params, batch, ctx, views)
      leaves, structure = jax.tree.flatten(params)
      measured = [measure(calls, leaves, views) for calls in sharing(calls)]
    except UnsupportedError as reason:
      logging.warning(
        "ghost clipping is not available, microbatches of %d are used instead: %s",
        size,
        reason,
      )
      return fallback(params, batch, state, ctx)
    squared = sum(squared for squared, _ in measured)
    finite, norms, scale = _measured(losses, squared, batch.weight, factor, views)
    sums = {}
    for _, clipped in measured:
      sums |= clipped(scale)
    total = structure.unflatten(
      [sums.get(place, jnp.zeros_like(leaf)) for place, leaf in enumerate(leaves)]
    )
    return _returned(losses, finite, batch.weight, aux), (total, norms)

  return run


def microbatch(losses_fn, factor, *, size=16, views=1):
  """Clip per-example gradients, computing `size` at a time and accumulating the sum.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`; it is called with batches of
      one record, and each leaf of `aux` must lead with the axis B.
    factor: `norms -> factors`, both [R]; f above.
    size: number of records held at once; memory grows as size times the parameters, and
      not with the batch.
    views: number of adjacent rows that belong to one record, >= 1.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), (sum, norms))`.
  """

  def run(params, batch, state, ctx):
    del state

    def one(record):
      def mean(params):
        losses, aux = losses_fn(params, record, ctx)
        mean = (losses * shares(record.weight, views)[0]).sum()
        return mean, (losses, aux)

      grads, (losses, aux) = jax.grad(mean, has_aux=True)(params)
      squared = square(grads)
      return finite_or_zero(grads, jnp.isfinite(squared)), squared, losses, aux

    def add(total, rows):
      grads, squared, losses, aux = jax.vmap(one)(grouped(rows, views))
      losses, aux = ungrouped((losses, aux))
      finite, norms, scale = _measured(losses, squared, rows.weight, factor, views)
      total = jax.tree.map(
        lambda t, g: t + jnp.tensordot(scale, g, 1, precision="highest"), total, grads
      )
      return total, (losses, finite, jnp.repeat(norms, views), aux)

    rows = batch.weight.shape[0]
    chunks = -(-rows // (size * views))
    each = -(-rows // (chunks * views)) * views
    dealt = grouped(_padded(batch, chunks * each - rows), each)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    total, out = jax.lax.scan(add, total, dealt)
    out = jax.tree.map(lambda leaf: leaf[:rows], ungrouped(out))
    losses, finite, norms, aux = out
    return _returned(losses, finite, batch.weight, aux), (total, norms[::views])

  return run


def scales_of(norms, weight, factor, views):
  """Return what records of known norms [R] are scaled by [R]; `weight` is [B]."""
  return _measured(jnp.zeros_like(weight), norms**2, weight, factor, views)[2]


def _measured(losses, squared, weight, factor, views):
  """Return which rows [B] are of finite records, and the norms and scales [R]."""
  finite = jnp.isfinite(losses).reshape(-1, views).all(1) & jnp.isfinite(squared)
  # Rounding can make the square of a vanishing gradient negative.
  norms = jnp.sqrt(jnp.maximum(squared, 0.0))
  weight = weight.reshape(-1, views)
  weight = weight.sum(1) / jnp.maximum((weight > 0).sum(1), 1)
  scale = jnp.where(finite, factor(norms) * weight, 0.0)
  norms = jnp.where(finite & (weight > 0), norms, jnp.nan)
  return jnp.repeat(finite, views), norms, scale


def _returned(losses, finite, weight, aux):
  value = weighted_mean(jnp.where(finite, losses, 0.0), weight * finite)
  return value, (jnp.where(finite, losses, jnp.nan), aux)


def _padded(batch, count):
  """Append `count` rows of weight 0."""
  if count == 0:
    return batch
  ends = jax.tree.map(lambda a: jnp.concatenate([a, a[-count:]]), batch)
  return ends._replace(weight=jnp.pad(batch.weight, (0, count)))

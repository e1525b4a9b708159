"""The default gradient estimator: the gradient of the mean loss."""

import jax
import jax.numpy as jnp


def mean_value_and_grad(losses_fn, *, microbatch=None):
  """Return the default gradient estimator, the gradient of the mean loss.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`.
    microbatch: number of rows differentiated at once, one group after the other, so
      that memory does not grow with B; None means the whole batch. With microbatches,
      the loss of a row must depend on that row only, and each leaf of `aux` must have
      the leading axis B.

  Returns:
    As `Defense.value_and_grad`; equal up to rounding for any `microbatch`.
  """

  def run(params, batch, state, ctx):
    del state
    total = jnp.maximum(batch.weight.sum(), 1.0)

    def share(params, rows):
      losses, aux = losses_fn(params, rows, ctx)
      return (losses * rows.weight).sum() / total, (losses, aux)

    differentiate = jax.value_and_grad(share, has_aux=True)
    size = batch.weight.shape[0]
    if microbatch is None or microbatch >= size:
      return differentiate(params, batch)

    def add(sums, rows):
      (value, out), grads = differentiate(params, rows)
      return jax.tree.map(jnp.add, sums, (value, grads)), out

    def wide_zeros(p):
      # A long sum in bfloat16 stagnates at 256 times the size of its terms.
      return jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))

    zeros = (jnp.zeros_like(total), jax.tree.map(wide_zeros, params))
    groups = _microbatches(batch, microbatch)
    (value, grads), out = jax.lax.scan(add, zeros, groups)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    out = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], out)
    return (value, out), grads

  return run


def _microbatches(batch, size):
  """Split a batch into groups of `size` rows, padding the last with rows of weight 0.

  The padding repeats the last row, so it is finite if the batch is.
  """
  count = batch.weight.shape[0]
  groups = -(-count // size)
  rows = jnp.arange(groups * size)
  if count % size:
    batch = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, count - 1)], batch)
    batch = batch._replace(weight=jnp.where(rows < count, batch.weight, 0))
  return jax.tree.map(lambda leaf: leaf.reshape(groups, size, *leaf.shape[1:]), batch)

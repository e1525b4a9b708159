"""Clipped per-example gradients: `ghost` (two passes) and `microbatch` (any model).

Both estimate, for rows i with weight w_i and gradient g_i of their own loss,

  sum_i w_i min(1, C / ||g_i||) g_i / denominator

and both follow the contract of `Defense.value_and_grad`. A row whose loss or gradient
is not finite adds exactly zero, and its loss is returned as NaN so that it can be
counted.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from flax.errors import FlaxError
from flax.linen.linear import canonicalize_padding

from mixdef.defense import weighted_mean


def ghost(losses_fn, *, clip, denominator, size=16):
  """Clip per-example gradients at about the cost of two ordinary passes.

  The first pass finds the norms without building any per-example gradient: each leaf
  module's output passes through an identity whose derivative for a dummy vector [B] is
  that layer's squared gradient norm per row, so one pull-back returns their sum. The
  second pass differentiates the rows' losses weighted by their clipping factors.

  `nn.Dense` and `nn.Conv` have closed forms; every other leaf module (norms,
  embeddings, grouped convolutions, your own) gets its own small per-row gradient. A
  model that this does not cover (a module that holds parameters beside submodules, or
  is applied twice or under a lifted transform such as `nn.remat`, or whose input does
  not lead with the batch axis) is estimated by `microbatch`, which is logged.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`; the loss of a row must
      depend on that row alone, each leaf of `aux` must lead with the axis B, and
      parameters may act only inside linen modules.
    clip: C > 0.
    denominator: scalar, the public batch size.
    size: records held at once if `microbatch` must take over.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), grads)`.

  Deviation: rows that are not finite are replaced by a finite row of the batch in the
    second pass, because a zero factor times NaN is NaN. Norms carry float32 rounding.
    A layer whose input happens to lead with another axis of length B is not noticed.

  Reference: Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv
    1510.01799; Li et al., "Large Language Models Can Be Strong Differentially Private
    Learners", 2021, arXiv 2110.05679; Bu et al., "Scalable and Efficient Training of
    Large Convolutional Neural Networks with Differential Privacy", 2022, arXiv
    2205.10683.
  """
  fallback = microbatch(losses_fn, clip=clip, denominator=denominator, size=size)

  def run(params, batch, state, ctx):
    try:
      measured = _squared_norms(losses_fn, params, batch, ctx)
    except _UnsupportedError as reason:
      logging.warning("no ghost clipping, microbatches of %d instead: %s", size, reason)
      return fallback(params, batch, state, ctx)
    return _clipped(losses_fn, params, batch, ctx, measured, clip, denominator)

  return run


def microbatch(losses_fn, *, clip, denominator, size=16):
  """Clip per-example gradients with norms from gradients taken `size` at a time.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`; it is given batches of one
      row, and each leaf of `aux` must lead with the axis B.
    clip: C > 0.
    denominator: scalar, the public batch size.
    size: records held at once; memory grows as size times the parameters.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), grads)`.
  """

  def one(params, row, ctx):
    losses, aux = losses_fn(params, jax.tree.map(lambda a: a[None], row), ctx)
    return losses[0], jax.tree.map(lambda a: a[0], aux)

  def alone(params, batch, ctx):
    return jax.vmap(lambda row: one(params, row, ctx))(batch)

  def run(params, batch, state, ctx):
    del state

    def measure(row):
      (loss, aux), grads = jax.value_and_grad(one, has_aux=True)(params, row, ctx)
      return loss, sum(_square(leaf) for leaf in jax.tree.leaves(grads)), aux

    rows = min(size, batch.weight.shape[0])
    measured = jax.lax.map(measure, batch, batch_size=rows)
    return _clipped(alone, params, batch, ctx, measured, clip, denominator)

  return run


def _clipped(losses_fn, params, batch, ctx, measured, clip, denominator):
  """Sum the clipped gradients of rows whose losses and squared norms are known."""
  losses, squared, aux = measured
  finite = jnp.isfinite(losses) & jnp.isfinite(squared)
  # Rounding can bring the square of a vanishing gradient below zero.
  norm = jnp.sqrt(jnp.maximum(squared, 0.0))
  factor = jnp.minimum(1.0, clip / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
  factor = jnp.where(finite, factor * batch.weight, 0.0)
  clean = _copy_over(batch, finite)

  def total(params):
    return (losses_fn(params, clean, ctx)[0] * factor).sum()

  grads = jax.tree.map(
    lambda leaf: jnp.where(finite.any(), leaf / denominator, 0).astype(leaf.dtype),
    jax.grad(total)(params),
  )
  value = weighted_mean(jnp.where(finite, losses, 0.0), batch.weight * finite)
  return (value, (jnp.where(finite, losses, jnp.nan), aux)), grads


def _square(leaf):
  return (leaf.astype(jnp.float32) ** 2).sum()


def _copy_over(batch, finite):
  """Put a finite row in the place of each row that is not.

  Their ids stay: `losses_fn` may derive its random stream from them, and the second
  pass must see the dropout masks that the norms were taken with.
  """
  rows = jnp.where(finite, jnp.arange(finite.shape[0]), finite.argmax())
  return jax.tree.map(lambda a: a[rows], batch)._replace(index=batch.index)


class _UnsupportedError(Exception):
  """Why a model cannot be clipped by `ghost`."""


def _squared_norms(losses_fn, params, batch, ctx):
  """Run the model once; return its losses [B], squared gradient norms [B] and aux."""
  names = {
    id(leaf): jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  seen = set()

  def tagged(dummy):
    with nn.intercept_methods(_tagger(dummy, names, seen)):
      return losses_fn(params, batch, ctx)

  dummy = jnp.zeros(batch.weight.shape, jnp.float32)
  losses, pull, aux = jax.vjp(tagged, dummy, has_aux=True)
  # A parameter that no tag has seen would be missing from the norm.
  unseen = sorted(name for leaf, name in names.items() if leaf not in seen)
  if unseen:
    raise _UnsupportedError(f"{unseen[0]} acts outside a plain leaf module")
  (squared,) = pull(jnp.ones_like(losses))
  return losses, squared, aux


def _tagger(dummy, names, seen):
  """Make the interceptor that tags each leaf module that holds trained parameters.

  Parameters are told by identity, so those of a frozen second network are left alone
  and those hidden by a lifted transform are noticed as unseen.
  """
  inside = set()

  def intercept(call, args, kwargs, context):
    module = context.module
    own = {} if module.scope is None else module.variables.get("params", {})
    ids = {id(leaf) for leaf in own.values()} & names.keys()
    if not ids or module.path in inside or context.method_name == "setup":
      return call(*args, **kwargs)
    where = "/".join(module.path) or type(module).__name__
    if context.method_name != "__call__":
      raise _UnsupportedError(f"{where} is used by its method {context.method_name}")
    if len(ids) < len(own):
      raise _UnsupportedError(f"{where} holds parameters beside submodules")
    if ids & seen:
      raise _UnsupportedError(f"{where} is applied twice")
    inside.add(module.path)
    out = call(*args, **kwargs)
    inside.remove(module.path)
    _check_call(where, module, args, kwargs, out, dummy)
    seen.update(ids)
    square = _RULES.get(type(module), _layer_rule)(module, kwargs, args[0])
    return _tag(square, out, dummy, args[0], own)

  return intercept


def _check_call(where, module, args, kwargs, out, dummy):
  if len(args) != 1 or any(hasattr(v, "shape") for v in kwargs.values()):
    raise _UnsupportedError(f"{where} takes more than one array")
  if len(module.variables) > 1:
    raise _UnsupportedError(f"{where} holds more than parameters")
  for array in (args[0], out):
    if getattr(array, "shape", ())[:1] != dummy.shape:
      raise _UnsupportedError(f"{where} does not keep the batch axis first")


def _tag(square, out, dummy, x, params):
  """Return `out`; pulled back, `dummy` gets `square(cotangent, x, params)` [B]."""

  @jax.custom_vjp
  def identity(out, dummy, x, params):
    del dummy, x, params
    return out

  def forward(out, dummy, x, params):
    del dummy
    return out, (x, params)

  def backward(kept, cotangent):
    return cotangent, square(cotangent, *kept), None, None

  identity.defvjp(forward, backward)
  return identity(out, dummy, x, params)


def _kernel_square(a, b):
  """Square the norm of sum_t a_t b_t^T per row, for a [B,T,I] and b [B,T,O] -> [B]."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  if a.shape[1] == 1:
    return (a**2).sum((1, 2)) * (b**2).sum((1, 2))
  if a.shape[1] ** 2 < a.shape[2] * b.shape[2]:
    return ((a @ a.mT) * (b @ b.mT)).sum((1, 2))
  return ((a.mT @ b) ** 2).sum((1, 2))


def _affine_square(a, b, use_bias):
  a, b = (v.reshape(v.shape[0], -1, v.shape[-1]) for v in (a, b))
  square = _kernel_square(a, b)
  if use_bias:
    square += (b.astype(jnp.float32).sum(1) ** 2).sum(-1)
  return square


def _dense_rule(module, kwargs, x):
  del kwargs, x
  return lambda cotangent, x, _: _affine_square(x, cotangent, module.use_bias)


def _conv_rule(module, kwargs, x):
  kernel = _tuple(module.kernel_size, 1)
  rank = len(kernel)
  strides, dilation = (
    _tuple(value, rank) for value in (module.strides, module.kernel_dilation)
  )
  padding = canonicalize_padding(module.padding, rank)
  plain = (
    module.feature_group_count == 1
    and module.mask is None
    and _tuple(module.input_dilation, rank) == (1,) * rank
    and x.ndim == rank + 2
    and (not isinstance(padding, str) or padding in ("SAME", "VALID"))
  )
  if not plain:
    return _layer_rule(module, kwargs, x)
  if isinstance(padding, str):
    window = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)

  def square(cotangent, x, _):
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    patches = []
    for offset in itertools.product(*map(range, kernel)):
      steps = zip(offset, dilation, cotangent.shape[1:-1], strides, strict=True)
      cut = [slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, n, s in steps]
      patches.append(x[:, *cut])
    return _affine_square(jnp.concatenate(patches, -1), cotangent, module.use_bias)

  return square


def _layer_rule(module, kwargs, x):
  """Any leaf module: differentiate this one layer, row by row."""
  alone = module.clone(parent=None, name=None)

  def apply(params, row):
    return alone.apply({"params": params}, row[None], **kwargs)[0]

  try:
    jax.eval_shape(apply, module.variables["params"], x[0])
  except FlaxError as error:
    where = "/".join(module.path)
    raise _UnsupportedError(f"{where} cannot run alone: {error}") from None

  def square(cotangent, x, params):
    def one(cotangent, row):
      _, pull = jax.vjp(lambda params: apply(params, row), params)
      return sum(_square(leaf) for leaf in jax.tree.leaves(pull(cotangent)))

    return jax.vmap(one)(cotangent, x)

  return square


def _tuple(value, rank):
  """Write a linen window argument out per axis."""
  if value is None or isinstance(value, int):
    return (1 if value is None else value,) * rank
  return tuple(value)


_RULES = {nn.Dense: _dense_rule, nn.Conv: _conv_rule}

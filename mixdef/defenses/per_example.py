"""Clipped per-example gradients: `ghost` (two passes) and `microbatch` (any model).

Both estimate, for records i with weight w_i and gradient g_i of the mean loss of their
`views` neighbouring rows (one, if nothing is said),

  sum_i w_i min(1, C / ||g_i||) g_i / denominator

and both follow the contract of `Defense.value_and_grad`. A record with a loss or
gradient that is not finite adds exactly zero, and the losses of its rows are returned
as NaN so that it can be counted. In shapes, R is records and B = R views is rows.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from flax.errors import FlaxError
from flax.linen.linear import canonicalize_padding

from mixdef.defense import weighted_mean


def ghost(losses_fn, *, clip, denominator, size=16, views=1):
  """Clip per-example gradients at about the cost of two ordinary passes.

  The first pass finds the norms without building any per-example gradient: each leaf
  module's output passes through an identity whose derivative for a dummy vector [R] is
  that layer's squared gradient norm per record, so one pull-back returns their sum. The
  second pass differentiates the rows' losses weighted by their clipping factors.

  `nn.Dense` and `nn.Conv` have closed forms, in which the views of a record are further
  positions of it; every other leaf module (norms, embeddings, grouped convolutions,
  your own) gets its own small per-record gradient. A
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
    views: neighbouring rows that are one record, >= 1.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), grads)`.

  Deviation: records that are not finite are replaced by a finite one of the batch in
    the second pass, because a zero factor times NaN is NaN. Norms carry float32
    rounding. A layer whose input happens to lead with another axis of length B is not
    noticed.

  Reference: Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv
    1510.01799; Li et al., "Large Language Models Can Be Strong Differentially Private
    Learners", 2021, arXiv 2110.05679; Bu et al., "Scalable and Efficient Training of
    Large Convolutional Neural Networks with Differential Privacy", 2022, arXiv
    2205.10683.
  """
  options = {"clip": clip, "denominator": denominator, "views": views}
  fallback = microbatch(losses_fn, size=size, **options)

  def run(params, batch, state, ctx):
    try:
      measured = _squared_norms(losses_fn, params, batch, ctx, views)
    except _UnsupportedError as reason:
      logging.warning("no ghost clipping, microbatches of %d instead: %s", size, reason)
      return fallback(params, batch, state, ctx)
    return _clipped(losses_fn, params, batch, ctx, measured, **options)

  return run


def microbatch(losses_fn, *, clip, denominator, size=16, views=1):
  """Clip per-example gradients with norms from gradients taken `size` at a time.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`; it is given batches of one
      record, and each leaf of `aux` must lead with the axis B.
    clip: C > 0.
    denominator: scalar, the public batch size.
    size: records held at once; memory grows as size times the parameters.
    views: neighbouring rows that are one record, >= 1.

  Returns:
    `(params, batch, state, ctx) -> ((value, (losses [B], aux)), grads)`.
  """

  def alone(params, batch, ctx):
    one = jax.vmap(lambda record: losses_fn(params, record, ctx))
    return _ungrouped(one(_grouped(batch, views)))

  def run(params, batch, state, ctx):
    del state

    def measure(record):
      def mean(params):
        losses, aux = losses_fn(params, record, ctx)
        return losses.mean(), (losses, aux)

      grads, out = jax.grad(mean, has_aux=True)(params)
      return sum(_square(leaf) for leaf in jax.tree.leaves(grads)), out

    records = _grouped(batch, views)
    at_once = min(size, records.weight.shape[0])
    squared, out = jax.lax.map(measure, records, batch_size=at_once)
    losses, aux = _ungrouped(out)
    measured = (losses, squared, aux)
    return _clipped(alone, params, batch, ctx, measured, clip, denominator, views)

  return run


def _clipped(losses_fn, params, batch, ctx, measured, clip, denominator, views):
  """Sum the clipped gradients of records whose losses and squared norms are known."""
  losses, squared, aux = measured
  finite = jnp.isfinite(losses).reshape(-1, views).all(1) & jnp.isfinite(squared)
  # Rounding can bring the square of a vanishing gradient below zero.
  norm = jnp.sqrt(jnp.maximum(squared, 0.0))
  factor = jnp.minimum(1.0, clip / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
  factor = jnp.where(finite, factor * batch.weight[::views], 0.0)
  clean = _copy_over(batch, finite, views)

  def total(params):
    means = losses_fn(params, clean, ctx)[0].reshape(-1, views).mean(1)
    return (means * factor).sum()

  grads = jax.tree.map(
    lambda leaf: jnp.where(finite.any(), leaf / denominator, 0).astype(leaf.dtype),
    jax.grad(total)(params),
  )
  kept = jnp.repeat(finite, views)
  value = weighted_mean(jnp.where(kept, losses, 0.0), batch.weight * kept)
  return (value, (jnp.where(kept, losses, jnp.nan), aux)), grads


def _square(leaf):
  return (leaf.astype(jnp.float32) ** 2).sum()


def _grouped(tree, views):
  """Split the leading axis of every leaf into records and views, [R,views,...]."""
  return jax.tree.map(lambda a: a.reshape(-1, views, *a.shape[1:]), tree)


def _ungrouped(tree):
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def _copy_over(batch, finite, views):
  """Put a finite record in the place of each record that is not.

  Their ids stay: `losses_fn` may derive its random stream from them, and the second
  pass must see the dropout masks that the norms were taken with.
  """
  source = jnp.where(finite, jnp.arange(finite.shape[0]), finite.argmax())
  clean = jax.tree.map(lambda a: a[source], _grouped(batch, views))
  return _ungrouped(clean)._replace(index=batch.index)


class _UnsupportedError(Exception):
  """Why a model cannot be clipped by `ghost`."""


def _squared_norms(losses_fn, params, batch, ctx, views):
  """Run the model once; return its losses [B], squared gradient norms [R] and aux."""
  names = {
    id(leaf): jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  seen = set()

  def tagged(dummy):
    with nn.intercept_methods(_tagger(dummy, views, names, seen)):
      return losses_fn(params, batch, ctx)

  dummy = jnp.zeros(batch.weight.shape[0] // views, jnp.float32)
  losses, pull, aux = jax.vjp(tagged, dummy, has_aux=True)
  # A parameter that no tag has seen would be missing from the norm.
  unseen = sorted(name for leaf, name in names.items() if leaf not in seen)
  if unseen:
    raise _UnsupportedError(f"{unseen[0]} acts outside a plain leaf module")
  (squared,) = pull(jnp.full_like(losses, 1 / views))
  return losses, squared, aux


def _tagger(dummy, views, names, seen):
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
    rows = dummy.shape[0] * views
    _check_call(where, module, args, kwargs, out, rows)
    seen.update(ids)
    square = _RULES.get(type(module), _layer_rule)(module, kwargs, args[0], views)
    return _tag(square, out, dummy, args[0], own)

  return intercept


def _check_call(where, module, args, kwargs, out, rows):
  if len(args) != 1 or any(hasattr(v, "shape") for v in kwargs.values()):
    raise _UnsupportedError(f"{where} takes more than one array")
  if len(module.variables) > 1:
    raise _UnsupportedError(f"{where} holds more than parameters")
  for array in (args[0], out):
    if getattr(array, "shape", ())[:1] != (rows,):
      raise _UnsupportedError(f"{where} does not keep the batch axis first")


def _tag(square, out, dummy, x, params):
  """Return `out`; pulled back, `dummy` gets `square(cotangent, x, params)` [R]."""

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
  """Square the norm of sum_t a_t b_t^T, for a [R,T,I] and b [R,T,O] -> [R]."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  if a.shape[1] == 1:
    return (a**2).sum((1, 2)) * (b**2).sum((1, 2))
  if a.shape[1] ** 2 < a.shape[2] * b.shape[2]:
    return ((a @ a.mT) * (b @ b.mT)).sum((1, 2))
  return ((a.mT @ b) ** 2).sum((1, 2))


def _affine_square(a, b, use_bias, views):
  a, b = (v.reshape(v.shape[0] // views, -1, v.shape[-1]) for v in (a, b))
  square = _kernel_square(a, b)
  if use_bias:
    square += (b.astype(jnp.float32).sum(1) ** 2).sum(-1)
  return square


def _dense_rule(module, kwargs, x, views):
  del kwargs, x
  return lambda cotangent, x, _: _affine_square(x, cotangent, module.use_bias, views)


def _conv_rule(module, kwargs, x, views):
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
    return _layer_rule(module, kwargs, x, views)
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
    patches = jnp.concatenate(patches, -1)
    return _affine_square(patches, cotangent, module.use_bias, views)

  return square


def _layer_rule(module, kwargs, x, views):
  """Any leaf module: differentiate this one layer, record by record."""
  alone = module.clone(parent=None, name=None)

  def apply(params, rows):
    return alone.apply({"params": params}, rows, **kwargs)

  try:
    jax.eval_shape(apply, module.variables["params"], x[:views])
  except FlaxError as error:
    where = "/".join(module.path)
    raise _UnsupportedError(f"{where} cannot run alone: {error}") from None

  def square(cotangent, x, params):
    def one(cotangent, rows):
      _, pull = jax.vjp(lambda params: apply(params, rows), params)
      return sum(_square(leaf) for leaf in jax.tree.leaves(pull(cotangent)))

    return jax.vmap(one)(*_grouped((cotangent, x), views))

  return square


def _tuple(value, rank):
  """Write a linen window argument out per axis."""
  if value is None or isinstance(value, int):
    return (1 if value is None else value,) * rank
  return tuple(value)


_RULES = {nn.Dense: _dense_rule, nn.Conv: _conv_rule}

"""Run a model forwards and backwards once and record what its layers saw.

The input of each layer and the cotangent of its output determine every record's
gradient (`ghost_rules`), so no second backward pass is needed.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from mixdef.defenses.ghost_rules import (
  Call,
  UnsupportedError,
  grouped,
  shares,
  ungrouped,
)
from mixdef.models.layer_calls import reached, watch


def record_calls(losses_fn, params, batch, ctx, views):
  """Run a model and pull the mean loss of every record back to its layers' outputs.

  Each record passes through the model, and through every part of the chain that acts on
  its loss, in a batch that holds only its own views, so operations on the batch cannot
  involve any other record. Parameters are identified by object identity, so those of a
  frozen second network are left alone and those hidden by a lifted transform are
  detected.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`.
    params: the parameters whose layers are recorded.
    batch: batch whose leaves have the leading axis B.
    ctx: context passed to `losses_fn`.
    views: number of adjacent rows that belong to one record.

  Returns:
    The losses [B], aux, and the calls of layers in their order, with cotangents in
    `out`. A parameter that no layer holds does not affect the losses.

  Raises:
    UnsupportedError: if a parameter is used outside a leaf module that is applied to
      one array, keeps the batch axis first, and is not inside another transformation,
      as a critic under the gradient of its penalty is.
  """
  records = grouped(batch, views)
  outputs = _probe(losses_fn, params, records, ctx, views)
  count = len(records.weight)
  offsets = [jnp.zeros((count, views, *out.shape[1:]), out.dtype) for out in outputs]
  calls: list[Call] = []

  def one(record, offsets):
    def tap(run, x):
      out = run(x) + offsets[len(calls)]
      return out, out

    with watch(_recorder(calls, params, views, tap)):
      losses, aux = losses_fn(params, record, ctx)
    return losses, (aux, [call.x for call in calls])

  def tapped(offsets):
    return jax.vmap(one)(records, offsets)

  losses, pull, kept = jax.vjp(tapped, offsets, has_aux=True)
  (cotangents,) = pull(shares(batch.weight, views).astype(losses.dtype))
  losses, (aux, inputs), cotangents = ungrouped((losses, kept, cotangents))
  calls = [
    call._replace(x=x, out=cotangent)
    for call, x, cotangent in zip(calls, inputs, cotangents, strict=True)
  ]
  return losses, aux, calls


def _probe(losses_fn, params, records, ctx, views):
  """Return the shapes of all outputs of layers, if parameters act only in layers.

  The model is cut before and after every layer: a parameter that still reaches a loss
  or another layer would be missing from the gradient. The model is traced with twice
  the rows of a record, so that no other axis of the same length is mistaken for theirs.
  """
  calls: list[Call] = []

  def cut(run, x):
    out = run(jnp.zeros_like(x))
    return out, jnp.zeros_like(out)

  def run(params, record):
    with watch(_recorder(calls, params, 2 * views, cut)):
      losses, _ = losses_fn(params, record, ctx)
    return [call.out for call in calls], losses, [call.x for call in calls]

  def twice(leaf):
    return jax.ShapeDtypeStruct((2 * views, *leaf.shape[2:]), leaf.dtype)

  trace = jax.make_jaxpr(run, return_shape=True)
  closed, (outputs, *_) = trace(params, jax.tree.map(twice, records))
  found = reached(closed.jaxpr)
  for call, sources in zip(calls, found, strict=False):
    if sources - set(call.places.values()):
      raise UnsupportedError(f"{call.layer.where} uses more than its input")
  paths = jax.tree_util.tree_leaves_with_path(params)
  loose = set().union(*found[len(calls) :]) & set(range(len(paths)))
  if loose:
    path, _ = paths[min(loose)]
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    raise UnsupportedError(f"{where} is used outside a plain leaf module")
  return outputs


def _recorder(calls, params, rows, tap):
  """Make the handler that appends to `calls`.

  `tap(run, x) -> (out, value that the model continues with)` runs each of them.
  """
  inside: list[str] = []
  here = get_opaque_trace_state(convention="flax")
  leaves = jax.tree.leaves(params)
  places = {id(leaf): place for place, leaf in enumerate(leaves)}
  if len(places) < len(leaves):
    raise UnsupportedError("two parameters are the same array")

  def handle(layer, run):
    own = layer.params
    held = {name: places[id(leaf)] for name, leaf in own.items() if id(leaf) in places}
    if not held or inside:
      return run(layer.x)
    if layer.fault:
      raise UnsupportedError(layer.fault)
    if get_opaque_trace_state(convention="flax") != here:
      raise UnsupportedError(f"{layer.where} is called inside another transformation")
    _check_rows(layer.where, layer.x, rows)

    def checked(x):
      out = run(x)
      _check_rows(layer.where, out, rows)
      return out

    inside.append(layer.where)
    out, onward = tap(checked, layer.x)
    inside.pop()
    calls.append(Call(layer, held, layer.x, out))
    return onward

  return handle


def _check_rows(where, array, rows):
  if not hasattr(array, "shape"):
    raise UnsupportedError(f"{where} has more than one input or output array")
  if array.shape[:1] != (rows,):
    raise UnsupportedError(f"{where} does not keep the batch axis first")

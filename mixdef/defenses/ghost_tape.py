"""Run a model forwards and backwards once and record what its layers saw.

The input of each layer and the cotangent of its output determine every record's
gradient (`ghost_rules`), so no second backward pass is needed.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from mixdef.defenses.ghost_rules import (
  Call,
  Copies,
  UnsupportedError,
  grouped,
  shares,
  ungrouped,
)
from mixdef.models.layer_calls import reached, sources, watch


def record_calls(losses_fn, params, batch, ctx, views):
  """Run a model and pull the mean loss of every record back to its layers' outputs.

  Each record passes through the model, and through every part of the chain that acts on
  its loss, in a batch that holds only its own views, so operations on the batch cannot
  involve any other record. Parameters are identified by object identity, so those of a
  frozen second network are left alone and those hidden by a lifted transform are
  detected. Every record gets a copy of each parameter that acts outside of leaf
  modules, if these are small.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`.
    params: the parameters whose layers are recorded.
    batch: batch whose leaves have the leading axis B.
    ctx: context passed to `losses_fn`.
    views: number of adjacent rows that belong to one record.

  Returns:
    The losses [B], aux, and the calls of layers in their order, with cotangents in
    `out`, followed by the gradients of copies. A parameter that is in none of them does
    not affect the losses.

  Raises:
    UnsupportedError: if copies of the parameters that are used outside of calls of leaf
      modules, with what is computed from them alone, would be larger than the inputs
      and outputs of all layers. Such a call is applied to one array, keeps the batch
      axis first, and is not inside another transformation, as a critic under the
      gradient of its penalty is.
  """
  records = grouped(batch, views)
  outputs, free = _probe(losses_fn, params, records, ctx, views)
  count = len(records.weight)
  offsets = [jnp.zeros((count, views, *out.shape[1:]), out.dtype) for out in outputs]
  leaves, structure = jax.tree.flatten(params)
  copies = {at: jnp.broadcast_to(leaves[at], (count, *leaves[at].shape)) for at in free}
  calls: list[Call] = []

  def one(record, offsets, copies):
    own = [copies.get(place, leaf) for place, leaf in enumerate(leaves)]

    def tap(run, x):
      out = run(x) + offsets[len(calls)]
      return out, out

    with watch(_recorder(calls, own, free, views, tap)):
      losses, aux = losses_fn(structure.unflatten(own), record, ctx)
    return losses, (aux, [call.x for call in calls])

  def tapped(offsets, copies):
    return jax.vmap(one)(records, offsets, copies)

  losses, pull, kept = jax.vjp(tapped, offsets, copies, has_aux=True)
  cotangents, grads = pull(shares(batch.weight, views).astype(losses.dtype))
  losses, (aux, inputs), cotangents = ungrouped((losses, kept, cotangents))
  recorded = [
    call._replace(x=x, out=cotangent)
    for call, x, cotangent in zip(calls, inputs, cotangents, strict=True)
  ]
  return losses, aux, [*recorded, *(Copies({"": at}, grads[at]) for at in grads)]


def _probe(losses_fn, params, records, ctx, views):
  """Return the shapes of all outputs of layers, and which parameters act elsewhere.

  The model is cut before and after every layer: a parameter that still reaches a loss
  or another layer would be missing from the gradient. The model is traced with twice
  the rows of a record, so that no other axis of the same length is mistaken for theirs,
  and again for as long as this frees parameters, because a layer with free parameters
  is none.
  """
  calls: list[Call] = []
  free: dict[int, str] = {}  # place -> why
  paths = jax.tree_util.tree_leaves_with_path(params)

  def twice(leaf):
    return jax.ShapeDtypeStruct((2 * views, *leaf.shape[2:]), leaf.dtype)

  def run(params, record):
    leaves, calls[:] = jax.tree.leaves(params), []
    mark = record.weight.sum()

    def cut(run, x):
      out = run(jnp.zeros_like(x))
      return out, jax.tree.map(lambda leaf: jnp.full_like(leaf, mark), out)

    with watch(_recorder(calls, leaves, free, 2 * views, cut)):
      losses, _ = losses_fn(params, record, ctx)
    return [call.out for call in calls], losses, [call.x for call in calls]

  while True:
    before = len(free)
    trace = jax.make_jaxpr(lambda *args: run(*args), return_shape=True)
    closed, (outputs, _, inputs) = trace(params, jax.tree.map(twice, records))
    found = reached(closed.jaxpr)
    for call, used in zip(calls, found, strict=False):
      if used - set(call.places.values()):
        reason = f"{call.layer.where} uses more than its input"
        free |= dict.fromkeys(call.places.values(), reason)
    for place in set().union(*found[len(calls) :]) & set(range(len(paths))):
      where = jax.tree_util.keystr(paths[place][0], simple=True, separator="/")
      free.setdefault(place, f"{where} is used outside a plain leaf module")
    if len(free) == before:
      break
  # The copies, and what is computed of them alone, such as a kernel of two factors. An
  # array that is only broadcast is not held: the compiler repeats it where it is read.
  repeated = {
    variable
    for equation in closed.jaxpr.eqns
    if equation.primitive.name == "broadcast_in_dim"
    for variable in equation.outvars
  }
  copied = sum(
    variable.aval.size
    for variable, used in sources(closed.jaxpr).items()
    if used & free.keys() and max(used) < len(paths) and variable not in repeated
  )
  if copied > sum(array.size for array in [*inputs, *outputs]) / 2:
    raise UnsupportedError(free[max(free, key=lambda place: paths[place][1].size)])
  return outputs, free


def _recorder(calls, leaves, free, rows, tap):
  """Make the handler that appends to `calls`.

  `tap(run, x) -> (out, value that the model continues with)` runs each of them. The
  parameters of a layer that cannot be taken apart are entered into `free`. Those that
  are free already belong to no layer.
  """
  inside: list[str] = []
  here = get_opaque_trace_state(convention="flax")
  if len({id(leaf) for leaf in leaves}) < len(leaves):
    raise UnsupportedError("two parameters are the same array")
  places = {id(leaf): at for at, leaf in enumerate(leaves) if at not in free}

  def handle(layer, run):
    own = layer.params.items()
    held = {name: places[id(leaf)] for name, leaf in own if id(leaf) in places}
    if not held or inside:
      return run(layer.x)
    fault = layer.fault or _fault(layer.where, layer.x, rows)
    if get_opaque_trace_state(convention="flax") != here:
      fault = fault or f"{layer.where} is called inside another transformation"
    if fault:
      free.update(dict.fromkeys(held.values(), fault))
      return run(layer.x)
    inside.append(layer.where)
    out, onward = tap(run, layer.x)
    inside.pop()
    if fault := _fault(layer.where, out, rows):
      free.update(dict.fromkeys(held.values(), fault))
    else:
      calls.append(Call(layer, held, layer.x, out))
    return onward

  return handle


def _fault(where, array, rows):
  """Return why an input or output cannot be recorded, or ""."""
  if not hasattr(array, "shape"):
    return f"{where} has more than one input or output array"
  if array.shape[:1] != (rows,):
    return f"{where} does not keep the batch axis first"
  return ""

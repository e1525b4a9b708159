"""Run a linen model forwards and backwards once and record what its layers saw.

The input of each layer and the cotangent of its output determine every record's
gradient (`ghost_rules`), so no second backward pass is needed.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from mixdef.defenses.ghost_rules import (
  UnsupportedError,
  grouped,
  name_of,
  ungrouped,
)


class Layer(NamedTuple):
  """A leaf module as it was applied; `leaves` locates its parameters."""

  module: nn.Module
  kwargs: dict
  params: dict
  leaves: dict  # name -> index among the leaves of all parameters
  x: Any  # its input [B,...]
  out: Any  # its output [B,...], or the cotangent of the output


def record_layers(losses_fn, params, batch, ctx, views):
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
    The losses [B], aux, and a list of `Layer`, with cotangents in `out`. A parameter
    that no layer holds does not affect the losses.

  Raises:
    UnsupportedError: if a parameter is used outside a leaf module that is applied once,
      to one array, and keeps the batch axis first.
  """
  records = grouped(batch, views)
  outputs = _probe(losses_fn, params, records, ctx, views)
  count = len(records.weight)
  offsets = [jnp.zeros((count, views, *out.shape[1:]), out.dtype) for out in outputs]
  layers: list[Layer] = []

  def one(record, offsets):
    def tap(call, x):
      out = call(x) + offsets[len(layers)]
      return out, out

    with nn.intercept_methods(_recorder(layers, params, views, tap)):
      losses, aux = losses_fn(params, record, ctx)
    return losses, (aux, [layer.x for layer in layers])

  def tapped(offsets):
    return jax.vmap(one)(records, offsets)

  losses, pull, kept = jax.vjp(tapped, offsets, has_aux=True)
  (cotangents,) = pull(jnp.full_like(losses, 1 / views))
  losses, (aux, inputs), cotangents = ungrouped((losses, kept, cotangents))
  layers = [
    layer._replace(x=x, out=cotangent)
    for layer, x, cotangent in zip(layers, inputs, cotangents, strict=True)
  ]
  return losses, aux, layers


def _probe(losses_fn, params, records, ctx, views):
  """Return the shapes of all outputs of layers, if parameters act only in layers.

  The model is cut before and after every layer: a parameter that still reaches a loss
  or another layer would be missing from the gradient. The model is traced with twice
  the rows of a record, so that no other axis of the same length is mistaken for theirs.
  """
  layers: list[Layer] = []

  def cut(call, x):
    out = call(jnp.zeros_like(x))
    return out, jnp.zeros_like(out)

  def run(params, record):
    with nn.intercept_methods(_recorder(layers, params, 2 * views, cut)):
      losses, _ = losses_fn(params, record, ctx)
    return [layer.out for layer in layers], losses, [layer.x for layer in layers]

  def twice(leaf):
    return jax.ShapeDtypeStruct((2 * views, *leaf.shape[2:]), leaf.dtype)

  trace = jax.make_jaxpr(run, return_shape=True)
  closed, (outputs, *_) = trace(params, jax.tree.map(twice, records))
  reached = _reached(closed.jaxpr)
  for layer, sources in zip(layers, reached, strict=False):
    if sources - set(layer.leaves.values()):
      raise UnsupportedError(f"{name_of(layer.module)} uses more than its input")
  paths = jax.tree_util.tree_leaves_with_path(params)
  loose = set().union(*reached[len(layers) :]) & set(range(len(paths)))
  if loose:
    path, _ = paths[min(loose)]
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    raise UnsupportedError(f"{where} is used outside a plain leaf module")
  return outputs


def _reached(jaxpr):
  """Return, for every output of a program, the indices of the inputs it may use."""
  used = {variable: {place} for place, variable in enumerate(jaxpr.invars)}

  def by(variables):
    sets = (used.get(v, ()) for v in variables if not isinstance(v, Literal))
    return set().union(*sets)

  for equation in jaxpr.eqns:
    used |= dict.fromkeys(equation.outvars, by(equation.invars))
  return [by([variable]) for variable in jaxpr.outvars]


def _recorder(layers, params, rows, tap):
  """Make the interceptor that appends to `layers`.

  `tap(call, x) -> (out, value that the model continues with)` calls each of them.
  """
  inside = set()
  leaves = jax.tree.leaves(params)
  places = {id(leaf): place for place, leaf in enumerate(leaves)}
  if len(places) < len(leaves):
    raise UnsupportedError("two parameters are the same array")

  def intercept(call, args, kwargs, context):
    module = context.module
    own = {} if module.scope is None else module.variables.get("params", {})
    held = {name: places[id(leaf)] for name, leaf in own.items() if id(leaf) in places}
    if not held or module.path in inside or context.method_name == "setup":
      return call(*args, **kwargs)
    where = name_of(module)
    if context.method_name != "__call__":
      raise UnsupportedError(f"{where} is called by its method {context.method_name}")
    if len(held) < len(own):
      raise UnsupportedError(f"{where} also has submodules or frozen parameters")
    if any(set(held.values()) & set(layer.leaves.values()) for layer in layers):
      raise UnsupportedError(f"{where} is applied twice")
    if len(module.variables) > 1:
      raise UnsupportedError(f"{where} has variables other than parameters")
    if len(args) != 1 or any(hasattr(v, "shape") for v in kwargs.values()):
      raise UnsupportedError(f"{where} has more than one input array")
    _check_rows(where, args[0], rows)
    inside.add(module.path)

    def checked(x):
      out = call(x, **kwargs)
      _check_rows(where, out, rows)
      return out

    out, onward = tap(checked, args[0])
    inside.remove(module.path)
    layers.append(Layer(module, kwargs, dict(own), held, args[0], out))
    return onward

  return intercept


def _check_rows(where, array, rows):
  if not hasattr(array, "shape"):
    raise UnsupportedError(f"{where} has more than one input or output array")
  if array.shape[:1] != (rows,):
    raise UnsupportedError(f"{where} does not keep the batch axis first")

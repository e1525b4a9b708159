"""Run a linen model forwards and backwards once, and keep what its layers saw.

The input of each layer and the cotangent of its output are all that every record's
gradient is made of (`ghost_rules`), so no second backward pass is needed.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.defenses.ghost_rules import UnsupportedError


class Layer(NamedTuple):
  """A leaf module as it was applied; `ids` are the identities of its parameters."""

  module: nn.Module
  kwargs: dict
  params: dict
  ids: dict
  x: Any  # its input [B,...]
  out: Any  # its output [B,...], or the cotangent of it


def record_layers(losses_fn, params, batch, ctx, weights):
  """Run a model and pull the weighted sum of its losses back to every layer's output.

  Parameters are told by identity, so those of a frozen second network are left alone
  and those hidden by a lifted transform are noticed.

  Args:
    losses_fn: `(params, batch, ctx) -> (losses [B], aux)`.
    params: those whose layers are recorded.
    batch: its leaves lead with the axis B.
    ctx: handed to `losses_fn`.
    weights: [B], of the losses in the sum.

  Returns:
    The losses [B], aux, and a list of `Layer`, with cotangents in `out`.

  Raises:
    UnsupportedError: if a parameter acts elsewhere than in a leaf module that is
      applied once, to one array, and keeps the batch axis first.
  """
  names = {
    id(leaf): jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def run(offsets):
    layers = []
    with nn.intercept_methods(_recorder(layers, names, weights.shape[0], offsets)):
      losses, aux = losses_fn(params, batch, ctx)
    return losses, aux, layers

  def find():
    nonlocal found
    found = run(None)[2]
    return [layer.out for layer in found]

  found: list[Layer] = []
  offsets = [jnp.zeros(out.shape, out.dtype) for out in jax.eval_shape(find)]
  # A parameter that no layer holds would be missing from the gradient.
  seen = {i for layer in found for i in layer.ids.values()}
  unseen = sorted(name for leaf, name in names.items() if leaf not in seen)
  if unseen:
    raise UnsupportedError(f"{unseen[0]} acts outside a plain leaf module")

  def tapped(offsets):
    losses, aux, layers = run(offsets)
    return losses, (aux, [layer.x for layer in layers])

  losses, pull, (aux, inputs) = jax.vjp(tapped, offsets, has_aux=True)
  (cotangents,) = pull(weights.astype(losses.dtype))
  layers = [
    layer._replace(x=x, out=cotangent)
    for layer, x, cotangent in zip(found, inputs, cotangents, strict=True)
  ]
  return losses, aux, layers


def _recorder(layers, names, rows, offsets):
  """Make the interceptor that appends to `layers` and adds `offsets` to outputs."""
  inside = set()

  def intercept(call, args, kwargs, context):
    module = context.module
    own = {} if module.scope is None else module.variables.get("params", {})
    ids = {name: id(leaf) for name, leaf in own.items() if id(leaf) in names}
    if not ids or module.path in inside or context.method_name == "setup":
      return call(*args, **kwargs)
    where = "/".join(module.path) or type(module).__name__
    if context.method_name != "__call__":
      raise UnsupportedError(f"{where} is used by its method {context.method_name}")
    if len(ids) < len(own):
      raise UnsupportedError(f"{where} holds parameters beside submodules")
    if any(set(ids.values()) & set(layer.ids.values()) for layer in layers):
      raise UnsupportedError(f"{where} is applied twice")
    inside.add(module.path)
    out = call(*args, **kwargs)
    inside.remove(module.path)
    _check_call(where, module, args, kwargs, out, rows)
    if offsets is not None:
      out = out + offsets[len(layers)]
    layers.append(Layer(module, kwargs, dict(own), ids, args[0], out))
    return out

  return intercept


def _check_call(where, module, args, kwargs, out, rows):
  if len(args) != 1 or any(hasattr(v, "shape") for v in kwargs.values()):
    raise UnsupportedError(f"{where} takes more than one array")
  if len(module.variables) > 1:
    raise UnsupportedError(f"{where} holds more than parameters")
  for array in (args[0], out):
    if getattr(array, "shape", ())[:1] != (rows,):
      raise UnsupportedError(f"{where} does not keep the batch axis first")

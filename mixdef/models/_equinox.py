"""Modules of Equinox as a `Network`."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from mixdef.core.randomness import row_keys
from mixdef.core.reading import digest
from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models.network import (
  OFF,
  ON,
  Network,
  by_path,
  check_factory,
  first_line,
  flags,
  nested,
  parameters_of,
  phase,
  refuse_unknown,
  shapes_of,
)


def adapt_equinox(
  model: Any, inputs: int = 1, still: Callable[[str], bool] | None = None
) -> Network:
  """Create a `Network` from a module of Equinox, its class, or `key -> module`.

  The module takes one record, as those of Equinox do, and is mapped over the batch. If
  its `__call__` takes `key`, every row of a training step receives a different key; in
  inference `key` is None and the module is in `inference_mode`. A training flag is
  passed too, under the names that linen modules may use. Floating arrays are
  parameters, by their path, and other arrays are constants.

  Args:
    model: a class or a function makes new parameters for every model that is trained;
      a module has the parameters that every model starts from.
    inputs: number of arrays that it is called with.
    still: path of a layer -> whether it behaves in training as in inference.

  Raises:
    TypeError: for a function that returns another object.
    ValueError: for a module that keeps state, such as BatchNorm's statistics, which
      cannot exclude padded rows; that has dropout and takes no key; that needs an
      argument that learners do not pass; or that cannot be made inside a trace.
  """
  if isinstance(model, eqx.Module):
    arrays = filter(eqx.is_array, jax.tree.leaves(model))
    name = f"{type(model).__qualname__}@{digest(*arrays)}"
    make = lambda key: model  # noqa: E731
  else:
    check_factory(model, "key")
    name = text_of(model)
    make = lambda key: model(key=key)  # noqa: E731
  found: dict[str, Any] = {}

  def taken_apart(key):
    module = make(key)
    if not isinstance(module, eqx.Module):
      raise TypeError(
        f"model is {name}, which makes a {type(module).__name__}: let it return a "
        "module of Equinox"
      )
    paths, structure = jax.tree_util.tree_flatten_with_path(module)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths]
    if not found:
      found["structure"], found["names"] = structure, names
      found["rest"] = {
        n: leaf
        for n, (_, leaf) in zip(names, paths, strict=True)
        if not eqx.is_array(leaf)
      }
      found["name"], found["text"] = type(module).__name__, _structure(module)
      found["call"] = parameters_of(type(module).__call__, bound=False)
      found["fault"] = _fault(module, found["call"])
    arrays = {
      n: leaf for n, (_, leaf) in zip(names, paths, strict=True) if eqx.is_array(leaf)
    }
    params = {n: leaf for n, leaf in arrays.items() if eqx.is_inexact_array(leaf)}
    constants = {n: leaf for n, leaf in arrays.items() if n not in params}
    return nested(params), nested(constants)

  shapes_of(taken_apart, name, "key")
  called, takes = f"{found['name']}.__call__", found["call"]
  if found["fault"]:
    raise ValueError(found["fault"])
  names = list(takes.items())
  known = {*ON, *OFF, "key"}
  refuse_unknown(called, dict([*names[:1], *names[inputs:]]), known)

  def init(key, *xs):
    del xs
    params, constants = taken_apart(key)
    return {"params": params, **({"constants": constants} if constants else {})}

  def apply(variables, *xs, train, key=None, weight=None):
    del weight  # rows do not see each other
    leaves = {
      **found["rest"],
      **by_path(variables["params"]),
      **by_path(variables.get("constants", {})),
    }
    if leaves.keys() != set(found["names"]):
      raise ValueError(f"the parameters are not those of {found['name']}")
    module = found["structure"].unflatten([leaves[name] for name in found["names"]])
    module = eqx.nn.inference_mode(module, value=not train)
    if still:
      module = _held_still(module, still)
    options = phase(flags(takes), train)
    xs = tuple(map(to_float, xs))
    draws = train and key is not None and "key" in takes
    keys = row_keys(key, jax.numpy.arange(len(xs[0]))) if draws else None

    def one(xs, key):
      own = {"key": key} if "key" in takes else {}
      return module(*xs, **own, **options)

    try:
      outputs = jax.vmap(one, in_axes=(0, 0 if draws else None))(xs, keys)
    except (TypeError, ValueError) as error:
      shapes = " and ".join(str(list(x.shape[1:])) for x in xs)
      raise ValueError(
        f"{called} cannot be called with one record {shapes}, without the axis of the "
        f"batch: {first_line(error)}; let it reshape the record, or move the channels "
        "first for its convolutions"
      ) from error
    kept = {name: variables[name] for name in variables if name != "params"}
    return outputs, {} if train else kept

  text = f"{name}{found['text']}"
  still_of = functools.partial(adapt_equinox, model, inputs)
  return Network(init, apply, text, still=still_of, name=found["name"])


def _held_still(module, still):
  """Set some layers to inference; `eqx.nn.inference_mode` sets all of them."""

  def held(path, leaf):
    layer, _, name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition(
      "/"
    )
    return True if name == "inference" and still(layer) else leaf

  return jax.tree_util.tree_map_with_path(held, module)


def _structure(module):
  """Hash the structure, settings and shapes of a module."""
  leaves, structure = jax.tree.flatten(module)
  shapes = [
    f"{leaf.dtype}{list(leaf.shape)}" if eqx.is_array(leaf) else text_of(leaf)
    for leaf in leaves
  ]
  words = text_of(str(structure)) + " ".join(shapes)
  return f"#{digest(np.frombuffer(words.encode(), np.uint8))}"


def _fault(module, takes):
  """Return why a module cannot be trained, or ""."""
  name = type(module).__name__

  def nodes(kind):
    leaves = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in leaves if isinstance(node, kind)]

  if nodes(eqx.nn.StateIndex):
    return (
      f"{name} keeps state, as Equinox's BatchNorm does, which padded rows would "
      "enter: use eqx.nn.GroupNorm or eqx.nn.LayerNorm"
    )
  if "key" not in takes and any(layer.p > 0 for layer in nodes(eqx.nn.Dropout)):
    return f"{name} has dropout: let its __call__ take key, and pass it on"
  return ""

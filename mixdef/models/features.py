"""Features: what the frozen layers of a model give to the first layer that changes.

If they depend on the record alone, they are the same in every step of every model, and
can be computed once.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from mixdef.core.randomness import random_key
from mixdef.models.layer_calls import reached, watch, watcher
from mixdef.models.network import Network


class NoFeatures(ValueError):
  """Raised with the reason why the features of a model cannot be computed once."""


def first_input(run: Callable, changing: Collection[str]) -> Any:
  """Run a model and return the input of the first layer that training changes.

  Args:
    run: calls the model; its outputs are ignored.
    changing: paths of the leaves that training changes.

  Raises:
    NoFeatures: if no such layer is found, if no frozen layer precedes it, or if it is
      called with other inputs, too.
  """
  found: list[Any] = []
  before: list[str] = []
  here = get_opaque_trace_state(convention="flax")

  def handle(layer, call):
    if found or not _changes(layer, changing):
      before.append(layer.where)
    else:
      if not before:
        raise NoFeatures(f"no frozen layer precedes {layer.where}")
      if layer.fault:
        raise NoFeatures(layer.fault)
      if get_opaque_trace_state(convention="flax") != here:
        raise NoFeatures(f"{layer.where} is called inside another transformation")
      found.append(layer.x)
    return call(layer.x)

  with watch(handle):
    run()
  if not found:
    raise NoFeatures("no layer that is trained can be watched")
  return found[0]


def with_input(run: Callable, changing: Collection[str], features: Any) -> Any:
  """Run a model whose first changing layer is given these features.

  The layers before it are called as well; as nothing uses their outputs, the compiler
  removes them.

  Args:
    run: calls the model.
    changing: paths of the leaves that training changes.
    features: [B,...], in place of the layer's own input.

  Returns:
    What `run` returns.
  """
  outer, done = watcher(), False

  def handle(layer, call):
    nonlocal done
    if not done and _changes(layer, changing):
      done, layer = True, layer._replace(x=features)
    return outer(layer, call) if outer else call(layer.x)

  with watch(handle):
    return run()


def features_of(network: Network, variables: Any, records: Any) -> Callable:
  """Return the function that computes the features of a network.

  Args:
    network: a network with `features`.
    variables: its variables; only their shapes are used.
    records: [N,...]; only their shape and type are used.

  Returns:
    `x [N,...] -> [N,...]`. Each record passes through the frozen layers alone, so that
    it cannot influence the features of others.

  Raises:
    NoFeatures: if they depend on more than the record: on random numbers, on leaves
      that differ between models, or on the weights of a batch.
  """
  of = network.features
  assert of is not None
  key = jax.eval_shape(lambda: random_key(0))
  for rows in (2, 3):  # two sizes tell the axis of the records from any other
    x = jax.ShapeDtypeStruct((rows, *records.shape[1:]), records.dtype)
    weight = jax.ShapeDtypeStruct((rows,), jnp.float32)
    closed, found = jax.make_jaxpr(of, return_shape=True)(variables, x, key, weight)
    if not hasattr(found, "shape") or found.shape[:1] != (rows,):
      raise NoFeatures("the first trained layer does not keep the batch axis first")
  (used,) = reached(closed.jaxpr)
  own = len(jax.tree.leaves(variables))
  what = {own + 1: "random numbers", own + 2: "the weights of the rows"}
  for place in sorted(used - {own}):
    raise NoFeatures(f"they depend on {what.get(place, 'leaves of each model')}")

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)

  def one(record):
    return of(zeros, record[None], random_key(0), jnp.ones(1))[0]

  return lambda x: jax.lax.map(one, x, batch_size=_BLOCK)


_BLOCK = 64  # records at once, whose activations stay in the cache of a CPU


def _changes(layer, changing):
  return any(f"{layer.where}/{name}" in changing for name in layer.params)

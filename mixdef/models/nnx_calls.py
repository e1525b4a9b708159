"""Watch the layers of an NNX model, and give its BatchNorm the mask of padded rows.

NNX has no interceptors. The module that `apply` merges is private to one call, so its
layers may be turned into subclasses that pass their calls on.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from mixdef.models.layer_calls import METHODS, Layer, several, watch, watcher

_calling = threading.local()


class _Place(NamedTuple):
  """What is known of the model that is called."""

  train: bool
  weight: Any
  paths: dict[int, str]
  still: Any
  trace: Any

  def trains(self, module):
    """Return whether a layer should act as in training."""
    return self.train and not (self.still and self.still(_where(module, self)))


@contextlib.contextmanager
def watched(
  model: nnx.Module, *, train: bool, weight: Any, still: Any = None
) -> Iterator[None]:
  """Pass the calls of a private model's layers on, while the context is open.

  Args:
    model: a module that nothing else refers to; its layers change their types.
    train: whether dropout and BatchNorm should act as in training.
    weight: [B], 0 for padding, which BatchNorm excludes; or None.
    still: path of a layer -> whether it should act as in inference in any case.

  Raises:
    ValueError: from a call of a layer that does not act as it should.
  """
  paths = {}
  for path, node in nnx.iter_graph(model):
    if not isinstance(node, nnx.Module):
      continue
    if type(node) in _CHECKS or (watcher() and _holds(node, type(node))):
      paths[id(node)] = "/".join(map(str, path)) or type(node).__name__
      object.__setattr__(node, "__class__", _passing(type(node)))
  before = getattr(_calling, "place", None)
  _calling.place = _Place(
    train, weight, paths, still, get_opaque_trace_state(convention="nnx")
  )
  try:
    yield
  finally:
    _calling.place = before


@functools.cache
def _passing(kind):
  """Return the subclass of a type of modules that passes its calls on."""

  def passing(method):
    original = getattr(kind, method)

    @functools.wraps(original)
    def call(self, *args, **kwargs):
      run = functools.partial(original, self)
      place = getattr(_calling, "place", None)
      if kind in _CHECKS and place:
        kwargs = _CHECKS[kind](self, place, args, kwargs)
      handler = watcher()
      if handler and place and args and _holds(self, kind):
        where = _where(self, place)
        return _handled(handler, self, kind, method, where, run, args, kwargs)
      return run(*args, **kwargs)

    return call

  methods = {name: passing(name) for name in METHODS if hasattr(kind, name)}
  names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
  return type(kind)(kind.__name__, (kind,), {**methods, **names})


def _batch_norm(module, place, args, kwargs):
  """Check the mode of BatchNorm, and exclude padding from its statistics."""
  where, weight = _where(module, place), place.weight
  trains = place.trains(module)
  given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
  if bool(module.use_running_average if given is None else given) == trains:
    if trains:
      raise ValueError(
        f"{where} uses its running average in training too, which then never changes: "
        "leave use_running_average to train() and eval()"
      )
    raise ValueError(
      f"{where} normalises by the batch when the model predicts: leave "
      "use_running_average to train() and eval()"
    )
  if not trains or weight is None or kwargs.get("mask") is not None:
    return kwargs
  if get_opaque_trace_state(convention="nnx") != place.trace:
    # A traced function may be used again, with the weights of the first call.
    raise ValueError(
      f"{where} is called inside another transformation, as nnx.jit or nnx.scan, where "
      "the padded rows of a batch are not known: call it outside, or let the model's "
      "__call__ take weight [B] and pass mask= to it"
    )
  if args[0].shape[:1] != weight.shape:
    raise ValueError(
      f"{where} normalises {list(args[0].shape)}, whose first axis is not that of the "
      f"{weight.shape[0]} records, so padded rows would enter its statistics: let the "
      "model's __call__ take weight [B] and pass mask= to it"
    )
  # A batch of only padding has no statistics, and `apply` drops those computed here.
  mask = (weight > 0) | ~(weight > 0).any()
  return {**kwargs, "mask": mask.reshape(-1, *(1,) * (args[0].ndim - 1))}


def _dropout(module, place, args, kwargs):
  """Check that dropout acts in training alone."""
  del args
  trains = place.trains(module)
  rate = module.rate if hasattr(module, "rate") else module.dropout_rate
  given = kwargs.get("deterministic")
  off = bool(module.deterministic if given is None else given)
  if rate and off == trains:
    where = _where(module, place)
    how = "is deterministic in training too" if off else "draws when the model predicts"
    raise ValueError(
      f"{where} has dropout at rate {rate} and {how}: leave deterministic to train() "
      "and eval(), or set the rate to 0"
    )
  return kwargs


_CHECKS = {
  nnx.BatchNorm: _batch_norm,
  nnx.Dropout: _dropout,
  nnx.MultiHeadAttention: _dropout,
}


def _holds(module, kind):
  """Return whether a module holds parameters itself.

  The steps of `nnx.RNN` are hidden in a scan, so that all of them are one layer.
  """
  return kind is nnx.RNN or bool(_params(module))


def _where(module, place):
  return place.paths.get(id(module), type(module).__name__)


def _handled(handler, module, kind, method, where, run, args, kwargs):
  """Pass a call to the handler that watches."""
  graphdef, own, rest = nnx.split(module, nnx.Param, ...)
  own = nnx.to_pure_dict(own)
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(own)]
  names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
  leaves, structure = jax.tree.flatten(own)
  arrays, held = dict(zip(names, leaves, strict=True)), _params(module)
  streams = nnx.to_pure_dict(nnx.filter_state(rest, nnx.RngState))
  streams = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), streams)

  def alone(params, x):
    params = structure.unflatten([params[name] for name in names])
    again = nnx.merge(graphdef, params, jax.tree.map(fresh_stream, streams))
    with watch(None):
      return getattr(again, method)(x, *args[1:], **kwargs)

  fault = ""
  direct = {n: leaf for n, leaf in arrays.items() if n.partition("/")[0] in held}
  if kind is not nnx.RNN and len(direct) < len(arrays):
    arrays, fault = direct, f"{where} also has submodules"
  elif jax.tree.structure(rest).num_leaves > jax.tree.structure(streams).num_leaves:
    fault = f"{where} has variables other than parameters"
  elif several(args, kwargs):
    fault = f"{where} has more than one input array"
  elif streams and "random_bits" in str(jax.make_jaxpr(alone)(arrays, args[0])):
    fault = f"{where} draws random numbers"
  layer = Layer(module, kind, method, where, arrays, args[0], alone, fault)
  return handler(layer, lambda x: run(x, *args[1:], **kwargs))


def _params(module):
  """Return the parameters that a module holds itself, by name."""
  held = vars(module).items()
  return {name: value for name, value in held if isinstance(value, nnx.Param)}


def fresh_stream(leaf: Any, key: Any = None) -> Any:
  """Return the start of a stream: keys made of `key`, or a count of zero.

  Args:
    leaf: an array of random keys, or of counts, or its shape.
    key: a random key; None for a constant.
  """
  if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jnp.zeros(leaf.shape, leaf.dtype)
  key = jax.random.key(0) if key is None else key
  return jax.random.split(key, leaf.shape) if leaf.shape else key

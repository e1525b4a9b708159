"""Watch the layers that hold a model's parameters, as they are called.

Per-example gradients are computed layer by layer (`mixdef.defenses.ghost_tape`), which
needs the arrays that a layer holds, what it is given, and a way to call it apart from
its model. `watch` offers this for layers of linen, and through `nnx_calls` for those of
NNX; other libraries have no interceptors.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
from jax.extend.core import Literal

from mixdef.models.network import by_path, nested

METHODS = ("__call__", "attend")
"""The methods that can be taken apart; `attend` is that of a table of embeddings."""

_watching = threading.local()


class Layer(NamedTuple):
  """One call of a layer that holds parameters.

  Attributes:
    module: the layer, with its settings.
    kind: its type.
    method: the method that is called.
    where: its path in the model, or its type if it is the whole model.
    params: the arrays that it holds, by name.
    x: its input.
    alone: `(params, x) -> output`, the same call apart from the model.
    fault: why the call cannot be taken apart, or "".
    changes: low-rank changes of its kernels, by name; see `mixdef.models.low_rank`.
  """

  module: Any
  kind: type
  method: str
  where: str
  params: dict[str, Any]
  x: Any
  alone: Callable
  fault: str
  changes: Mapping[str, Any] = MappingProxyType({})


Handler = Callable[[Layer, Callable], Any]
"""`(layer, call) -> output`, where `call(x)` runs the layer in its place."""


@contextlib.contextmanager
def watch(handler: Handler | None) -> Iterator[None]:
  """Pass every call of a layer that holds parameters to a handler.

  Args:
    handler: see `Handler`. It is called for layers inside others, too. None stops an
      outer one.
  """
  before = watcher()
  _watching.handler = handler
  # One interceptor serves all handlers: an inner one calls the outer one itself.
  once = nn.intercept_methods(_of_linen) if before is None else contextlib.nullcontext()
  try:
    with once:
      yield
  finally:
    _watching.handler = before


def watcher() -> Handler | None:
  """Return the handler that watches, if there is one."""
  return getattr(_watching, "handler", None)


def _of_linen(call, args, kwargs, context):
  module, method, handler = context.module, context.method_name, watcher()
  if handler is None or module.scope is None or method == "setup" or not args:
    return call(*args, **kwargs)
  recurrent = type(module) is nn.RNN and method == "__call__"
  own = _held(module.cell if recurrent else module)
  if recurrent:  # its steps are hidden in a scan, so all of them are one layer
    own = by_path(own)
  arrays = {name: leaf for name, leaf in own.items() if hasattr(leaf, "shape")}
  if not arrays:
    return call(*args, **kwargs)
  where = "/".join(module.path) or type(module).__name__
  fault = ""
  if method not in METHODS:
    fault = f"{where} is called by its method {method}"
  elif len(arrays) < len(own):
    fault = f"{where} also has submodules"
  elif len(module.variables.keys() - {"params"}):
    fault = f"{where} has variables other than parameters"
  elif several(args, kwargs):
    fault = f"{where} has more than one input array"

  def alone(params, x):
    if recurrent:
      cell = module.cell.clone(parent=None, name=None)
      apart = module.clone(parent=None, name=None, cell=cell)
      params = {"cell": nested(params)}
    else:
      apart = module.clone(parent=None, name=None)
    return apart.apply({"params": params}, x, *args[1:], method=method, **kwargs)

  layer = Layer(
    *(module, type(module), method, where, arrays, args[0]),
    *(alone, fault),
  )
  return handler(layer, lambda x: call(x, *args[1:], **kwargs))


def _held(module):
  return {} if module.scope is None else module.variables.get("params", {})


def reached(jaxpr: Any) -> list[set[int]]:
  """Return, for every output of a program, the indices of the inputs it may use.

  >>> import jax
  >>> reached(jax.make_jaxpr(lambda a, b, c: (a + b, c))(1.0, 2.0, 3.0).jaxpr)
  [{0, 1}, {2}]
  """
  used = sources(jaxpr)
  return [_by(used, [variable]) for variable in jaxpr.outvars]


def sources(jaxpr: Any) -> dict[Any, set[int]]:
  """Return, for every variable of a program, the indices of the inputs it may use."""
  used = {variable: {place} for place, variable in enumerate(jaxpr.invars)}
  for equation in jaxpr.eqns:
    used |= dict.fromkeys(equation.outvars, _by(used, equation.invars))
  return used


def _by(used, variables):
  sets = (used.get(v, ()) for v in variables if not isinstance(v, Literal))
  return set().union(*sets)


def several(args, kwargs) -> bool:
  """Return whether a call has several arrays, or none."""
  return len(args) != 1 or any(hasattr(value, "shape") for value in kwargs.values())

"""The models that learners accept: linen, NNX, Equinox, or a pair `(init, apply)`."""

import inspect
import sys
from typing import Any

import flax.linen as nn
from absl import logging

from mixdef.core.text import text_of
from mixdef.models._linen import adapt_linen
from mixdef.models._pair import adapt_pair
from mixdef.models.network import Network, factory_parameters

_OTHERS = {
  "torch": "a PyTorch module",
  "keras": "a Keras model",
  "tensorflow": "a TensorFlow model",
  "haiku": "a Haiku function",
  "sklearn": "a scikit-learn estimator",
}
_WHAT_TO_PASS = (
  "pass a linen module, as mixdef.models.mlp(64), or lambda rngs: Net(rngs=rngs) for "
  "NNX, lambda key: Net(key=key) for Equinox, or (init, apply)"
)


def adapt(model: Any, inputs: int = 1) -> Network:
  """Create the `Network` of a model.

  Args:
    model: one of

      - an unbound linen module;
      - a class of NNX modules whose only argument is `rngs`, or a function of `rngs`;
      - a class of Equinox modules whose only argument is `key`, or a function of `key`;
      - a module of NNX or Equinox, with the parameters that every model starts from;
      - a pair of functions, `init(key, x) -> params` and `apply(params, x)`.
    inputs: number of arrays that the model is called with.

  Raises:
    TypeError: in one line, for anything else.
    ValueError: for a model that needs what a learner does not know.

  >>> adapt((lambda key: {"w": 1.0}, lambda params, x: params["w"] * x)).text
  '(<lambda>, <lambda>)'
  """
  if isinstance(model, Network):
    return model
  if isinstance(model, nn.Module):
    if model.scope is not None:
      raise TypeError(
        f"model is a {type(model).__name__} bound to its variables: pass "
        "model.unbind()[0]"
      )
    return adapt_linen(model, inputs)
  if _is_of(model, "flax.nnx") or _takes(model, "rngs"):
    from mixdef.models._nnx import adapt_nnx

    return _started(model, "rngs", adapt_nnx(model, inputs))
  if _is_of(model, "equinox") or ("equinox" in sys.modules and _takes(model, "key")):
    from mixdef.models._equinox import adapt_equinox

    return _started(model, "key", adapt_equinox(model, inputs))
  if is_pair(model):
    if any(isinstance(getattr(f, "__self__", None), nn.Module) for f in model):
      raise TypeError("model is the methods of a linen module: pass the module itself")
    return adapt_pair(model, inputs)
  raise TypeError(f"model is {_what(model)}: {_WHAT_TO_PASS}")


def _module_of(library):
  """Return the class of a library's modules, or one of no instances if not imported."""
  return getattr(sys.modules.get(library), "Module", _Nothing)


class _Nothing:
  """The modules of a library that is not imported."""


def _is_of(model, library):
  """Return whether it is a module of a library, or a class of them."""
  module = _module_of(library)
  return isinstance(model, module) or (
    inspect.isclass(model) and issubclass(model, module)
  )


def _started(model, name, network):
  """Return the network, and log where its models start if it has parameters."""
  if isinstance(model, (_module_of("flax.nnx"), _module_of("equinox"))):
    kind = type(model).__name__
    logging.warning(
      "the model is a module of parameters, so every model starts from these: for new "
      "ones, pass lambda %s: %s(..., %s=%s)",
      *(name, kind, name, name),
    )
  return network


def _takes(model, name):
  """Return whether it is a function with an argument of this name."""
  plain = callable(model) and not (inspect.isclass(model) or hasattr(model, "init"))
  try:
    return plain and name in factory_parameters(model)
  except (TypeError, ValueError):
    return False


def is_pair(model: Any) -> bool:
  """Return whether it is a pair of functions, not of modules or an optimizer."""
  if not isinstance(model, tuple | list) or len(model) != 2 or _home(model):
    return False
  modules = (nn.Module, _module_of("flax.nnx"), _module_of("equinox"))
  return not hasattr(model, "update") and all(
    callable(one) and not isinstance(one, modules) for one in model
  )


def _home(thing):
  homes = [f"{kind.__module__}." for kind in type(thing).__mro__]
  for home, name in _OTHERS.items():
    if any(one.startswith(f"{home}.") for one in homes):
      return name
  return ""


def _what(thing):
  if inspect.isclass(thing):
    return f"the class {thing.__name__}, which has to be called"
  if hasattr(thing, "update") and hasattr(thing, "init"):
    return "an optimizer, which comes second"
  if home := _home(thing):
    return home
  if hasattr(thing, "init") and hasattr(thing, "step"):
    return "a Learner, which is passed to fit"
  if callable(thing):
    return f"the function {text_of(thing)}"
  return f"{text_of(thing)[:60]} of type {type(thing).__name__}"

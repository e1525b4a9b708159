"""Adapters that give user-supplied networks a uniform interface.

The arguments of a linen module's `__call__` and its fields determine what it needs: the
training flag, under one of many names, and the weights that mark padding. Its behavior
is probed once by abstract evaluation, before training starts.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from mixdef.core.randomness import fold_in_name
from mixdef.core.text import text_of
from mixdef.data import to_float

_ON = ("train", "training", "is_training", "is_train", "train_mode")
_OFF = (
  *("deterministic", "use_running_average", "inference", "is_inference"),
  *("eval", "is_eval", "evaluate", "eval_mode", "test", "testing"),
)
_OTHERS = {
  "flax.nnx": "a flax.nnx module",
  "equinox": "an Equinox module",
  "torch": "a PyTorch module",
  "keras": "a Keras model",
  "tensorflow": "a TensorFlow model",
  "haiku": "a Haiku function",
  "sklearn": "a scikit-learn estimator",
}


class Network(NamedTuple):
  """A network with the interface that learners use.

  ```
  init  (key, x [1,...]) -> variables
  apply (variables, x [B,...], *, train, weight=None, key=None, mutable=False,
         seen=None) -> logits, or (logits, collections) with names as `mutable`
  ```

  `seen(module, arguments)` is called for every module that is applied.
  """

  init: Callable
  apply: Callable


def adapt(module: nn.Module) -> Network:
  """Create a `Network` from a linen module.

  The training flag is passed under the name that the module's `__call__` uses:
  `train`, `training`, `is_training`, or the opposite `deterministic`, `inference`,
  `eval`, `use_running_average`; or it is set in the field of that name. The flag is
  also passed to submodules whose caller cannot pass it on, as in `nn.Sequential`, and
  to linen layers that leave it unset. In training, random streams of any name are
  available.

  Args:
    module: a module that `check_module` accepts. If its `__call__` takes `weight` [B],
      it receives the weights, which are 0 for padding.

  Raises:
    ValueError: for a module that needs what a learner does not know.
  """
  anything = _takes_anything(module)
  fields = [name for name in _flags(vars(module)) if _is_flag(getattr(module, name))]
  copied: Any = module.clone
  phases: dict[bool, Any] = {
    train: copied(**_phase(fields, train)) if fields else module
    for train in (True, False)
  }
  _refuse_unknown(module, fields)

  @functools.cache
  def passed_on(shape, dtype):
    """Return the keywords that a module with `**kwargs` actually accepts."""
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    known = {"train": False, "weight": None}
    return [name for name in known if _lets_through(module, x, name, known[name])]

  def options(x, train, weight):
    names = _parameters(module)
    if anything and not (fields or _flags(names)):
      names = passed_on(x.shape[1:], x.dtype)
    flags = _phase([n for n in _flags(names) if n not in fields], train)
    return {**flags, **({"weight": weight} if "weight" in names else {})}

  def init(key, x):
    x = to_float(x)
    with nn.intercept_methods(_completing(train=False, weight=None)):
      return dict(phases[False].init(key, x, **options(x, False, None)))

  def apply(variables, x, *, train, weight=None, key=None, mutable=False, seen=None):
    x = to_float(x)
    # A stream of any other name falls back to the stream `params`.
    rngs: Any = (
      {"dropout": key, "params": fold_in_name(key, "streams")} if train else {}
    )
    with nn.intercept_methods(_completing(train=train, weight=weight, seen=seen)):
      return phases[train].apply(
        *(variables, x), rngs=rngs, mutable=mutable, **options(x, train, weight)
      )

  return Network(init, apply)


def check_module(module) -> None:
  """Raise unless `module` is an instance of a linen module, with what it is instead.

  Raises:
    TypeError: in one line.
  """
  if isinstance(module, nn.Module):
    if module.scope is not None:
      raise TypeError(
        f"model is a {type(module).__name__} bound to its variables: pass "
        "model.unbind()[0]"
      )
    return
  raise TypeError(
    f"model is {_what(module)}: pass an instance of a flax.linen module, for example "
    "mixdef.models.mlp(64)"
  )


def _what(thing):
  if inspect.isclass(thing):
    return f"the class {thing.__name__}, which has to be called"
  if hasattr(thing, "update") and hasattr(thing, "init"):
    return "an optimizer, which comes second"
  homes = [f"{kind.__module__}." for kind in type(thing).__mro__]
  for home, name in _OTHERS.items():
    if any(one.startswith(f"{home}.") for one in homes):
      return name
  if hasattr(thing, "init") and hasattr(thing, "step"):
    return "a Learner, which is given to fit"
  if callable(thing):
    return f"the function {text_of(thing)}"
  return f"{text_of(thing)[:60]} of type {type(thing).__name__}"


def _parameters(module):
  """Return the parameters of a module's `__call__` by name, without `self`."""
  named = inspect.signature(type(module).__call__).parameters
  return dict(list(named.items())[1:])


def _takes_anything(module):
  return any(p.kind is p.VAR_KEYWORD for p in _parameters(module).values())


def _flags(names):
  return [name for name in (*_ON, *_OFF) if name in names]


def _is_flag(value):
  return value is None or isinstance(value, bool)


def _phase(names, train):
  return {name: train if name in _ON else not train for name in names}


def _refuse_unknown(module, fields):
  """Raise if `__call__` has required arguments other than the records."""
  first, *others = [*_parameters(module).values(), None]
  name = type(module).__name__
  if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
    raise ValueError(f"{name}.__call__ takes no records: let x come first")
  known = {*_ON, *_OFF, "weight"}
  for other in filter(None, others):
    varied = other.kind in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
    needed = other.default is other.empty and not varied
    if needed and (other.name not in known or other.kind is other.POSITIONAL_ONLY):
      raise ValueError(
        f"{name}.__call__ needs {other.name!r}, which a learner does not know: give it "
        "a default (it knows the flag of training, by the name train, and weight)"
      )


def _lets_through(module, x, name, value):
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  try:
    with nn.intercept_methods(_completing(train=False, weight=None)):
      jax.eval_shape(lambda key, x: module.init(key, x, **{name: value}), key, x)
  except TypeError as error:
    return "unexpected keyword argument" not in str(error)
  return True


def _completing(*, train, weight, seen=None):
  """Return an interceptor that passes the training flag where the caller cannot."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    signature = inspect.signature(type(module).__call__)
    given = signature.bind_partial(module, *args, **kwargs).arguments
    given = {**given, **given.get("kwargs", {})}
    for name in _flags(signature.parameters):
      if given.get(name) is None and _is_left_open(module, name):
        kwargs = {**kwargs, **_phase([name], train)}
    if isinstance(module.parent, nn.Sequential) and weight is not None:
      if "weight" in signature.parameters and given.get("weight") is None:
        kwargs = {**kwargs, "weight": weight}
      elif isinstance(module, nn.BatchNorm) and given.get("mask") is None:
        mask = (weight > 0).reshape(-1, *(1,) * (args[0].ndim - 1))
        kwargs = {**kwargs, "mask": mask}
    if seen:
      seen(module, {**given, **kwargs})
    return call(*args, **kwargs)

  return intercept


def _is_left_open(module, name):
  """Return whether only the learner can pass this flag to a module."""
  if hasattr(module, name):
    return getattr(module, name) is None
  caller = module.parent
  if not isinstance(caller, nn.Module):
    return False  # the outermost module has already received its arguments
  aware = _flags(_parameters(caller)) or _flags(vars(caller))
  # Layers with parameters must be called as recorded by `ghost_tape`.
  plain = any(
    not isinstance(leaf, dict) for leaf in module.variables.get("params", {}).values()
  )
  return not aware and not plain

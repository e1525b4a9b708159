"""Linen modules as a `Network`.

The arguments of a module's `__call__` and its fields determine what it needs: the
training flag, under one of many names, and the weights that mark padding.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import errors

from mixdef.core.randomness import fold_in_name
from mixdef.core.text import text_of
from mixdef.data import to_float
from mixdef.models.network import (
  OFF,
  ON,
  Network,
  first_line,
  flags,
  is_flag,
  parameters_of,
  phase,
  refuse_unknown,
)


def adapt_linen(
  module: nn.Module, inputs: int = 1, still: Callable[[str], bool] | None = None
) -> Network:
  """Create a `Network` from a linen module.

  The training flag is passed under the name that the module's `__call__` uses:
  `train`, `training`, `is_training`, or the opposite `deterministic`, `inference`,
  `eval`, `use_running_average`; or it is set in the field of that name. The flag is
  also passed to submodules whose caller cannot pass it on, as in `nn.Sequential`, and
  to linen layers that leave it unset. In training, random streams of any name are
  available.

  Args:
    module: an unbound module. If its `__call__` takes `weight` [B], it receives the
      weights, which are 0 for padding.
    inputs: number of arrays that it is called with.
    still: path of a submodule -> whether it behaves in training as in inference.

  Raises:
    ValueError: for a module that needs what a learner does not know; when applied, for
      one that draws random numbers or changes its variables in inference, or
      whose dropout or statistics never act.
  """
  anything = _takes_anything(module)
  fields = [name for name in flags(vars(module)) if is_flag(getattr(module, name))]
  copied: Any = module.clone
  phases: dict[bool, Any] = {
    train: copied(**phase(fields, train)) if fields else module
    for train in (True, False)
  }
  names = list(_parameters(module).items())
  refuse_unknown(
    f"{type(module).__name__}.__call__",
    dict([*names[:1], *names[inputs:]]),
    {*ON, *OFF, "weight"},
  )

  @functools.cache
  def passed_on(*shapes):
    """Return the keywords that a module with `**kwargs` actually accepts."""
    xs = [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in shapes]
    known = {"train": False, "weight": None}
    return [name for name in known if _lets_through(module, xs, name, known[name])]

  def options(xs, train, weight):
    names = _parameters(module)
    if anything and not (fields or flags(names)):
      names = passed_on(*((x.shape[1:], x.dtype) for x in xs))
    own = phase([n for n in flags(names) if n not in fields], train)
    return {**own, **({"weight": weight} if "weight" in names else {})}

  def init(key, *xs):
    xs = [to_float(x) for x in xs]
    with nn.intercept_methods(_completing(train=False, weight=None)):
      return dict(phases[False].init(key, *xs, **options(xs, False, None)))

  def apply(variables, *xs, train, key=None, weight=None):
    xs = [to_float(x) for x in xs]
    kept = {name: value for name, value in variables.items() if name != "params"}
    run = functools.partial(phases[train].apply, variables, *xs)
    how = options(xs, train, weight)
    if not train:
      with nn.intercept_methods(_completing(train=False, weight=weight)):
        return _predicting(lambda: run(mutable=False, **how)), kept
    # A stream of any other name falls back to the stream `params`.
    streams = () if key is None else (key, fold_in_name(key, "streams"))
    rngs = dict(zip(("dropout", "params"), streams, strict=False))
    found: list[str] = []

    def seen(module, given):
      found.extend(_silent(module, given, padded=weight is not None))

    completing = _completing(train=True, weight=weight, seen=seen, still=still)
    with nn.intercept_methods(completing):
      outputs = _training(lambda: run(rngs=rngs, mutable=list(kept), **how))
    if found:
      raise ValueError(found[0])
    return outputs

  return Network(
    init,
    apply,
    text_of(module),
    still=functools.partial(adapt_linen, module, inputs),
    name=type(module).__name__,
  )


def _predicting(run):
  try:
    return run()
  except errors.InvalidRngError as error:
    what = "draws random numbers in prediction"
    reason = first_line(error)
  except errors.FlaxError as error:
    what = "changes its state in prediction"
    reason = first_line(error)
  raise ValueError(
    f"the model {what} ({reason}): add an argument train to its __call__, which is "
    "False in prediction"
  )


def _training(run):
  try:
    return run()
  except errors.FlaxError as error:
    reason = first_line(error)
  raise ValueError(
    f"the model cannot be applied in training ({reason}): it may only use parameters "
    "and collections that it creates with train=False"
  )


def _silent(module, given, *, padded):
  """Yield messages on settings of a layer that are surely unintended in training."""
  where = "/".join(module.path) or type(module).__name__
  flag = given.get("deterministic")
  if isinstance(module, nn.Dropout | nn.MultiHeadDotProductAttention):
    rate = getattr(module, "rate", 0) or getattr(module, "dropout_rate", 0)
    if rate and (module.deterministic if flag is None else flag):
      yield (
        f"{where} has dropout at rate {rate} and is also deterministic in training: "
        "add an argument train to the model's __call__ and pass deterministic=not "
        "train, or set the rate to 0"
      )
  if isinstance(module, nn.BatchNorm):
    flag = given.get("use_running_average")
    if module.use_running_average if flag is None else flag:
      yield (
        f"{where} also uses its running average in training, so it never changes: add "
        "an argument train to the model's __call__ and pass use_running_average=not "
        "train"
      )
    elif padded and given.get("mask") is None:
      yield (
        "a model with BatchNorm needs an argument weight=None and must pass mask= to "
        "it: otherwise padded rows would affect its statistics"
      )


def _parameters(module):
  """Return the parameters of a module's `__call__` by name, without `self`."""
  return parameters_of(type(module).__call__, bound=False)


def _takes_anything(module):
  return any(p.kind is p.VAR_KEYWORD for p in _parameters(module).values())


def _lets_through(module, xs, name, value):
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  try:
    with nn.intercept_methods(_completing(train=False, weight=None)):
      jax.eval_shape(lambda key, *xs: module.init(key, *xs, **{name: value}), key, *xs)
  except TypeError as error:
    return "unexpected keyword argument" not in str(error)
  return True


def _completing(*, train, weight, seen=None, still=None):
  """Return an interceptor that passes the training flag where the caller cannot."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    signature = inspect.signature(type(module).__call__)
    given = signature.bind_partial(module, *args, **kwargs).arguments
    given = {**given, **given.get("kwargs", {})}
    if still and still("/".join(module.path)):
      return _call_still(call, module, signature, args, kwargs)
    for name in flags(signature.parameters):
      if given.get(name) is None and _is_left_open(module, name):
        kwargs = {**kwargs, **phase([name], train)}
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


def _call_still(call, module, signature, args, kwargs):
  """Call a module as in inference, regardless of its training flags."""
  names = flags(signature.parameters)
  fields = {n: vars(module)[n] for n in names if vars(module).get(n) is not None}
  bound = signature.bind_partial(module, *args, **kwargs)
  bound.arguments |= phase([n for n in names if n not in fields], False)
  try:
    for name, value in phase(fields, False).items():
      object.__setattr__(module, name, value)  # a field and an argument exclude another
      bound.arguments.pop(name, None)
    return call(*bound.args[1:], **bound.kwargs)
  finally:
    for name, value in fields.items():
      object.__setattr__(module, name, value)


def _is_left_open(module, name):
  """Return whether only the learner can pass this flag to a module."""
  if hasattr(module, name):
    return getattr(module, name) is None
  caller = module.parent
  if not isinstance(caller, nn.Module):
    return False  # the outermost module has already received its arguments
  aware = flags(_parameters(caller)) or flags(vars(caller))
  # Layers with parameters must be called as recorded by `ghost_tape`.
  plain = any(
    not isinstance(leaf, dict) for leaf in module.variables.get("params", {}).values()
  )
  return not aware and not plain

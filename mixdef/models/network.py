"""`Network`: the one form in which learners use a model of any library."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from mixdef.core.randomness import random_key
from mixdef.core.text import text_of

ON = ("train", "training", "is_training", "is_train", "train_mode")
OFF = (
  *("deterministic", "use_running_average", "inference", "is_inference"),
  *("eval", "is_eval", "evaluate", "eval_mode", "test", "testing"),
)


class Network(NamedTuple):
  """A model with the interface that learners use; `adapt` makes it.

  ```
  init  (key, *inputs [1,...]) -> variables
  apply (variables, *inputs [B,...], train, key=None, weight=None) -> (outputs, stats)
  ```

  `variables` is {"params": ...}, the trained parameters, and the model's other
  collections, such as statistics. `stats` holds the collections that a step changes;
  in inference, all of them unchanged. `key` is the step's random key, without which
  training draws nothing, and `weight` [B] is 0 for padding. Most models have one input,
  the records; the networks of a GAN have two. uint8 inputs are scaled to [0, 1].

  `text` describes the model; models that differ in structure have different texts.
  `name` is the name of its class, for reports.
  `still(frozen)` returns the network whose modules, chosen by their paths, behave in
  training as in inference; None if that cannot be done. `given()` returns the leaves
  that all models start from, by collection and path; None if all starts are random.
  `features(variables, x, key, weight)` returns what a step gives to the first layer
  that training changes, and `apply(..., features=)` uses these features in place of
  them; None if no layer is frozen. See `mixdef.models.features`.
  """

  init: Callable
  apply: Callable
  text: str
  still: Callable | None = None
  given: Callable | None = None
  features: Callable | None = None
  name: str = ""


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Return the leaves of nested dictionaries by path; empty dictionaries vanish.

  >>> by_path({"a": {"b": 1, "c": {}}})
  {'a/b': 1}
  """
  flat: dict[Any, Any] = traverse_util.flatten_dict(dict(tree))
  return {"/".join(map(str, path)): leaf for path, leaf in flat.items()}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Return nested dictionaries of leaves by path, the inverse of `by_path`.

  >>> nested({"a/b": 1})
  {'a': {'b': 1}}
  """
  return traverse_util.unflatten_dict(
    {tuple(p.split("/")): v for p, v in leaves.items()}
  )


def flags(names: Iterable[str]) -> list[str]:
  """Return those of the names that are training flags, or their opposites.

  >>> flags(["x", "deterministic", "train"])
  ['train', 'deterministic']
  """
  return [name for name in (*ON, *OFF) if name in set(names)]


def phase(names: Iterable[str], train: bool) -> dict[str, bool]:
  """Return the value of each flag.

  >>> phase(["train", "deterministic"], True)
  {'train': True, 'deterministic': False}
  """
  return {name: train if name in ON else not train for name in names}


def is_flag(value: Any) -> bool:
  """Return whether a field may hold a flag."""
  return value is None or isinstance(value, bool)


def parameters_of(call: Callable, *, bound: bool) -> dict[str, inspect.Parameter]:
  """Return the parameters of a function by name, without `self` unless it is bound."""
  named = dict(inspect.signature(call).parameters)
  return named if bound else dict(list(named.items())[1:])


def refuse_unknown(
  name: str, parameters: Mapping[str, inspect.Parameter], known: Iterable[str]
) -> None:
  """Raise if a call has required keywords other than its inputs.

  Args:
    name: the call, for the message.
    parameters: what it takes, without `self`.
    known: names that a learner can pass.

  Raises:
    ValueError: naming the argument.
  """
  first, *others = [*parameters.values(), None]
  if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
    raise ValueError(f"{name} takes no records: let x come first")
  for other in filter(None, others):
    varied = other.kind in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
    needed = other.default is other.empty and not varied
    if needed and (other.name not in known or other.kind is other.POSITIONAL_ONLY):
      raise ValueError(
        f"{name} needs {other.name!r}, which a learner does not know: give it "
        "a default (it knows the training flag, by the name train, and weight)"
      )


def factory_parameters(make: Callable) -> dict[str, inspect.Parameter]:
  """Return the parameters of a function, or of what makes a class's instances."""
  inner = make.func if isinstance(make, functools.partial) else make
  if not inspect.isclass(inner):
    return dict(inspect.signature(make).parameters)
  args, options = (None,), {}
  if isinstance(make, functools.partial):
    args, options = (None, *make.args), make.keywords
  bound = functools.partial(inner.__init__, *args, **options)
  return dict(inspect.signature(bound).parameters)


def check_factory(make: Callable, name: str) -> None:
  """Raise unless a function or class makes a model of one argument of this name.

  Raises:
    TypeError: naming what is missing or too much.
  """
  what = text_of(make)
  named = factory_parameters(make)
  how = f"pass a function of it alone, lambda {name}: {what}(..., {name}={name})"
  if name not in named:
    raise TypeError(f"model is {what}, which takes no {name}: {how}")
  for other in named.values():
    varied = other.kind in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
    needed = other.default is other.empty and not varied
    if other.name != name and needed:
      raise TypeError(
        f"model is {what}, which needs {other.name!r} beside {name}: {how}"
      )


def shapes_of(make: Callable, name: str, source: str) -> Any:
  """Return the shapes of what `make(key)` returns.

  Args:
    make: makes a model's parameters.
    name: the model, for the message.
    source: the argument from which it draws them, for the message.

  Raises:
    ValueError: if it cannot be called inside a trace.
  """
  try:
    return jax.eval_shape(make, random_key(0))
  except jax.errors.JAXTypeError as error:
    reason = first_line(error)
  raise ValueError(
    f"{name} cannot be made inside a trace ({reason}): draw its parameters from "
    f"{source} with jax.numpy, or pass a module"
  )


def first_line(error: Exception) -> str:
  """Return the first line of a message, without the address of its explanation."""
  lines = str(error).split(" (http")[0].splitlines()
  return lines[0] if lines else type(error).__name__

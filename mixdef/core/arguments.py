"""Check a function's arguments by a decorator, before the function runs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mixdef.core.check import check_choice, check_count, check_flag, check_number
from mixdef.core.randomness import check_seed

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
Check = Callable[[str, Any], None]

flag: Check = check_flag


def number(*limits: float, **ends: float) -> Check:
  """Return the check of a number; the arguments are those of `check_number`."""
  return lambda what, value: check_number(what, value, *limits, **ends)


def count(*limits: int) -> Check:
  """Return the check of an integer; the arguments are those of `check_count`."""
  return lambda what, value: check_count(what, value, *limits)


def seed(what: str, value: Any) -> None:
  """Check a seed, see `check_seed`."""
  check_seed(value, what)


def one_of(*options: str) -> Check:
  """Return the check of a word among `options`."""
  return lambda what, value: check_choice(what, value, options)


def optional(check: Check) -> Check:
  """Return a check that lets None pass."""

  def run(what: str, value: Any) -> None:
    if value is not None:
      check(what, value)

  return run


def checked(*, together: Callable[..., None] | None = None, **checks: Check):
  """Refuse wrong arguments of a function by name, whenever it is called.

  Args:
    together: `together(**arguments)`, a check of several arguments at once.
    **checks: what each argument must pass, `check(what, value)`.

  Returns:
    The decorator. Afterwards the function's `check(**arguments)` checks without a call,
    and its `checks` tell which arguments a text can give.

  >>> @checked(gamma=number(above=0))
  ... def attack(signals, *, gamma=2.0):
  ...   return gamma
  >>> attack(None, gamma=-1)
  Traceback (most recent call last):
  ValueError: attack: gamma is -1; give a number above 0
  """

  def decorate(function: AnyFunction) -> AnyFunction:
    signature = inspect.signature(function)
    kinds = signature.parameters.items()
    written = [name for name, one in kinds if one.kind is not one.VAR_KEYWORD]

    def check(**arguments):
      for name, value in arguments.items():
        if name in checks:
          checks[name](f"{function.__name__}: {name}", value)
      if together is not None:
        together(**arguments)

    @functools.wraps(function)
    def run(*args, **kwargs):
      named = signature.bind(*args, **kwargs).arguments
      named = {name: value for name, value in named.items() if name in written}
      check(**named | kwargs)
      return function(*args, **kwargs)

    run.__dict__.update(check=check, checks=checks)
    return cast(AnyFunction, run)

  return decorate

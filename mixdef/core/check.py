"""Checks of arguments, one by one or by a decorator, before a function runs.

Numbers that JAX traces, as those of a sweep are, pass unchecked.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np

from mixdef.core.randomness import check_seed

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
Check = Callable[[str, Any], None]

_LARGEST = float(np.finfo(np.float32).max)  # what a program can hold
_MOST = 2**31 - 1  # the largest int32: what a program counts with


def is_static(value) -> bool:
  """Tell whether `value` is a number known now, not one traced by JAX."""
  return isinstance(value, numbers.Real)


def check_number(
  what, value, low=-_LARGEST, high=_LARGEST, *, above=-math.inf, below=math.inf
):
  """Refuse what is no number, or one outside [low, high] or (above, below).

  Infinity is refused unless `high` is infinite, and so is what float32 cannot hold.

  Raises:
    ValueError: with the argument, its value and the range.

  >>> check_number("label_smoothing: epsilon", 1.5, 0, 1)
  Traceback (most recent call last):
  ValueError: label_smoothing: epsilon is 1.5; give a number of at least 0 and at most 1
  """
  scalar = hasattr(value, "dtype") and value.shape == () and value.dtype.kind in "iuf"
  plain = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
  if not (plain or scalar):
    raise ValueError(f"{what} is {value!r}; give a number")
  if isinstance(value, jax.core.Tracer):
    return
  if value == high == math.inf:
    return
  if low <= value <= min(high, _LARGEST) and above < value < below:
    return
  ends = []
  if above >= low:
    ends.append(f"above {above:g}")
  elif low > -_LARGEST:
    ends.append(f"of at least {low:g}")
  if below < math.inf and below <= high:
    ends.append(f"below {below:g}")
  elif high < _LARGEST or value > _LARGEST:
    ends.append(f"at most {min(high, _LARGEST):.3g}")
  raise ValueError(f"{what} is {value}; give a number {' and '.join(ends)}".rstrip())


def check_count(what, value, low=1, high=_MOST):
  """Refuse anything but an integer in [low, high], int32's largest by default."""
  if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
    raise ValueError(f"{what} is {value!r}; give an integer of at least {low}")
  if value > high:
    raise ValueError(f"{what} is {value}; give an integer of at most {high}")


def check_flag(what, value):
  """Refuse anything but True and False."""
  if not isinstance(value, (bool, np.bool_)):
    raise ValueError(f"{what} is {value!r}; give True or False")


def check_choice(what, value, options):
  """Refuse a word that is not among `options`."""
  if not isinstance(value, str) or value not in options:
    known = ", ".join(map(repr, options))
    raise ValueError(f"{what} is {value!r}; it is one of {known}")


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

"""Argument checks, called directly or through a decorator.

Numbers traced by JAX, such as those of a sweep, are not checked.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

from mixdef.core.randomness import check_seed

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
Check = Callable[[str, Any], None]

_LARGEST = float(np.finfo(np.float32).max)  # the largest value a program can represent
_MOST = 2**31 - 1  # the largest int32; programs count in int32


def is_static(value) -> bool:
  """Return whether `value` is a concrete number, not one traced by JAX."""
  return isinstance(value, numbers.Real)


def check_number(
  what, value, low=-_LARGEST, high=_LARGEST, *, above=-math.inf, below=math.inf
):
  """Raise unless `value` is a number in [low, high] and in (above, below).

  Infinity is rejected unless `high` is infinite, as are numbers that float32 cannot
  represent.

  Raises:
    ValueError: with the argument, its value and the range.

  >>> check_number("label_smoothing: epsilon", 1.5, 0, 1)
  Traceback (most recent call last):
  ValueError: label_smoothing: epsilon is 1.5; pass a number of at least 0 and at most 1
  """
  scalar = hasattr(value, "dtype") and value.shape == () and value.dtype.kind in "iuf"
  plain = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
  if not (plain or scalar):
    raise ValueError(f"{what} is {value!r}; pass a number")
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
  raise ValueError(f"{what} is {value}; pass a number {' and '.join(ends)}".rstrip())


def check_count(what, value, low=1, high=_MOST):
  """Raise unless `value` is an integer in [low, high], by default up to int32's max."""
  if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
    raise ValueError(f"{what} is {value!r}; pass an integer of at least {low}")
  if value > high:
    raise ValueError(f"{what} is {value}; pass an integer of at most {high}")


def check_flag(what, value):
  """Raise unless `value` is True or False."""
  if not isinstance(value, (bool, np.bool_)):
    raise ValueError(f"{what} is {value!r}; pass True or False")


def check_choice(what, value, options):
  """Raise unless `value` is one of `options`."""
  if not isinstance(value, str) or value not in options:
    known = ", ".join(map(repr, options))
    raise ValueError(f"{what} is {value!r}; choose from {known}")


flag: Check = check_flag


def number(*limits: float, **ends: float) -> Check:
  """Return a check for a number, with the arguments of `check_number`."""
  return lambda what, value: check_number(what, value, *limits, **ends)


def count(*limits: int) -> Check:
  """Return a check for an integer, with the arguments of `check_count`."""
  return lambda what, value: check_count(what, value, *limits)


def seed(what: str, value: Any) -> None:
  """Check a seed; see `check_seed`."""
  check_seed(value, what)


def one_of(*options: str) -> Check:
  """Return a check that a value is one of `options`."""
  return lambda what, value: check_choice(what, value, options)


def optional(check: Check) -> Check:
  """Return a check that also accepts None."""

  def run(what: str, value: Any) -> None:
    if value is not None:
      check(what, value)

  return run


def checked(*, together: Callable[..., None] | None = None, **checks: Check):
  """Check a function's arguments by name on every call.

  Args:
    together: `together(**arguments)`, a check of several arguments at once.
    **checks: the check of each argument, `check(what, value)`.

  Returns:
    The decorator. The decorated function's `check(**arguments)` checks arguments
    without calling the function, and its `checks` lists the arguments that a text can
    set.

  >>> @checked(gamma=number(above=0))
  ... def attack(signals, *, gamma=2.0):
  ...   return gamma
  >>> attack(None, gamma=-1)
  Traceback (most recent call last):
  ValueError: attack: gamma is -1; pass a number above 0
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


def channels_first(shape: Sequence[int]) -> bool:
  """Return whether the shape of a batch looks like [B,C,H,W], not [B,H,W,C].

  >>> channels_first((8, 3, 32, 32)), channels_first((8, 32, 32, 3))
  (True, False)
  """
  colours = (1, 3)
  return len(shape) == 4 and shape[1] in colours and shape[3] not in colours

"""Checks of a factory's arguments; traced numbers, of a sweep, pass unchecked."""

import math
import numbers

import jax
import numpy as np

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

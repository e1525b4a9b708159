"""Checks of a defense's arguments; traced numbers, of a sweep, pass unchecked."""

import math
import numbers


def is_static(value) -> bool:
  """Tell whether `value` is a number known now, not one traced by JAX."""
  return isinstance(value, numbers.Real)


def check_number(what, value, low=-math.inf, high=math.inf, *, above=-math.inf):
  """Refuse what is no number, or one outside [low, high] or not above `above`.

  Raises:
    ValueError: with the argument, its value and the range.

  >>> check_number("label_smoothing: epsilon", 1.5, 0, 1)
  Traceback (most recent call last):
  ValueError: label_smoothing: epsilon is 1.5; give a number of at least 0 and at most 1
  """
  if isinstance(value, bool) or not (is_static(value) or hasattr(value, "dtype")):
    raise ValueError(f"{what} is {value!r}; give a number")
  if not is_static(value) or (low <= value <= high and value > above):
    return
  lowest = f"above {above:g}" if above >= low else f"of at least {low:g}"
  highest = f" and at most {high:g}" if high < math.inf else ""
  raise ValueError(f"{what} is {value}; give a number {lowest}{highest}")


def check_count(what, value):
  """Refuse anything but a positive integer."""
  if type(value) is not int or value < 1:
    raise ValueError(f"{what} is {value!r}; give an integer of at least 1")


def check_choice(what, value, options):
  """Refuse a word that is not among `options`."""
  if value not in options:
    known = ", ".join(map(repr, options))
    raise ValueError(f"{what} is {value!r}; it is one of {known}")

"""Format numbers as short text; a missing or infinite number is a dash."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

MISSING = "\N{EN DASH}"
NOT_RESOLVABLE = "not resolvable"


def fixed(value: float | None, digits: int = 3) -> str:
  """Return a number with fixed decimals.

  >>> fixed(.73149), fixed(None)
  ('0.731', '–')
  """
  return f"{value:.{digits}f}" if _finite(value) else MISSING


def signed(value: float | None) -> str:
  """Return a difference with its sign.

  >>> signed(-.0312), signed(.2)
  ('−0.031', '+0.200')
  """
  return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if _finite(value) else MISSING


def percent(value: float | None) -> str:
  """Return a rate as a percentage of three significant digits.

  >>> percent(.001), percent(.98765), percent(1.), percent(.12)
  ('0.1%', '98.8%', '100%', '12%')
  """
  return f"{100 * value:.3g}%" if _finite(value) else MISSING


def measured(
  value: float | None, interval: Sequence[float | None] | None, form: Any = fixed
) -> dict[str, str]:
  """Return a metric and its interval as two texts, the second empty without one.

  >>> measured(.5, [.25, .75], percent)
  {'value': '50%', 'interval': '25% to 75%'}
  """
  bounded = interval is not None and all(_finite(bound) for bound in interval)
  text = " to ".join(form(bound) for bound in interval) if bounded else ""
  return {"value": form(value), "interval": text}


def rate_at(tpr: Mapping[str, Any], fpr: str) -> dict[str, str]:
  """Return the TPR at an FPR with its interval, or the words "not resolvable".

  >>> rate_at({"0.001": {"value": .2, "ci": [.1, .3], "resolvable": False}}, "0.001")
  {'value': 'not resolvable', 'interval': ''}
  """
  entry = tpr.get(fpr)
  if entry is None:
    return {"value": MISSING, "interval": ""}
  if not entry["resolvable"]:
    return {"value": NOT_RESOLVABLE, "interval": ""}
  return measured(entry["value"], entry["ci"], percent)


def duration(seconds: float | None) -> str:
  """Return a time span in its natural unit.

  >>> duration(12.34), duration(754), duration(9000)
  ('12.3 s', '12.6 min', '2.5 h')
  """
  if not _finite(seconds):
    return MISSING
  for limit, unit in ((90, "s"), (90, "min")):
    if seconds < limit:
      return f"{seconds:.3g} {unit}"
    seconds /= 60
  return f"{seconds:.3g} h"


def plain(value: Any) -> str:
  """Return any value of a report as text on one line.

  >>> plain({"lr": .1, "bn": True}), plain([1, None])
  ('lr: 0.1, bn: yes', '1, –')
  """
  if isinstance(value, Mapping):
    text = ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
  elif isinstance(value, list | tuple):
    text = ", ".join(plain(item) for item in value)
  elif isinstance(value, bool):
    text = "yes" if value else "no"
  elif isinstance(value, float):
    text = f"{value:.6g}" if _finite(value) else MISSING
  else:
    text = MISSING if value is None else str(value)
  return text or MISSING


def _finite(value: float | None) -> TypeGuard[float]:
  return value is not None and math.isfinite(value)

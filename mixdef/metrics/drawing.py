"""Matplotlib plots that do not depend on the user's matplotlibrc."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def plainly(style: Any = None) -> Iterator[None]:
  """Draw in matplotlib's default style and restore the user's settings afterwards.

  Args:
    style: rc parameters that override the default.
  """
  matplotlib = _matplotlib()
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(style or {})
    yield


def _matplotlib() -> Any:
  """Import matplotlib, without the user's settings if it cannot read them."""
  try:
    import matplotlib
  except (ValueError, OSError):  # of MPLBACKEND, or a file that is not text
    kept = {name: os.environ.pop(name, None) for name in ("MATPLOTLIBRC", "MPLBACKEND")}
    os.environ["MATPLOTLIBRC"] = os.devnull
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
      del sys.modules[name]  # left half imported by the first attempt
    try:
      import matplotlib
    finally:
      del os.environ["MATPLOTLIBRC"]
      os.environ.update({name: value for name, value in kept.items() if value})
  return matplotlib

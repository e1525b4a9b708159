"""Pictures that look the same whatever the user's matplotlibrc says."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def plainly(style: Any = None) -> Iterator[None]:
  """Draw in matplotlib's own style; the user's settings are back afterwards.

  Args:
    style: rc parameters that differ from it.
  """
  matplotlib = _matplotlib()
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(style or {})
    yield


def _matplotlib() -> Any:
  """Import matplotlib, without the user's settings where it cannot read them."""
  try:
    import matplotlib
  except (ValueError, OSError):  # of MPLBACKEND, or a file that is no text
    kept = {name: os.environ.pop(name, None) for name in ("MATPLOTLIBRC", "MPLBACKEND")}
    os.environ["MATPLOTLIBRC"] = os.devnull
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
      del sys.modules[name]  # what the first try left half done
    try:
      import matplotlib
    finally:
      del os.environ["MATPLOTLIBRC"]
      os.environ.update({name: value for name, value in kept.items() if value})
  return matplotlib

"""Measure and reduce what a trained model leaks about its training records.

`import mixdef` alone is quick: the first use of a public name imports the library.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mixdef._api import *  # noqa: F403

_ROOMS = {path.parent.name for path in pathlib.Path(__file__).parent.glob("*/*.py")}


def __getattr__(name: str) -> Any:
  """Return a public name, a room, or a registered defense or learner by its name."""
  if name in _ROOMS:
    return importlib.import_module(f"mixdef.{name}")
  api = importlib.import_module("mixdef._api")
  if hasattr(api, name):
    return getattr(api, name)
  for factories in api.registry.FLAT:
    if name in factories:
      return factories[name]
  raise AttributeError(f"module 'mixdef' has no attribute {name!r}")


def __dir__() -> list[str]:
  api = importlib.import_module("mixdef._api")
  return sorted({*api.__all__, *(name for one in api.registry.FLAT for name in one)})

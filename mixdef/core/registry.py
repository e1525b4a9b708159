"""Registries of everything that has a name, from defenses to sections of the report.

A decorator adds a factory to the registry of its kind, under the factory's own name.
Everything that looks up names (flags, `parse`, the documents, the common tables of
tests) uses the registries.

A registry is filled when it is first read: it imports the rooms of mixdef and the
modules that installed packages publish as entry points of the group `mixdef.plugins`. A
third-party module can also be named in a text, as `my_module:name`.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

from absl import logging

AnyFactory = TypeVar("AnyFactory", bound=Callable[..., Any])

_ROOMS = (
  "data",
  "models",
  "defenses",
  "learners",
  "attacks",
  "attacks.gan",
  "auditing",
)
_filled = False


class Registry(Mapping[str, Callable[..., Any]]):
  """Factories of one kind by name.

  Attributes:
    what: the kind of object, for error messages, for example "defense".
    registered: the factories of the modules imported so far; reading anything else
      imports all others first.
    aliases: alternative names, each for a factory or for a call of one.
  """

  def __init__(self, what: str) -> None:
    """Create an empty registry."""
    self.what = what
    self.registered: dict[str, Callable[..., Any]] = {}
    self.aliases: dict[str, str] = {}

  def __iter__(self) -> Iterator[str]:
    _fill()
    return iter(self.registered)

  def __len__(self) -> int:
    _fill()
    return len(self.registered)

  def __contains__(self, name: object) -> bool:
    _fill()
    return name in self.registered

  def __getitem__(self, name: str) -> Callable[..., Any]:
    """Return a registered factory, or import one named `module:name`.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a module that cannot be imported or lacks the name.
    """
    if name in self:
      return self.registered[name]
    module, colon, attribute = name.rpartition(":")
    if not colon:
      raise KeyError(name)
    found = getattr(import_module(module), attribute, None)
    if not callable(found):
      raise ValueError(f"{name}: {module} has no {self.what} named {attribute}")
    return found

  def make(self, name: str, kind: type, *args: Any) -> Any:
    """Call a factory, which may be the user's, and check what it returns.

    Raises:
      ValueError: if it does not accept the arguments or returns something else.
    """
    try:
      made = self[name](*args)
    except TypeError as error:
      if ":" not in name:
        raise
      reason, cause = f"failed ({error})", error
    else:
      if isinstance(made, kind):
        return made
      reason, cause = f"returned a {type(made).__name__}", None
    raise ValueError(
      f"{name} {reason}: write a function that returns a mixdef.{kind.__name__}, as "
      f"docs/extend shows for a {self.what}"
    ) from cause

  def register(
    self,
    factory: AnyFactory,
    *,
    name: str | None = None,
    aliases: Mapping[str, str] | None = None,
  ) -> AnyFactory:
    """Add a factory under its name and return it.

    A factory that is redefined, for example by running a notebook cell twice, replaces
    its earlier version. A factory defined inside a function is replaced by any other.

    Args:
      factory: the factory to register.
      name: its name; defaults to the factory's own name.
      aliases: alternative names, each with the call that it abbreviates.

    Raises:
      ValueError: if another factory has the name.
    """
    if not _place(factory)[0].startswith("mixdef."):
      _fill()  # so that a clash with mixdef's names is found here, not on import
    name = factory.__name__ if name is None else name
    for taken in (name, *(aliases or {})):
      holder = self.registered.get(self.aliases.get(taken, taken).partition("(")[0])
      if holder is None or _place(holder) == _place(factory):
        continue
      if "<locals>" not in _place(holder)[1]:
        raise ValueError(
          f"a {self.what} named {taken!r} is already registered by "
          f"{_place(holder)[0]}: rename the one in {_place(factory)[0]}"
        )
    self.registered[name] = factory
    self.aliases.update(aliases or {})
    return factory


def _place(factory: Any) -> tuple[str, str]:
  factory = inspect.unwrap(getattr(factory, "func", factory))
  return factory.__module__, getattr(factory, "__qualname__", "")


def import_module(name: str) -> Any:
  """Import a user's module; the current folder is also searched.

  Raises:
    ValueError: if it cannot be imported; the message says why.
  """
  try:
    missing = importlib.util.find_spec(name.partition(".")[0]) is None
    if missing and os.getcwd() not in sys.path:
      sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)
  except Exception as error:  # importing runs arbitrary code
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"module {name!r} cannot be imported: {reason}") from error


def _fill() -> None:
  """Import all modules that register factories, once: mixdef's, then the plugins."""
  global _filled
  if _filled:
    return
  _filled = True  # the imported modules may read a registry
  for room in _ROOMS:
    importlib.import_module(f"mixdef.{room}")
  load_plugins()


def load_plugins() -> None:
  """Import the modules that installed packages publish as `mixdef.plugins`.

  A module that cannot be imported is skipped, with a warning that names its package.
  """
  for point in metadata.entry_points(group="mixdef.plugins"):
    try:
      import_module(point.module)
    except ValueError as error:
      package = point.dist.name if point.dist else "a package"
      logging.warning("plugin %r of %s is skipped: %s", point.name, package, error)


DEFENSES = Registry("defense")
RECIPES = Registry("recipe")
PARTS = Registry("part")  # of a chain, about what is trained; no defenses
ATTACKS = Registry("attack")
GAN_ATTACKS = Registry("attack")
LEARNERS = Registry("learner")
GAN_LEARNERS = Registry("learner")
DATASETS = Registry("data set")
MODELS = Registry("model")
SECTIONS = Registry("section")
SIGNALS = Registry(
  "kind of model"
)  # functions called by `Ensemble.signals`, by `Learner.kind`

FLAT = (DEFENSES, RECIPES, PARTS, LEARNERS, GAN_LEARNERS)
"""Registries whose factories are also public names of `mixdef`."""


def recipe(factory: AnyFactory) -> AnyFactory:
  """Register a factory of chains: one name for several defenses."""
  return RECIPES.register(factory)


def attack(
  *,
  family: str,
  reads: str,
  of: str = "classifiers",
  trains: bool = False,
  note: str = "",
  aliases: Mapping[str, str] | None = None,
) -> Callable[[AnyFactory], AnyFactory]:
  """Register an attack, `attack(source, *, target, ...) -> scores [N]`.

  Args:
    family: kind of attack: "threshold", "reference",
      "trained", "label_only" or "white_box" for classifiers; "critic", "reference" or
      "generator" for generative models; or any other word.
    reads: "signals", or "models" for an attack that queries an `Ensemble` itself.
    of: "classifiers" or "generators".
    trains: whether it trains a model per target, in which case few targets are
      attacked.
    note: remark that a report must print next to its metrics.
    aliases: alternative names, each with the call that it abbreviates.

  Raises:
    ValueError: for an invalid `reads` or `of`, or a name that is taken.
  """
  if reads not in ("signals", "models"):
    raise ValueError(f"reads={reads!r}; choose 'signals' or 'models'")
  registries = {"classifiers": ATTACKS, "generators": GAN_ATTACKS}
  if of not in registries:
    raise ValueError(f"of={of!r}; choose from {', '.join(registries)}")

  def register(function):
    function.__dict__.update(family=family, reads=reads, trains=trains, note=note)
    return registries[of].register(function, aliases=aliases)

  return register


def learner(
  factory: Any = None, *, of: str = "classifiers"
) -> Callable[[AnyFactory], AnyFactory] | Any:
  """Register a factory of learners.

  Args:
    factory: for classifiers, `(models, optimizer) -> Learner`; for generative models,
      `(networks, ...)`, or `(columns, classes, ...)` for tables.
    of: "classifiers" or "generators".

  Raises:
    ValueError: for an invalid `of`, or a name that is taken.
  """
  registries = {"classifiers": LEARNERS, "generators": GAN_LEARNERS}
  if of not in registries:
    raise ValueError(f"of={of!r}; choose from {', '.join(registries)}")
  register = registries[of].register
  return register if factory is None else register(factory)


def dataset(
  reader: Any = None, *, name: str | None = None, files: str = ""
) -> Callable[[AnyFactory], AnyFactory] | Any:
  """Register the reader of a data set, `(data_dir) -> Dataset`.

  Args:
    reader: called with the folder of the raw files.
    name: name of the data set; defaults to the reader's own name.
    files: the files that it reads, for the page of data sets; empty if there are none.

  Raises:
    ValueError: for a name that is taken.
  """

  def register(reader):
    reader.__dict__["files"] = files
    return DATASETS.register(reader, name=name)

  return register if reader is None else register(reader)


def model(factory: AnyFactory) -> AnyFactory:
  """Register a factory of networks, `(..., *, num_classes) -> module`."""
  return MODELS.register(factory)


def section(title: str) -> Callable[[AnyFactory], AnyFactory]:
  """Register a section of the audit report, `section(findings, signals) -> content`.

  The function receives the `Findings` of the attacks (`scores` [S, N] and metrics by
  attack) and the `Signals`. It returns None to omit the section, or a dict with any of
  `text` (paragraphs), `columns` and `rows` (of a table). The section appears under
  `title` on the page and in report.json.

  Raises:
    ValueError: for a name that is taken.
  """

  def register(function):
    function.__dict__["title"] = title
    return SECTIONS.register(function)

  return register

"""Registries: what has a name, from defenses to sections of the report.

A decorator puts a factory into the registry of its kind, under its own name. What reads
names (flags, `parse`, the documents, the common tables of tests) reads the registries.

A module of somebody else's joins in by being imported: named as `my_module:name` in any
text, or published as an entry point of the group `mixdef.plugins`.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, TypeVar

AnyFactory = TypeVar("AnyFactory", bound=Callable[..., Any])


class Registry(dict[str, Callable[..., Any]]):
  """Factories of one kind by name.

  Attributes:
    what: what they make, for messages: "defense".
    aliases: other names, each of a factory or of a call of one.
  """

  def __init__(self, what: str) -> None:
    """Start without entries."""
    super().__init__()
    self.what = what
    self.aliases: dict[str, str] = {}

  def register(
    self,
    factory: AnyFactory,
    *,
    name: str | None = None,
    aliases: Mapping[str, str] | None = None,
  ) -> AnyFactory:
    """Add a factory under its name and return it.

    A factory that is defined anew, as by a notebook's cell that runs twice, takes its
    own place, and any other takes that of one defined inside a function.

    Args:
      factory: what the name stands for.
      name: default the factory's own.
      aliases: other names, each with the call that it stands for.

    Raises:
      ValueError: for a name that another factory has.
    """
    name = factory.__name__ if name is None else name
    for taken in (name, *(aliases or {})):
      holder = self.get(self.aliases.get(taken, taken).partition("(")[0])
      if holder is None or _place(holder) == _place(factory):
        continue
      if "<locals>" not in _place(holder)[1]:
        raise ValueError(
          f"a {self.what} called {taken!r} is there already, of {_place(holder)[0]}: "
          f"give that of {_place(factory)[0]} another name"
        )
    self[name] = factory
    self.aliases.update(aliases or {})
    return factory

  def __missing__(self, name: str) -> Callable[..., Any]:
    """Return what `module:name` names.

    Raises:
      KeyError: for another name.
      ValueError: for a module that cannot be imported or lacks the name.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon:
      raise KeyError(name)
    found = getattr(import_module(module), attribute, None)
    if not callable(found):
      raise ValueError(f"{name}: {module} has no {self.what} called {attribute}")
    return found


def _place(factory: Any) -> tuple[str, str]:
  factory = inspect.unwrap(getattr(factory, "func", factory))
  return factory.__module__, getattr(factory, "__qualname__", "")


def import_module(name: str) -> Any:
  """Import a user's module, from the current folder too.

  Raises:
    ValueError: with the reason why it cannot be imported.
  """
  try:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
      sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)
  except Exception as error:  # whatever the module does when it is imported
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"module {name!r} cannot be imported: {reason}") from error


def load_plugins() -> None:
  """Import the modules that installed packages publish as `mixdef.plugins`.

  Raises:
    ValueError: for one that cannot be imported, with its package.
  """
  for point in metadata.entry_points(group="mixdef.plugins"):
    try:
      import_module(point.module)
    except ValueError as error:
      package = point.dist.name if point.dist else "a package"
      raise ValueError(f"plugin {point.name!r} of {package}: {error}") from error


DEFENSES = Registry("defense")
RECIPES = Registry("recipe")
ATTACKS = Registry("attack")
GAN_ATTACKS = Registry("attack")
LEARNERS = Registry("learner")
GAN_LEARNERS = Registry("learner")
DATASETS = Registry("data set")
MODELS = Registry("model")
SECTIONS = Registry("section")


def recipe(factory: AnyFactory) -> AnyFactory:
  """Register a factory of chains: a name for several defenses."""
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
    family: "threshold", "reference", "trained", "label_only" or "white_box" for
      classifiers, "critic", "reference" or "generator" for generative models, or
      another word: what it sees and does.
    reads: "signals", or "models" for one that queries an `Ensemble` itself.
    of: "classifiers" or "generators".
    trains: whether it trains a model for every target, and so is run on few.
    note: what a report must say beside its metrics.
    aliases: other names, each with the call that it stands for.

  Raises:
    ValueError: for another word of `reads` or `of`, and a name that is taken.
  """
  if reads not in ("signals", "models"):
    raise ValueError(f"reads={reads!r}; an attack reads 'signals' or 'models'")
  registries = {"classifiers": ATTACKS, "generators": GAN_ATTACKS}
  if of not in registries:
    raise ValueError(f"of={of!r}; take one of {', '.join(registries)}")

  def register(function):
    function.__dict__.update(family=family, reads=reads, trains=trains, note=note)
    return registries[of].register(function, aliases=aliases)

  return register


def learner(
  factory: Any = None, *, of: str = "classifiers"
) -> Callable[[AnyFactory], AnyFactory] | Any:
  """Register a factory of learners.

  Args:
    factory: of classifiers, `(models, optimizer) -> Learner`; of generative models,
      `(networks, ...)`, or `(columns, classes, ...)` for tables.
    of: "classifiers" or "generators".

  Raises:
    ValueError: for another word of `of`, and a name that is taken.
  """
  registries = {"classifiers": LEARNERS, "generators": GAN_LEARNERS}
  if of not in registries:
    raise ValueError(f"of={of!r}; take one of {', '.join(registries)}")
  register = registries[of].register
  return register if factory is None else register(factory)


def dataset(
  reader: Any = None, *, name: str | None = None, files: str = ""
) -> Callable[[AnyFactory], AnyFactory] | Any:
  """Register a reader, `(data_dir) -> Dataset`.

  Args:
    reader: given the folder of the raw files.
    name: default the reader's own.
    files: what it reads, for the page of data sets; empty for nothing.

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

  It is given the `Findings` of the attacks (`scores` [S, N] and metrics by attack) and
  the `Signals`, and returns None, to be left out, or a dict with any of `text`
  (paragraphs), `columns` and `rows` (of a table). The page shows it, and report.json
  holds it, under `title`.

  Raises:
    ValueError: for a name that is taken.
  """

  def register(function):
    function.__dict__["title"] = title
    return SECTIONS.register(function)

  return register

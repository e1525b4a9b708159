"""The catalogue of registered attacks and the facts that a report needs about each."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mixdef.core.parsing import called, parse_call, split_calls
from mixdef.core.registry import Registry

Attack = Callable[..., np.ndarray]


class Catalogue:
  """The registered attacks on one kind of model.

  Attributes:
    attacks: every attack, by name.
    first: families that come first in a report, in this order.
  """

  def __init__(self, attacks: Registry, first: Sequence[str]) -> None:
    """Read a registry; attacks registered later appear here as well."""
    self.attacks = attacks
    self.first = first

  @property
  def families(self) -> dict[str, list[Attack]]:
    """The attacks, grouped by family."""
    families: dict[str, list[Attack]] = {name: [] for name in self.first}
    for attack in self.attacks.values():
      families.setdefault(self._of(attack, "family"), []).append(attack)
    return families

  @property
  def on_models(self) -> dict[str, Attack]:
    """Attacks that query the models of an `Ensemble` themselves."""
    return self._reading("models")

  @property
  def on_signals(self) -> dict[str, Attack]:
    """Attacks that read `Signals`, which are computed once for all of them."""
    return self._reading("signals")

  def costly(self, name: str) -> bool:
    """Return whether an attack trains a model or makes many queries per record."""
    attack = self.attacks[name]
    return self._of(attack, "trains") or self._of(attack, "reads") == "models"

  def note(self, name: str) -> str:
    """Return the note that a report must show next to an attack's metrics."""
    return self._of(self.attacks[name], "note")

  def reads(self, name: str) -> str:
    """Return "signals" or "models"."""
    return self._of(self.attacks[name], "reads")

  def source(self, name: str) -> str | None:
    """Return the source code of an attack from outside mixdef, if there is any.

    Stored scores of such an attack are reused only while its code is unchanged; the
    code of mixdef's own attacks is identified by the version.
    """
    function = inspect.unwrap(self.attacks[name])
    if function.__module__.partition(".")[0] == "mixdef":
      return None
    try:
      return inspect.getsource(function)
    except OSError:
      return None

  def _reading(self, what):
    return {n: a for n, a in self.attacks.items() if self._of(a, "reads") == what}

  def _of(self, attack: Any, fact: str) -> Any:
    try:
      return getattr(attack, fact)
    except AttributeError:
      raise ValueError(
        f"{attack!r} is not registered: write "
        "@mixdef.attack(family=..., reads=...) above it"
      ) from None

  def resolve(self, text: str) -> Attack:
    """Parse text into an attack.

    Args:
      text: a name or an alias, optionally with keyword arguments, such as
        "lira_online(score='hinge')".

    Returns:
      `attack(source, *, target, ...) -> scores [N]`. The source is an `Ensemble` for
      the attacks in `on_models`, otherwise a `Signals`.

    Raises:
      ValueError: if there is no such attack or it has no such argument.
    """
    return parse_call(
      text, self.attacks, "attack", wrap=lambda attack: functools.partial(_with, attack)
    )

  def names(self, attacks: Any) -> list[str]:
    """Return the text of every requested attack, after checking each with `resolve`.

    Args:
      attacks: a comma-separated text, or a sequence of texts, attacks of this catalogue
        and `functools.partial` calls of them. None or a blank text selects every
        attack.

    Raises:
      ValueError: for an unknown attack or an attack named twice.
    """
    if isinstance(attacks, str):
      attacks = split_calls(attacks) or None
    if attacks is None:
      return [attack.__name__ for group in self.families.values() for attack in group]
    if callable(attacks):
      attacks = [attacks]
    names = [self._text(attack) for attack in attacks]
    for name in names:
      self.resolve(name)
      if names.count(name) > 1:
        raise ValueError(f"attacks name {name} twice: name it once")
    if not names:
      raise ValueError("attacks are empty: name at least one, or omit the argument")
    return names

  def _text(self, attack: Any) -> str:
    """Return the text of one attack, given as text or as a function."""
    if isinstance(attack, str):
      return attack
    function = getattr(attack, "func", attack)
    name = getattr(function, "__name__", repr(attack))
    if self.attacks.get(name) is not function or getattr(attack, "args", ()):
      raise ValueError(
        f"{attack!r} is not an attack of this catalogue: pass a name, for example "
        f"{self.names(None)[0]!r}, or @mixdef.attack(family=..., reads=...) above a "
        "custom function"
      )
    words = [
      f"{key}={value!r}" for key, value in getattr(attack, "keywords", {}).items()
    ]
    return f"{name}({', '.join(words)})" if words else name

  def plain_name(self, text: str) -> str:
    """Return the name of the attack that a text calls, as it is keyed in `attacks`."""
    attack = self.resolve(text)
    plain = attack.func if isinstance(attack, functools.partial) else attack
    module = called(text).rpartition(":")[0]
    return f"{module}:{plain.__name__}" if module else plain.__name__

  def about(self, name: str) -> str:
    """Return the first line of an attack's docstring, which says what it scores."""
    return (self.attacks[name].__doc__ or "").partition("\n")[0]

  def family(self, name: str) -> str:
    """Return the family of an attack."""
    return self._of(self.attacks[name], "family")


def _with(attack: Any, **options) -> Attack:
  """Bind options to an attack; raise a TypeError for an option it does not take."""
  takes = getattr(attack, "checks", None)
  if takes is None:
    kinds = inspect.signature(attack).parameters.values()
    named = [one.name for one in kinds if one.kind is one.KEYWORD_ONLY]
    takes = [name for name in named if name not in ("target", "records")]
  for name in options:
    if name not in takes:
      near = difflib.get_close_matches(name, takes, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      known = ", ".join(takes) or "none"
      raise TypeError(f"there is no argument {name!r} here{hint} (known: {known})")
  if not options:
    return attack
  if hasattr(attack, "check"):
    attack.check(**options)
  return functools.partial(attack, **options)

"""A catalogue: attacks by family, with what a report must know of each."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.core.parsing import parse_call, split_calls

Attack = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
  """Attacks on one kind of model.

  Attributes:
    families: attacks by what they see and do.
    notes: what a report must say beside an attack's figures.
    aliases: other names of attacks.
    training: names of attacks that train a model of their own for every target.
  """

  families: Mapping[str, Sequence[Attack]]
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  training: Sequence[str] = ()

  @functools.cached_property
  def attacks(self) -> dict[str, Attack]:
    """Every attack by its name."""
    every = (attack for family in self.families.values() for attack in family)
    return {attack.__name__: attack for attack in every}

  @functools.cached_property
  def on_models(self) -> dict[str, Attack]:
    """Attacks that ask the models of an `Ensemble` questions of their own."""
    return {
      name: attack
      for name, attack in self.attacks.items()
      if "ensemble" in inspect.signature(attack).parameters
    }

  @functools.cached_property
  def on_signals(self) -> dict[str, Attack]:
    """Attacks that read `Signals`, asked once for all of them."""
    return {n: a for n, a in self.attacks.items() if n not in self.on_models}

  def costly(self, name: str) -> bool:
    """Tell whether an attack trains a model or asks many questions a record."""
    return name in self.training or name in self.on_models

  def resolve(self, text: str) -> Attack:
    """Return the attack that a text names.

    Args:
      text: a name or an alias, with keyword arguments or without, as
        "lira_online(score='hinge')".

    Returns:
      `attack(source, *, target, ...) -> scores [N]`; the source is an `Ensemble` for
      the attacks in `on_models`, else a `Signals`.

    Raises:
      ValueError: if there is no such attack or it has no such argument.
    """
    makers = {n: functools.partial(_with, a) for n, a in self.attacks.items()}
    return parse_call(text, makers, "attack", aliases=self.aliases)

  def names(self, attacks: Any) -> list[str]:
    """Return the texts of attacks that a caller names, each checked by `resolve`.

    Args:
      attacks: one text, attacks joined by commas; or several of texts, attacks of this
        catalogue and partial calls of them. None or a blank text is every attack.

    Raises:
      ValueError: for what names no attack here, and for an attack named twice.
    """
    if isinstance(attacks, str):
      attacks = split_calls(attacks) or None
    if attacks is None:
      return list(self.attacks)
    if callable(attacks):
      attacks = [attacks]
    names = [self._text(attack) for attack in attacks]
    for name in names:
      self.resolve(name)
      if names.count(name) > 1:
        raise ValueError(f"attacks name {name} twice: name it once")
    if not names:
      raise ValueError("attacks are empty: name one at least, or leave them out")
    return names

  def _text(self, attack: Any) -> str:
    """Return the text of one attack, which may be the function itself."""
    if isinstance(attack, str):
      return attack
    function = getattr(attack, "func", attack)
    name = getattr(function, "__name__", repr(attack))
    if self.attacks.get(name) is not function or getattr(attack, "args", ()):
      raise ValueError(
        f"{attack!r} is no attack of this catalogue: write its name, for example "
        f"{next(iter(self.attacks))!r}"
      )
    words = [
      f"{key}={value!r}" for key, value in getattr(attack, "keywords", {}).items()
    ]
    return f"{name}({', '.join(words)})" if words else name

  def plain_name(self, text: str) -> str:
    """Return the name of the attack that a text calls."""
    attack = self.resolve(text)
    plain = attack.func if isinstance(attack, functools.partial) else attack
    return plain.__name__

  def about(self, name: str) -> str:
    """Say in one sentence what an attack scores: the first line of its docstring."""
    return (self.attacks[name].__doc__ or "").partition("\n")[0]

  def family(self, name: str) -> str:
    """Return the family of an attack."""
    attack = self.attacks[name]
    return next(key for key, group in self.families.items() if attack in group)


def _with(attack: Any, **options) -> Attack:
  """Return the attack with these options; a TypeError if it does not take one."""
  takes = getattr(attack, "checks", {})
  for name in options:
    if name not in takes:
      near = difflib.get_close_matches(name, takes, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      known = ", ".join(takes) or "none"
      raise TypeError(f"no argument {name!r} can be given here{hint} (known: {known})")
  if not options:
    return attack
  attack.check(**options)
  return functools.partial(attack, **options)

"""A catalogue: attacks by family, with what a report must know of each."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mixdef.parse import parse_call

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


def _with(attack: Attack, **options) -> Attack:
  """Return the attack with these options; a TypeError if it does not take one."""
  if not options:
    return attack
  inspect.signature(attack).bind_partial(**options)
  return functools.partial(attack, **options)

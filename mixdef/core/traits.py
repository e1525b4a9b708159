"""Traits: facts about a part of a chain that its functions do not show."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from mixdef.core.check import count, flag, one_of, optional

Order = Literal["table", "augment", "mix", "label"]  # in the order of the batch hooks
Coupling = Literal["nothing", "records", "batch"]  # from the weakest to the strongest


class Traits(NamedTuple):
  """Facts about a part that `chain`, learners and training act on.

  ```
  order            turn of the batch hook: "table" rows and the targets of a table,
                   "augment" inputs (also the turn of None), "mix" rows (one part of a
                   chain), "label" labels
  couples          "records": a record influences the rows or outputs of other records;
                   "batch": the loss of a record depends on the whole batch
  needs_auxiliary  reads the auxiliary records; data that have none are rejected
  auxiliary_rows   the auxiliary records are included in the batches
  per_example      clips the gradient of each record
  no_guarantee     clips without a guarantee, so other parts may couple records
  poisson          each step draws every member independently
  per_person       a step draws persons, and holds so many rows of each side by side;
                   0: it draws records
  bands            a step draws from one of so many random groups of the members, which
                   take turns
  composes         its epsilon covers all `Spec.trainings`
  quantities       computes with records; token ids and other integers are rejected
  post_processing  `update`, `epoch` and `finish` do not need members
  critic           `loss` applies to the losses of a GAN's critic
  opaque           the text cannot be read back
  ```
  """

  order: Order | None = None
  couples: Coupling = "nothing"
  needs_auxiliary: bool = False
  auxiliary_rows: bool = False
  per_example: bool = False
  no_guarantee: bool = False
  poisson: bool = False
  per_person: int = 0
  bands: int = 1
  composes: bool = False
  quantities: bool = False
  post_processing: bool = False
  critic: bool = False
  opaque: bool = False


_ORDER = get_args(Order)
_COUPLES = get_args(Coupling)
_OTHERS = ("order", "couples", "per_person", "bands")
_FLAGS = [name for name in Traits._fields if name not in _OTHERS]
_CHECKS = {
  "order": optional(one_of(*_ORDER)),
  "couples": one_of(*_COUPLES),
  "per_person": count(0),
  "bands": count(),
  **dict.fromkeys(_FLAGS, flag),
}


def check_traits(part: str, traits: Any) -> None:
  """Raise `ValueError` unless the traits of a part are `Traits` of known values.

  >>> check_traits("mine", Traits(couples="whole_batch"))
  Traceback (most recent call last):
  ValueError: mine: couples is 'whole_batch'; choose from 'nothing', 'records', 'batch'
  """
  if not isinstance(traits, Traits):
    raise ValueError(f"{part}: traits is {traits!r}; pass mixdef.Traits(...)")
  for name, value in traits._asdict().items():
    _CHECKS[name](f"{part}: {name}", value)


def turn(traits: Traits) -> int:
  """Return the turn of a part's batch hook; without an order, that of "augment"."""
  return _ORDER.index(traits.order or "augment")


def union(every: Iterable[Traits]) -> Traits:
  """Return the traits of a chain from those of its parts.

  A flag is set if any part sets it; `order` is the earliest, `couples` the strongest,
  and `per_person` and `bands` are the largest.
  """
  every = list(every)
  orders = [one.order for one in every if one.order]
  couplings = [one.couples for one in every]
  return Traits(
    order=min(orders, key=_ORDER.index, default=None),
    couples=max(couplings, key=_COUPLES.index, default="nothing"),
    per_person=max((one.per_person for one in every), default=0),
    bands=max((one.bands for one in every), default=1),
    **{name: any(getattr(one, name) for one in every) for name in _FLAGS},
  )

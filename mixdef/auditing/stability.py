"""How much of a list of members survives other reference models, or another seed."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mixdef.attacks import ATTACKS, Signals, Unavailable, agreement, leave_one_out

_PARTS = (2, 4)
_MODELS = 8  # of a part, at least
_SEEDS = (1, 2)  # besides 0

Repeat = Callable[[int], np.ndarray]
"""Scores [N] of a random attack, by its seed."""


def overlap(scores: np.ndarray, member: np.ndarray, rank: int) -> dict[str, Any]:
  """Compare the lists of members that P runs of an attack name.

  A run names the members above its k-th largest score of the hold-out, where k is
  `rank` in proportion to the records that all runs score; the others are left out.

  Args:
    scores: [P, N] of members and hold-out; NaN where a record is not scored.
    member: bool [N].
    rank: k for the whole hold-out.

  Returns:
    `lists` P; `scored`, the members that are compared; `named` by each run; `in_all`
    and `in_any`, members on all lists and on at least one; `jaccard`, the mean over
    pairs of lists of the common members over those on either; None if no pair of lists
    names anybody.

  >>> scores = np.array([[3.0, 2.0, 0.0, 1.0, 0.5], [3.0, 0.0, 2.0, 1.0, 0.5]])
  >>> found = overlap(scores, np.array([True, True, True, False, False]), 1)
  >>> found["named"], found["in_all"], round(found["jaccard"], 3)
  ([2, 2], 1, 0.333)
  """
  known = ~np.isnan(scores).any(0)
  inside, outside = known & member, known & ~member
  total = int((~member).sum())
  found = {"lists": len(scores), "scored": int(inside.sum())}
  if not inside.any() or not outside.any():
    nobody = [0] * len(scores)
    return {**found, "named": nobody, "in_all": 0, "in_any": 0, "jaccard": None}
  k = max(1, round(rank * int(outside.sum()) / total))
  agreed = agreement(scores[:, inside], scores[:, outside], k)
  pairs = agreed.jaccard[np.triu_indices(len(scores), 1)]
  pairs = pairs[~np.isnan(pairs)]
  return {
    **found,
    "named": agreed.sizes.tolist(),
    "in_all": agreed.intersection,
    "in_any": agreed.union,
    "jaccard": float(pairs.mean()) if pairs.size else None,
  }


def stability(
  attack: str | None, signals: Signals, rank: int, repeats: Mapping[str, Repeat]
) -> dict[str, Any]:
  """Compare lists of members over parts of the reference models, and over seeds.

  Args:
    attack: name of the attack whose lists are compared over reference models, as
      `repeatable` returns it; None compares none.
    signals: of the release, which is model 0, and of its references.
    rank: k of the lists, see `overlap`.
    repeats: random attacks by name; each is compared over three seeds.

  Returns:
    `rank`; `sets`, for halves and quarters of the references of at least 8 models each,
    the result of `overlap`, the attack and the number of models; `seeds`, the same for
    each random attack.
  """
  member = signals.members[0]
  sets = []
  for parts in _PARTS if attack else ():
    rows = _over_sets(attack, signals, parts)
    if rows is not None:
      models = (len(signals.phi) - 1) // parts
      sets.append({"attack": attack, "models": models, **overlap(rows, member, rank)})
  seeds = [
    {"attack": name, **overlap(_over_seeds(repeat), member, rank)}
    for name, repeat in repeats.items()
  ]
  return {"rank": rank, "sets": sets, "seeds": seeds}


def repeatable(primary: str, names: Collection[str]) -> str | None:
  """Return the attack to run on other models: the primary one, if it reads signals.

  Others train models for the release itself; `lira_online` then takes their place.

  >>> repeatable("rmia", ["rmia"]), repeatable("imia", ["imia", "lira_online"])
  ('rmia', 'lira_online')
  >>> repeatable("imia", ["imia"])
  """
  first = (name for name in (primary, "lira_online") if name in names and cheap(name))
  return next(first, None)


def random_attacks(names: Sequence[str], signals: Signals) -> dict[str, Repeat]:
  """Return the attacks of the catalogue that draw random numbers, and are cheap."""
  return {
    name: _repeated(name, signals)
    for name in names
    if cheap(name)
    and "seed" in getattr(ATTACKS.attacks[ATTACKS.plain_name(name)], "checks", ())
  }


def cheap(name: str) -> bool:
  """Return whether an attack can be run again: it is in the catalogue, and not costly.

  >>> cheap("lira_online(score='hinge')"), cheap("gradient_norm"), cheap("imia")
  (True, False, False)
  """
  try:
    return not ATTACKS.costly(ATTACKS.plain_name(name))
  except ValueError:
    return False


def _repeated(name, signals):
  attack, target = ATTACKS.resolve(name), signals.target
  return lambda seed: leave_one_out(attack, signals, targets=[target], seed=seed)[0]


def _over_seeds(repeat):
  return np.stack([repeat(seed) for seed in (0, *_SEEDS)])


def _over_sets(attack, signals, parts):
  """Return the scores [parts, N] with each part of the references, or None."""
  count = len(signals.phi) - 1
  if count < parts * _MODELS:
    return None
  function, size = ATTACKS.resolve(attack), count // parts
  rows = []
  for part in range(parts):
    models = [0, *range(1 + part * size, 1 + (part + 1) * size)]
    try:
      chosen = signals.only_models(models)
      rows.append(leave_one_out(function, chosen, targets=[0])[0])
    except Unavailable:
      return None
  return np.stack(rows)

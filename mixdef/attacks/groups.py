"""Combine the records of each person before an attack."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks._per_record import refuse
from mixdef.attacks.signals import Signals
from mixdef.core import record_names, validate
from mixdef.core.check import check_choice
from mixdef.metrics import auc

STRATA = (1, 5, 20)
"""Largest numbers of records of a person in the strata of size: 1, 2-5, 6-20, more."""


def by_person(signals: Signals) -> Signals:
  """Return signals of persons if the records belong to persons, else them as they are.

  Args:
    signals: of N records, with or without groups.

  Raises:
    ValueError: if a person is split by a model or by `audited`; see `by_group`.
  """
  return signals if signals.groups is None else by_group(signals)


def mean_by_group(scores: ArrayLike, groups: ArrayLike) -> np.ndarray:
  """Return the mean score of every person's records, [S, G].

  For attacks that score records without signals. The mean ranks persons; as evidence
  it must not be taken for that of independent records, see `by_group`.

  Args:
    scores: [S, N]; NaN is left out.
    groups: integers or text [N], the person of each record.

  Returns:
    Means in the order of the sorted names, as `by_group`; NaN without a score.

  >>> mean_by_group([[1.0, 3.0, np.nan, np.nan]], ["b", "b", "b", "a"]).tolist()
  [[nan, 2.0]]
  """
  scores = np.asarray(scores, dtype=np.float64)
  names, place = np.unique(record_names.groups(groups), return_inverse=True)
  known = ~np.isnan(scores)
  total, count = np.zeros((2, len(scores), len(names)))
  for model, row in enumerate(scores):
    own = place[known[model]]
    total[model] = np.bincount(own, row[known[model]], len(names))
    count[model] = np.bincount(own, minlength=len(names))
  return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def by_group(
  signals: Signals,
  groups: ArrayLike | None = None,
  *,
  combine: str = "mean",
  population_groups: ArrayLike | None = None,
) -> Signals:
  """Combine the records of every person before any attack is fitted.

  Scores of the records must not be added up instead: within a model they are
  correlated, and the sum would look more certain than it is. Statistics that are summed
  separate persons by their number of records alone, so compare only persons of similar
  size; see `auc_within`.

  Args:
    signals: of N records.
    groups: integers or text [N], the person of each record; default those of the
      signals. Every model must have trained on all records of a person or on none, as
      with `subsets`.
    combine: "mean" or "sum" of phi and of the hinge over a person's records.
    population_groups: persons of the population, by default likewise; without them it
      is left out.

  Returns:
    Signals of G persons, in the order of their sorted names, which are their `ids`.
    `sizes` int [G] holds the number of records. Labels are kept if every person has
    only one, and `correct` and `log_probs` are left out. The design is kept if the
    groups are those of the signals, and else detected anew.

  Raises:
    ValueError: if there are no groups, or a person is split by a model or by `audited`.

  >>> signals = Signals.from_phi([[1., 3., 5.]], [[True, True, False]])
  >>> persons = by_group(signals, ["a", "a", "b"])
  >>> persons.phi[0, :, 0].tolist(), persons.sizes.tolist()
  ([2.0, 5.0], [2, 1])
  """
  check_choice("by_group: combine", combine, ("mean", "sum"))
  design = signals.design if groups is None else None
  groups = signals.groups if groups is None else groups
  if groups is None:
    raise ValueError("the signals have no groups: pass groups, one person per record")
  persons = record_names.groups(groups)
  if persons.shape != signals.audited.shape:
    raise ValueError(
      f"groups have shape {persons.shape}; pass [{len(signals.audited)}], one person "
      "per record"
    )
  names, first, place, sizes = np.unique(
    persons, return_index=True, return_inverse=True, return_counts=True
  )
  for values, what in ((signals.members, "members"), (signals.audited, "audited")):
    refuse(
      "groups",
      values != values[..., first][..., place],
      f"records that `{what}` treats unlike the first record of their person",
      "draw whole persons: subsets(data, num_models) of data with groups; or drop the "
      "groups",
    )
  order, starts = place.argsort(kind="stable"), np.cumsum(sizes) - sizes
  population = signals.population
  if population is not None:
    others = population.groups if population_groups is None else population_groups
    population = (
      None if others is None else by_group(population, others, combine=combine)
    )

  def combined(values: np.ndarray) -> np.ndarray:
    total = np.add.reduceat(values[:, order], starts, axis=1)
    each = sizes.reshape(-1, *(1,) * (values.ndim - 2))
    return total / each if combine == "mean" else total

  labels = signals.labels
  if labels is not None:
    labels = labels[first] if (labels == labels[first][place]).all() else None
  return dataclasses.replace(
    signals,
    **signals._each(combined) | {"correct": None},
    log_probs=None,
    members=signals.members[:, first],
    audited=signals.audited[first],
    labels=labels,
    ids=names,
    groups=None,
    sizes=sizes,
    population=population,
    design=design,
  )


def strata(sizes: ArrayLike) -> np.ndarray:
  """Return the stratum of each person by the number of records, int [G]; see `STRATA`.

  >>> strata([1, 2, 5, 6, 20, 21]).tolist()
  [0, 1, 1, 2, 2, 3]
  """
  return np.searchsorted(STRATA, validate.numbers(sizes, "sizes"))


def auc_within(scores: ArrayLike, members: ArrayLike, strata: ArrayLike) -> float:
  """Return the AUC among persons of the same stratum.

  This is the probability that a random member outranks a random non-member of the same
  stratum, over all such pairs; ties count half.

  Args:
    scores: [G]; NaN is excluded.
    members: bool [G].
    strata: int [G].

  Returns:
    The AUC; NaN if no stratum has both members and non-members.

  >>> auc_within([1, 2, 8, 9], [False, True, True, False], [0, 0, 1, 1])
  0.5
  """
  scores, members = validate.scored(scores, members)
  rows = ~np.isnan(scores)
  wins = pairs = 0.0
  for stratum in np.unique(np.asarray(strata)[rows]):
    inside = rows & (np.asarray(strata) == stratum)
    weight = int(members[inside].sum()) * int((~members[inside]).sum())
    if weight:
      wins += weight * auc(scores[inside], members[inside])
      pairs += weight
  return float(wins / pairs) if pairs else float("nan")

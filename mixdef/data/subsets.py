"""Membership matrices and disjoint splits of the records."""

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import validate
from mixdef.core.randomness import stream
from mixdef.data.dataset import Dataset


def subsets(
  data: Dataset | int,
  num_models: int,
  *,
  seed: int = 0,
  design: str = "bernoulli",
  fraction: float = 0.5,
  eligible: ArrayLike | None = None,
  always_member: ArrayLike | None = None,
) -> np.ndarray:
  """Draw the membership matrix of an ensemble.

  bernoulli: members[s, i] ~ Bernoulli(fraction), independently. Row s depends only on
  (seed, s), so adding models later does not change existing rows.

  Where records belong to groups, groups are drawn in this way instead of records, and
  all records of a group are members together.

  balanced: uniforms u [S, N] are ranked along the models, members[s, i] iff
  rank < fraction * S, so that each record is in the same number of models. Under
  leave-one-out, the number of other models that contain a record then reveals its
  membership (an attack that only counts has AUC 1), which biases pooled and online
  scores at small S. Use it only to compare with published numbers, or with a target
  drawn independently.

  Args:
    data: the records, or their number N >= 1.
    num_models: S >= 1.
    seed: non-negative int.
    design: "bernoulli" or "balanced".
    fraction: expected fraction of members in (0, 1]; the paper uses 1/2.
    eligible: [N] bool, records that may be members; defaults to `data.audited`, and to
      all if `data` is a number.
    always_member: [N] bool, members of every model, eligible or not; the design applies
      to the other records. Defaults to `data.always_member`, and to none if `data` is a
      number.

  Returns:
    members [S, N] bool. Row sizes differ and are never truncated to a common length.

  Raises:
    ValueError: an argument is out of range, or a model has no record.
    MemoryError: S * N bytes are more than there are.

  Deviation: where fraction * S is not an integer (odd S) the papers are silent; each
    record then draws its count as floor or ceil, so that the share is exact on average.
  Reference: Carlini et al., Membership Inference Attacks From First Principles, 2022,
    arXiv 2112.03570.

  >>> subsets(6, 4, design="balanced").sum(axis=0).tolist()
  [2, 2, 2, 2, 2, 2]
  >>> always = [True, False, False]
  >>> subsets(3, 4, design="balanced", always_member=always).sum(axis=0).tolist()
  [4, 2, 2]
  """
  num_models = validate.integer(num_models, "num_models", least=1)
  units = None
  if isinstance(data, Dataset):
    units = None if data.groups is None else data.units
    eligible = data.audited if eligible is None else eligible
    always_member = data.always_member if always_member is None else always_member
    data = len(data)
  num_records = validate.integer(data, "data", least=1)
  if not 0 < validate.real(fraction, "fraction") <= 1:
    raise ValueError(f"fraction={fraction}; pass a fraction in (0, 1]")
  if design not in tuple(_DESIGNS):
    raise ValueError(f"design={design!r}; choose from {', '.join(_DESIGNS)}")
  drawn = num_records if units is None else int(units.max()) + 1
  members = _DESIGNS[design](num_models, drawn, seed, fraction)
  if units is not None:
    members = members[:, units]
  if eligible is not None:
    members &= validate.mask(eligible, (num_records,), "eligible")
  if always_member is not None:
    members |= validate.mask(always_member, (num_records,), "always_member")
  return validate_members(members, num_records)


def disjoint_splits(
  data: Dataset | int, parts: int, *, size: int | None = None, seed: int = 0
) -> np.ndarray:
  """Split the records at random into disjoint parts of equal size.

  The four splits of ML-Leaks (target train and test, shadow train and test) are
  `disjoint_splits(data, 4)`; all of them come from the training file.

  Args:
    data: the records, or their number N.
    parts: number of parts >= 1.
    size: records per part; None means N // parts, which omits N mod parts records.
    seed: non-negative int.

  Returns:
    [parts, size] int64 indices, all distinct.

  Raises:
    ValueError: there are fewer than parts * size records, a part is empty, or records
      belong to groups, which several parts would split.

  Reference: Salem et al., ML-Leaks, 2019, arXiv 1806.01246.

  >>> disjoint_splits(42_100, 4, size=10_520).shape
  (4, 10520)
  """
  num_records = len(data) if isinstance(data, Dataset) else data
  num_records = validate.integer(num_records, "data", least=1)
  parts = validate.integer(parts, "parts", least=1)
  if parts > 1 and isinstance(data, Dataset) and data.groups is not None:
    raise ValueError(
      f"{parts} parts would split groups of {data.name}; draw whole groups by subsets, "
      "or pass len(data) if they do not matter"
    )
  size = num_records // parts if size is None else validate.integer(size, "size")
  if size < 1 or parts * size > num_records:
    raise ValueError(
      f"{parts} disjoint parts of {size} do not fit {num_records} records; use 1 <= "
      f"size <= {num_records // parts}"
    )
  order = stream(seed, "splits").permutation(num_records)
  return order[: parts * size].reshape(parts, size)


def validate_members(members: ArrayLike, num_records: int) -> np.ndarray:
  """Return `members` as a numpy array after checking that it fits the records.

  Args:
    members: [S, N] bool, True where model s trains on record i.
    num_records: N of the data.

  Returns:
    members [S, N] bool.

  Raises:
    ValueError: wrong type or shape, or a model without records.
  """
  members = validate.membership(members, num_records)
  empty = np.flatnonzero(~members.any(axis=1))
  if empty.size:
    raise ValueError(
      f"members[{empty[0]}] selects 0 records; every model needs at least one"
    )
  return members


def _bernoulli(
  num_models: int, num_records: int, seed: int, fraction: float
) -> np.ndarray:
  members = np.empty((num_models, num_records), bool)  # fails early if too large
  for s in range(num_models):
    members[s] = stream(seed, "bernoulli", s).random(num_records) < fraction
  return members


def _balanced(
  num_models: int, num_records: int, seed: int, fraction: float
) -> np.ndarray:
  random = stream(seed, "balanced")
  uniforms = random.random((num_models, num_records))
  ranks = uniforms.argsort(axis=0).argsort(axis=0)
  counts = np.floor(fraction * num_models + random.random(num_records))
  return ranks < counts


_DESIGNS = {"bernoulli": _bernoulli, "balanced": _balanced}

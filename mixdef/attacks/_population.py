"""Check that records passed as a population are not among the audited ones."""

from typing import Any

import numpy as np

_CHANCE = 2e-3  # probability that this many population records match others by accident


def check(own: Any, others: Any) -> None:
  """Reject a population that was queried differently, or that overlaps the records.

  Args:
    own: the `Signals` of the records.
    others: the `Signals` of the population.

  Raises:
    ValueError: with the reason.
  """
  if others.phi.shape[::2] != own.phi.shape[::2]:
    raise ValueError(
      f"the population's phi has shape {others.phi.shape}, the records' "
      f"{own.phi.shape}: query the same models with the same views"
    )
  if others.members.any():
    raise ValueError(
      "a model was trained on a record of the population: remove the record"
    )
  known = own.audited | own.members.any(0)
  records, theirs = _marks(own.phi[:, known]), _marks(others.phi)
  refuse_copies(records, theirs, "the same outputs in every model as audited records")


def check_holdout(signals: Any) -> None:
  """Reject a hold-out that overlaps the members of one model.

  Args:
    signals: the `Signals` of one model on its members and on the hold-out.

  Raises:
    ValueError: with the number of records on both sides.
  """
  member, marks = signals.members[0], _marks(signals.phi)
  refuse_copies(
    *(marks[member], marks[~member], "the same outputs as members"),
    what="hold-out",
    fix="pass records that were never used in training",
  )


def refuse_copies(
  records: np.ndarray,
  theirs: np.ndarray,
  same: str,
  *,
  what: str = "population",
  fix: str = "pass records that are not among the N",
) -> None:
  """Reject a population whose marks are those of records more often than by chance.

  Args:
    records: marks [N] of the records.
    theirs: marks [Z] of the population.
    same: what equal marks mean, for the message.
    what: the name of the population, for the message.
    fix: what to pass instead, for the message.

  Raises:
    ValueError: with the number and the first of the copies.
  """
  copies, count = np.isin(theirs, records), len(theirs)
  # Tables hold equal rows, and small models give different rows the same outputs.
  alike = max(0.02, 2 * (1 - len(np.unique(records)) / max(1, len(records))))
  from scipy.stats import binom

  too_many = binom.sf(copies.sum() - 1, count, min(alike, 1.0)) < _CHANCE
  if too_many or (copies.all() and alike < 0.5):
    raise ValueError(
      f"{copies.sum()} of the {count} records of the {what}, the first at "
      f"{copies.argmax()}, have {same}; {fix}"
    )


def _marks(phi: np.ndarray) -> np.ndarray:
  """Return a fingerprint [N] of each record's phi in all models, to three digits.

  Rounding matches copies whose outputs differ because they were in another batch. With
  one model, many records agree to three digits by chance, so five are used.
  """
  scale = 1e3 if len(phi) > 1 else 1e5
  digits = np.round(np.clip(phi[..., 0] * scale, -(2**62), 2**62))
  digits = digits.astype(np.int64).view(np.uint64)
  odd = np.random.default_rng(0).integers(2**63, size=len(phi), dtype=np.uint64) * 2 + 1
  return (digits * odd[:, None]).sum(0, dtype=np.uint64)

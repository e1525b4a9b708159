"""Helpers for attacks that query the model: which records, shadow and batches."""

from typing import Any

import numpy as np

from mixdef.attacks._designs import detect_design, drawn, related, shadows
from mixdef.attacks._shadows import check_shadow, choose_shadow
from mixdef.attacks._targets import check_model
from mixdef.attacks.views import Views, content_hash
from mixdef.training import Ensemble, Run

_FIT = 5000  # records of a shadow model that an attack is fitted on, at most
_QUERIES = 2**13  # images per query batch: 100 MB at 32 x 32 x 3


def records_to_query(
  ensemble: Ensemble, target: int, records: Any = None
) -> np.ndarray:
  """Return the indices [R] of the records that an attack on the target scores.

  Args:
    ensemble: S models.
    target: index of the attacked model.
    records: int [R], or None for every audited record.

  Raises:
    ValueError: for an invalid target, or a record that does not exist or is not
      audited.
  """
  check_model("target", target, len(ensemble))
  audited = ensemble.data.audited
  if records is None:
    return np.flatnonzero(audited)
  rows = np.asarray(records)
  if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
    raise ValueError(f"records are {rows.dtype} {rows.shape}; pass int [R] indices")
  for row in rows:
    if not 0 <= row < len(audited) or not audited[row]:
      raise ValueError(f"records hold {row}, which is not an audited record: remove it")
  return rows


def shadow_examples(
  ensemble: Ensemble, target: int, shadow: int | None = None
) -> tuple[int, np.ndarray, np.ndarray]:
  """Return the shadow model that an attack is fitted on, and its training examples.

  The examples are the audited records for which the model may be a shadow of the target
  (see `designs.shadows`). If more than 5,000 qualify, those with the lowest hash of
  their content are used.

  Args:
    ensemble: S >= 2 models.
    target: index of the attacked model.
    shadow: index of another model; None selects the first eligible one after the
      target, as in `shadows.one_shadow`.

  Returns:
    The shadow's index, the examples int [F], and whether the shadow trained on them,
    bool [F].

  Raises:
    Unavailable: if no model can be the shadow.
    ValueError: if the named shadow cannot be used.
  """
  members, audited = ensemble.members, ensemble.data.audited
  check_shadow(len(members), target, shadow)
  draws = drawn(members, audited, ensemble.data.groups)
  how = {"design": detect_design(draws), "alike": related(draws)}
  usable = shadows(members, target, audited=audited, **how) & audited
  shadow = choose_shadow(usable, members, target, shadow)
  rows = np.flatnonzero(usable[shadow])
  if len(rows) > _FIT:
    order = np.argsort(content_hash(ensemble.data.x, rows), kind="stable")
    rows = rows[order[:_FIT]]
  return shadow, rows, members[shadow, rows]


def hits(run: Run, rows: np.ndarray, views: Views) -> np.ndarray:
  """Query the labels of the records' views and compare them with the true labels.

  Args:
    run: the model, points as it is released.
    rows: int [R], indices into its data.
    views: x [B,...] -> [B,Q,...].

  Returns:
    bool [R,Q], True where the predicted label is correct. Only the argmax is read.
  """
  data = run.data
  count = views(data.x[:1]).shape[1]
  right = np.zeros((len(rows), count), bool)
  size = max(1, _QUERIES // count)
  for block in (slice(i, i + size) for i in range(0, len(rows), size)):
    points = views(data.x[rows[block]])
    labels = run.log_probs(points.reshape(-1, *points.shape[2:]), checked=False).argmax(
      -1
    )
    right[block] = labels.reshape(-1, count) == data.y[rows[block], None]
  return right

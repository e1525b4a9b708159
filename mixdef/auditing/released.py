"""The model that a release audit starts from, with its members and its hold-out."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mixdef.attacks import Signals
from mixdef.core import reading, validate
from mixdef.core.learner import Learner
from mixdef.data import Dataset
from mixdef.training import Run

ARRAYS = ("member_logits", "member_labels", "holdout_logits", "holdout_labels")
"""Arrays of a file of outputs that an audit needs."""

OPTIONAL = (
  *("population_logits", "population_labels"),
  *("member_groups", "holdout_groups", "member_ids", "holdout_ids"),
  *("member_x", "holdout_x"),
)
"""Arrays that it may also hold."""

_FIX = "write it with numpy.savez; docs/sign_off.md lists the arrays"
_BLOCK = 256


class Released(NamedTuple):
  """One model, its N1 members followed by its n0 records of the hold-out.

  Attributes:
    signals: of the model alone, [1, N1 + n0, Q], with a population if there is one.
    data: the same records, or None if only outputs are known.
    x: the records for the blind test [N1 + n0, ...], or None.
    groups: [N1 + n0] the person of each record, or None.
    run: the `Run`, or None for a model trained elsewhere.
    population: records of the population, or None.
  """

  signals: Signals
  data: Dataset | None
  x: Any
  groups: Any
  run: Run | None
  population: Dataset | None

  @property
  def members(self) -> np.ndarray:
    """Which records are members, bool [N1 + n0]."""
    return self.signals.members[0]

  def recipe(
    self, learner: Learner | None, training: Mapping[str, Any] | None
  ) -> tuple[Learner | None, dict[str, Any]]:
    """Return how the model was trained: as given, and otherwise as its `Run` says.

    Args:
      learner: its learner, or None.
      training: options of `fit`, or None.

    Returns:
      The learner, None if it is unknown, and the options, which may lack some.
    """
    given = dict(training or {})
    if self.run is None:
      return learner, given
    plan = self.run.plan
    own = {"epochs": plan.epochs, "batch_size": plan.batch_size}
    return learner or self.run.learner, {**own, **given}


def read(
  source: Any,
  *,
  members: Any = None,
  holdout: Any = None,
  population: Any = None,
  groups: Any = None,
  views: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Released:
  """Query the released model on its members and on its hold-out; see `audit_release`.

  Raises:
    ValueError: naming what is missing, and how to pass it.
  """
  if isinstance(source, str | pathlib.Path | Mapping):
    if members is not None or holdout is not None:
      raise ValueError(
        "the outputs name members and hold-out themselves: drop members= and holdout="
      )
    return _of_outputs(source, groups)
  if isinstance(source, Run):
    members, holdout = _of_run(source, members, holdout)
  elif not callable(source):
    raise ValueError(
      f"the model is a {type(source).__name__}; pass a Run, a function x [B,...] -> "
      "logits [B,K], or the path of an npz of outputs"
    )
  if members is None or holdout is None:
    raise ValueError(
      "members= and holdout= are needed: the training records, and records from the "
      "same source that were never used in training"
    )
  inside, outside = _dataset(members, "members"), _dataset(holdout, "holdout")
  validate.same_records(inside.x, outside.x)
  data = _joined(inside, outside, groups)
  others = None if population is None else _dataset(population, "population")
  predict = _predictor(source, data)
  signals = Signals.from_logits(
    _outputs(predict, data.x, views)[None],
    data.y,
    (np.arange(len(data)) < len(inside))[None],
    ids=data.ids,
    population=None
    if others is None
    else (_outputs(predict, others.x, views)[None], others.y),
    design="bernoulli",
    target=0,
  )
  run = source if isinstance(source, Run) else None
  return Released(signals, data, data.x, data.groups, run, others)


def _of_outputs(source, groups):
  """Return a model of which only outputs are known."""
  given = source
  place = "the outputs"
  if not isinstance(source, Mapping):
    given, place = reading.read_npz(source, fix=_FIX), str(source)
  for name in ARRAYS:
    if name not in given:
      raise ValueError(
        f"{place} lack {name!r}: pass {', '.join(ARRAYS)}, and optionally "
        f"{', '.join(OPTIONAL)}"
      )
  unknown = sorted(set(given) - {*ARRAYS, *OPTIONAL})
  if unknown:
    raise ValueError(f"{place} hold {unknown[0]!r}, which is not read: drop it")
  both = {
    name: _pair(given, name, place)
    for name in ("logits", "labels", "groups", "ids", "x")
  }
  count = len(given["member_labels"])
  logits, labels = both["logits"], both["labels"]
  others = None
  if "population_logits" in given:
    if "population_labels" not in given:
      raise ValueError(f"{place} lack 'population_labels'")
    others = np.asarray(given["population_logits"])[None], given["population_labels"]
  signals = Signals.from_logits(
    logits[None],
    labels,
    (np.arange(len(labels)) < count)[None],
    ids=both["ids"],
    population=others,
    design="bernoulli",
    target=0,
  )
  named = both["groups"] if groups is None else np.asarray(groups)
  return Released(signals, None, both["x"], named, None, None)


def _pair(given, name, place) -> Any:
  """Return an array of members followed by hold-out, or None if it is absent."""
  names = [f"{side}_{name}" for side in ("member", "holdout")]
  there = [one for one in names if one in given]
  if not there:
    return None
  if len(there) == 1:
    raise ValueError(
      f"{place} hold {there[0]!r} alone: pass both {' and '.join(names)}"
    )
  parts = [np.asarray(given[one]) for one in names]
  if parts[0].shape[1:] != parts[1].shape[1:]:
    raise ValueError(
      f"{place}: {names[0]} has shape {parts[0].shape}, {names[1]} {parts[1].shape}; "
      "query both in the same way"
    )
  return np.concatenate(parts)


def _of_run(run, members, holdout):
  """Return members and hold-out of a run, by default its own."""
  if members is None:
    members = run.data.select(run.members & ~run.data.auxiliary)
  if holdout is None:
    holdout = run.data.test
    if holdout is None:
      unseen = ~run.members & run.data.audited
      if not unseen.any():
        raise ValueError(
          "the run was trained on all of its records and has no test records: pass "
          "holdout=, records from the same source that were never used in training"
        )
      holdout = run.data.select(unseen)
  return members, holdout


def _dataset(records, name):
  if isinstance(records, Dataset):
    return records
  if not isinstance(records, tuple | list) or len(records) != 2:
    raise ValueError(f"{name} is a {type(records).__name__}; pass a Dataset, or (x, y)")
  return Dataset.from_arrays(*records, name=name)


def _joined(inside, outside, groups):
  """Return members followed by hold-out as one data set."""
  ids = np.concatenate([inside.ids, outside.ids])
  if len(np.unique(ids)) < len(ids):  # both are numbered from 0
    ids = np.array(
      [f"member {i}" for i in inside.ids] + [f"hold-out {i}" for i in outside.ids]
    )
  named = [part.groups for part in (inside, outside)]
  if groups is None and any(part is not None for part in named):
    if any(part is None for part in named):
      raise ValueError(
        "only one of members and hold-out has groups: pass groups= with the person of "
        "each record, members first, or drop them"
      )
    groups = np.concatenate(named)
  return Dataset(
    np.concatenate([inside.x, outside.x]),
    np.concatenate([inside.y, outside.y]),
    max(inside.num_classes, outside.num_classes),
    inside.name,
    ids=ids,
    groups=None if groups is None else np.asarray(groups),
    standardized=inside.standardized,
    classes=inside.classes,
    schema=inside.schema,
  )


def _predictor(source, data):
  if isinstance(source, Run):
    return source.log_probs
  return lambda x: np.concatenate(
    [np.asarray(source(x[i : i + _BLOCK])) for i in range(0, len(x), _BLOCK)]
  )


def _outputs(predict, x, views):
  """Return outputs [N,K] of the records, or [N,Q,K] of their views."""
  if views is None:
    return predict(x)
  points = [views(x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)]
  count = points[0].shape[1]
  outputs = [predict(block.reshape(-1, *block.shape[2:])) for block in points]
  return np.concatenate(outputs).reshape(len(x), count, -1)

"""The model that a release audit starts from, with its members and its hold-out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mixdef.attacks import Signals, _outputs, _population
from mixdef.core import reading, record_names, validate
from mixdef.core.learner import Learner
from mixdef.data import Dataset, labels
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
  given = {"members": members, "holdout": holdout, "population": population}
  datasets = _datasets({key: part for key, part in given.items() if part is not None})
  inside, outside = datasets["members"], datasets["holdout"]
  others = datasets.get("population")
  data = _joined(inside, outside, groups)
  validate.asked(others, views)
  predict = _predictor(source)
  signals = Signals.from_logits(
    _query(predict, data.x, views)[None],
    data.y,
    (np.arange(len(data)) < len(inside))[None],
    ids=data.ids,
    population=None
    if others is None
    else (_query(predict, others.x, views)[None], others.y),
    design="bernoulli",
    target=0,
  )
  _population.check_holdout(signals)
  run = source if isinstance(source, Run) else None
  return Released(signals, data, data.x, data.groups, run, others)


def _of_outputs(source, groups):
  """Return a model of which only outputs are known."""
  given = source
  place = "the outputs"
  if not isinstance(source, Mapping):
    given, place = reading.read_npz(source, fix=_FIX), str(source)
  if "logits" in given and "keep" in given:
    raise ValueError(f"{place} are those of several models: audit them with audit")
  for name in ARRAYS:
    if name not in given:
      raise ValueError(
        f"{place} lack {name!r}: pass {', '.join(ARRAYS)}, and optionally "
        f"{', '.join(OPTIONAL)}"
      )
  unknown = sorted(set(given) - {*ARRAYS, *OPTIONAL})
  if unknown:
    raise ValueError(f"{place} hold {unknown[0]!r}, which is not read: drop it")
  sides = {side: _side(given, side) for side in ("member", "holdout")}
  both = {name: _pair(given, name, place, sides) for name in ("groups", "ids", "x")}
  count, shapes = len(sides["member"][1]), [f.shape[1:] for f, _ in sides.values()]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"{place}: outputs of members have shape {shapes[0]} each, those of the hold-out "
      f"{shapes[1]}; query both in the same way"
    )
  others = None
  if "population_logits" in given or "population_labels" in given:
    for name in ("population_logits", "population_labels"):
      if name not in given:
        raise ValueError(f"{place} lack {name!r}")
    others = _side(given, "population")
    others = others[0][None], others[1]
  logits, y = (np.concatenate(parts) for parts in zip(*sides.values(), strict=True))
  signals = Signals.from_logits(
    logits[None],
    y,
    (np.arange(len(y)) < count)[None],
    ids=both["ids"],
    population=others,
    design="bernoulli",
    target=0,
  )
  _population.check_holdout(signals)
  named = _persons(both["groups"] if groups is None else groups, count, len(y))
  return Released(signals, None, both["x"], named, None, None)


def _side(given, side) -> tuple[np.ndarray, np.ndarray]:
  """Return the outputs and labels of members, hold-out or population, checked alone."""
  logits = validate.numbers(given[f"{side}_logits"], f"{side}_logits")
  y = validate.labels(given[f"{side}_labels"], f"{side}_labels")
  shape = logits.shape
  if logits.ndim not in (2, 3) or shape[-1] < 2 or 0 in shape or len(logits) != len(y):
    fix = ""
    if 1 in (logits.ndim, *shape[-1:]):
      fix = ": of one logit z for two classes, np.stack([np.zeros_like(z), z], -1)"
    elif shape == (shape[0], len(y)):
      fix = f": {side}_logits.T"
    elif shape[:2] == (1, len(y)):
      fix = f": {side}_logits[0]"
    raise ValueError(
      f"{side}_logits have shape {shape}, for {len(y)} labels; pass [{len(y)}, K] or "
      f"[{len(y)}, Q, K] with K >= 2 and at least one record{fix}"
    )
  views = logits.reshape(len(y), -1, shape[-1]).astype(np.float64)
  _outputs.refuse_scales(views, f"{side}_logits")
  return logits, y


def _pair(given, name, place, sides) -> Any:
  """Return an array of members followed by hold-out, or None if it is absent."""
  names = {side: f"{side}_{name}" for side in sides}
  there = [one for one in names.values() if one in given]
  if not there:
    return None
  if len(there) == 1:
    raise ValueError(
      f"{place} hold {there[0]!r} alone: pass both {' and '.join(names.values())}"
    )
  check: Any = {"groups": record_names.groups, "ids": record_names.ids, "x": _finite}[
    name
  ]
  parts = [check(given[one], one) for one in names.values()]
  for one, part, (_, y) in zip(names.values(), parts, sides.values(), strict=True):
    if part.shape[:1] != y.shape:
      raise ValueError(
        f"{place}: {one} has shape {part.shape}, for {len(y)} labels; pass one per "
        "record"
      )
  if parts[0].shape[1:] != parts[1].shape[1:]:
    raise ValueError(
      f"{place}: the shapes {parts[0].shape} and {parts[1].shape} of "
      f"{' and '.join(names.values())} differ; preprocess both in the same way"
    )
  if name != "x":
    record_names.same_kind(parts[0], parts[1], name)
  return np.concatenate(parts)


def _finite(values, what):
  """Return records as an array of finite numbers."""
  x = validate.numbers(values, what)
  if not np.isfinite(x).all():
    raise ValueError(f"{what} has values that are not finite; impute or remove them")
  return x


def _persons(groups, members, records):
  """Return the person of each record, or None; no person may be on both sides."""
  if groups is None:
    return None
  named = record_names.groups(groups)
  if named.shape != (records,):
    raise ValueError(
      f"groups have shape {named.shape}; pass [{records}], the person of each record, "
      "members first"
    )
  record_names.separate_groups(named[:members], named[members:])
  return named


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


def _datasets(given: Mapping[str, Any]) -> dict[str, Dataset]:
  """Return the records of each role, with the same classes and of the same shape."""
  pairs = {key: part for key, part in given.items() if not isinstance(part, Dataset)}
  for name, pair in pairs.items():
    if not isinstance(pair, tuple | list) or len(pair) != 2:
      raise ValueError(f"{name} is a {type(pair).__name__}; pass a Dataset, or (x, y)")
  # Read apart, text labels of a side that lacks a class would get other numbers.
  read = {f"labels of {name}": pair[1] for name, pair in pairs.items()}
  found, classes = labels.read_all(read) if read else ({}, None)
  made = {}
  for name, part in given.items():
    if isinstance(part, Dataset):
      made[name] = part
      continue
    y = found[f"labels of {name}"]
    own = Dataset.from_arrays(part[0], y, name=name)
    count = own.num_classes if classes is None else len(classes)
    made[name] = dataclasses.replace(own, num_classes=count, classes=classes)
  first = made["members"]
  for name, part in made.items():
    made[name] = labels.numbered_alike(part, first.classes, name)
    validate.same_records(first.x, part.x)
  return made


def _joined(inside, outside, groups):
  """Return members followed by hold-out as one data set."""
  ids = np.concatenate([inside.ids, outside.ids])
  if len(np.unique(ids)) < len(ids):  # both are numbered from 0
    ids = np.array(
      [f"member {i}" for i in inside.ids] + [f"hold-out {i}" for i in outside.ids]
    )
  named = [part.groups for part in (inside, outside) if part.groups is not None]
  if groups is None and named:
    if len(named) < 2:
      raise ValueError(
        "only one of members and hold-out has groups: pass groups= with the person of "
        "each record, members first, or drop them"
      )
    record_names.same_kind(named[0], named[1], "groups")
    groups = np.concatenate(named)
  groups = _persons(groups, len(inside), len(inside) + len(outside))
  return Dataset(
    np.concatenate([inside.x, outside.x]),
    np.concatenate([inside.y, outside.y]),
    max(inside.num_classes, outside.num_classes),
    inside.name,
    ids=ids,
    groups=groups,
    standardized=inside.standardized,
    classes=inside.classes,
    schema=inside.schema,
  )


def _predictor(source):
  """Return a function from records to outputs [B, K] of the model."""
  if isinstance(source, Run):
    return source.log_probs

  def block(x):
    out = source(x)
    if out is None or isinstance(out, tuple | Mapping):
      raise ValueError(
        f"the model returned a {type(out).__name__}; return logits [B, K] alone"
      )
    out = validate.numbers(out, "the output of the model")
    if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 2:
      fix = ""
      if out.shape in ((len(x),), (len(x), 1)):
        fix = ": of one logit z [B], np.stack([np.zeros_like(z), z], -1)"
      raise ValueError(
        f"the model returned shape {out.shape} for {len(x)} records; return logits "
        f"[{len(x)}, K] with K >= 2{fix}"
      )
    return out

  return lambda x: np.concatenate(
    [block(x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)]
  )


def _query(predict, x, views):
  """Return outputs [N,K] of the records, or [N,Q,K] of their views."""
  if views is None:
    return predict(x)
  points = [views(x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)]
  count = points[0].shape[1]
  outputs = [predict(block.reshape(-1, *block.shape[2:])) for block in points]
  return np.concatenate(outputs).reshape(len(x), count, -1)

"""Train the released recipe again without the members that are most exposed."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from mixdef.attacks import Signals, agreement, by_group
from mixdef.auditing import released
from mixdef.auditing.released import Released
from mixdef.core import validate
from mixdef.core.learner import Learner
from mixdef.data import Dataset
from mixdef.training import Run, fit

_SHOWN = 20  # names of those that were left out


class Retrained(NamedTuple):
  """The model that was trained without the most exposed members.

  Attributes:
    model: that model, queried on the remaining members and on the same hold-out.
    kept: bool [N], the records (or persons) of the first audit that it is audited on.
    run: the training.
  """

  model: Released
  kept: np.ndarray
  run: Run


def check_share(share: Any) -> float:
  """Return the share of the members to leave out, in (0, 1).

  Raises:
    ValueError: for anything else.
  """
  share = validate.real(share, "drop_exposed")
  if not 0 < share < 1:
    raise ValueError(
      f"drop_exposed={share:g}; pass a fraction of the members in (0, 1), 0.01 for 1%"
    )
  return share


def recipe(
  model: Released, learner: Learner | None, training: Mapping[str, Any] | None
) -> tuple[Learner, dict[str, Any]]:
  """Return the learner and the training of the released model, for `fit`.

  Raises:
    ValueError: if the records or the recipe are unknown.
  """
  learner, given = model.recipe(learner, training)
  if model.data is None or learner is None or "epochs" not in given:
    raise ValueError(
      "drop_exposed trains the model again: pass a Run, or the model with members=, "
      "holdout=, learner=classifier(...) and training={'epochs': ...}"
    )
  names = ("epochs", "batch_size", "noise_seed")
  return learner, {name: given[name] for name in names if name in given}


def retrain(
  model: Released,
  signals: Signals,
  scores: np.ndarray,
  share: float,
  *,
  learner: Learner | None,
  training: Mapping[str, Any] | None,
  views: Callable[[np.ndarray], np.ndarray] | None,
  seed: int,
  out: pathlib.Path | None,
  progress: bool,
) -> Retrained:
  """Train the released recipe without the most exposed members, and query it.

  Args:
    model: the released model.
    signals: of the audit: records or persons.
    scores: [N] of the attack that ranks the members.
    share: of the members to leave out, one at least.
    learner: recipe of the model, or None for that of the `Run`.
    training: `epochs` and `batch_size` of the model, or None.
    views: as in `audit_release`.
    seed: random seed of the training.
    out: folder of the training, from which it resumes.
    progress: whether to show the progress.

  Raises:
    ValueError: if the records or the recipe are unknown, or no member would remain.
  """
  learner, how = recipe(model, learner, training)
  data, inside = cast("Dataset", model.data), model.members
  kept = ~most_exposed(scores, signals.members[0], share)
  rows = kept
  if model.groups is not None:
    rows = np.isin(model.groups, np.asarray(signals.ids)[kept])
  records, members, first = data.select(rows & inside), None, model.run
  own = None if first is None else _own_rows(first, data, inside)
  if first is not None and own is not None:  # with the auxiliary records of the run
    records, members = first.data, first.members.copy()
    members[own[~rows[inside]]] = False
    if first.plan.size_given:
      size = first.plan.num_members * members.sum() / first.members.sum()
      how["num_members"] = round(size)
  run = fit(learner, records, members, seed=seed, out=out, progress=progress, **how)
  again = released.read(
    run,
    members=data.select(rows & inside),
    holdout=data.select(~inside),
    population=model.population,
    groups=None if model.groups is None else np.asarray(model.groups)[rows],
    views=views,
  )
  return Retrained(again, kept, run)


def most_exposed(scores: np.ndarray, member: np.ndarray, share: float) -> np.ndarray:
  """Return which members have the largest scores, bool [N].

  Args:
    scores: [N]; members without a score (NaN) come last.
    member: bool [N].
    share: of the members, in (0, 1); one member at least.

  Raises:
    ValueError: if no member would remain.

  >>> member = np.array([True, False, True, True])
  >>> most_exposed(np.array([1.0, 9.0, 5.0, 7.0]), member, 0.3)
  array([False, False, False,  True])
  """
  places = np.flatnonzero(member)
  count = max(1, round(share * len(places)))
  if count >= len(places):
    raise ValueError(
      f"drop_exposed={share:g} leaves out all {len(places)} members: pass a smaller "
      "fraction"
    )
  ranked = places[
    np.argsort(-np.nan_to_num(scores[places], nan=-np.inf), kind="stable")
  ]
  chosen = np.zeros(len(member), bool)
  chosen[ranked[:count]] = True
  return chosen


def with_target(signals: Signals, kept: np.ndarray, model: Released) -> Signals:
  """Return signals in which another model takes the place of the released one.

  The reference models were drawn independently of the released model, so they serve for
  the other one as well.

  Args:
    signals: [1 + S, N, Q], model 0 is the released one.
    kept: bool [N], the records (or persons) on which the other model is audited.
    model: the other model, on the same records in the same order.

  Deviation: members are left out by their scores, which read the same references. The
    remaining ones then have slightly lower scores, so that fewer are named; the
    hold-out, and with it the bounds, are unchanged [ours].
  """
  own = model.signals
  if model.groups is not None:
    own = by_group(own, model.groups)
  others = None
  if signals.population is not None and own.population is not None:
    everything = np.ones(signals.population.phi.shape[1], bool)
    others = dataclasses.replace(
      signals.population, **_swapped(signals.population, everything, own.population)
    )
  changed = _swapped(signals, kept, own)
  for name in ("labels", "ids", "sizes", "audited"):
    values = getattr(signals, name)
    changed[name] = None if values is None else values[kept]
  return dataclasses.replace(signals, **changed, population=others)


def compared(
  before: Mapping[str, Any],
  after: Mapping[str, Any],
  scores: Mapping[str, np.ndarray],
  again: Mapping[str, np.ndarray],
  retrained: Retrained,
  signals: Signals,
  share: float,
) -> dict[str, Any]:
  """Describe who is exposed without the members that were left out, for the report.

  Args:
    before: report of the released model.
    after: report of the model without them.
    scores: [N] by attack, of the released model.
    again: [N'] by attack, of the other model.
    retrained: the training.
    signals: of the released model, records or persons.
    share: of the members that was left out.

  Returns:
    `share`, `attack` that ranked them, `dropped`, their number, and `ids`, the first
    ones; `before` and `after`, the level, the counts at the prior, and accuracies;
    `rank` and `named_by`, the rule of `remaining`: of the members that remain, how many
    it names before, after, both times, and newly, with `newly_ids`, the first ones;
    `seconds` of the training.
  """
  member, kept = signals.members[0], retrained.kept
  names = np.arange(len(member)) if signals.ids is None else np.asarray(signals.ids)
  attack, rank = after["primary"], before["agreement"]["rank"]
  first = _named(scores[attack], member, rank)[kept]
  second = _named(again[attack], member[kept], rank)
  return {
    "share": share,
    "attack": before["primary"],
    "dropped": int((~kept).sum()),
    "ids": _highest(names, scores[before["primary"]], ~kept),
    "newly_ids": _highest(names[kept], again[attack], second & ~first),
    "before": _state(before),
    "after": _state(after),
    "rank": rank,
    "named_by": attack,
    "remaining": {
      "members": int((kept & member).sum()),
      "before": int(first.sum()),
      "after": int(second.sum()),
      "both": int((first & second).sum()),
      "newly": int((second & ~first).sum()),
    },
    "seconds": round(retrained.run.seconds, 1),
  }


def _highest(names, scores, chosen):
  """Return the names of the chosen records with the largest scores."""
  places = np.flatnonzero(chosen)
  ranked = places[np.argsort(-scores[places], kind="stable")]
  return names[ranked[:_SHOWN]].tolist()


def _named(scores, member, rank):
  """Return which records a rule of the hold-out names, bool [N]."""
  found = agreement(scores[None, member], scores[None, ~member], rank)
  named = np.zeros(len(member), bool)
  named[member] = found.named[0]
  return named


def _state(report):
  counts = next(row for row in report["priors"] if row["prior"] == report["prior"])
  facts = report["setting"]
  return {
    "level": report["verdict"]["level"],
    "shown": counts["shown"],
    "possible": counts["possible"],
    "auc": report["attacks"][report["primary"]]["auc"],
    **{name: facts.get(name) for name in ("train_accuracy", "test_accuracy")},
  }


def _swapped(signals, kept, own) -> dict[str, Any]:
  """Return the arrays of the kept records, with those of another model in row 0."""

  def swapped(name):
    values, first = getattr(signals, name), getattr(own, name)
    if values is None or first is None:
      return None
    values = values[:, kept]
    values[0] = first[0]
    return values

  names = ("phi", "hinge", "correct", "members", "log_probs")
  return {name: swapped(name) for name in names}


def _own_rows(run, data, inside):
  """Return the rows of the run's records that are the members, None if others are."""
  rows = np.flatnonzero(run.members & ~run.data.auxiliary)
  own, given = np.asarray(run.data.x[rows]), np.asarray(data.x[: int(inside.sum())])
  return rows if own.shape == given.shape and np.array_equal(own, given) else None

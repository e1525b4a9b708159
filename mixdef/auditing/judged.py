"""Restrict an audit to the records that the membership matrix allows it to judge."""

import dataclasses
from typing import Any

import numpy as np

from mixdef.attacks import Signals
from mixdef.attacks._designs import never_varied, same_rows


def judged(signals: Signals) -> tuple[Signals, list[str]]:
  """Exclude records that the training subsets do not allow an audit to judge.

  Args:
    signals: signals of S models on records or persons.

  Returns:
    The signals, in which records that are in all models or in none are no longer
    audited, and remarks for the report.

  Raises:
    ValueError: if no model has both members and non-members, or two models with the
      same outputs have different subsets.
  """
  remarks, rows = [], f"{signals.unit}s"
  members = signals.members[:, signals.audited]
  same = never_varied(members)
  if same.any() and not same.all():
    always, never = int((same & members[0]).sum()), int((same & ~members[0]).sum())
    remarks.append(
      f"{always} {rows} are in every training set and {never} in none: they are not "
      "audited because their membership never varies."
    )
    audited = signals.audited.copy()
    audited[audited] = ~same
    signals = dataclasses.replace(signals, audited=audited, design=None)
    members = members[:, ~same]
  able = members.any(1) & ~members.all(1)
  if not able.any():
    raise ValueError(
      f"no model was trained on some, but not all, of the audited {rows}, so there is "
      f"no membership to infer: train on random subsets of the {rows}"
    )
  if not able.all():
    remarks.append(
      f"{_models(~able)} trained on all audited {rows} or on none: used as a "
      "reference only."
    )
  _refuse_two_subsets_of_one_model(signals)
  alike = signals.related
  if len(members) > 1 and (members[able] == members[able][0]).all():
    remarks.append(
      f"All models were trained on the same {rows}, so none can serve as a reference "
      "for another, and attacks that need references were not run. The other attacks "
      f"compare members with the remaining {rows}, which is informative only if the "
      "split was random."
    )
  elif alike.any():
    remarks.append(
      f"{_models(alike.any(1))} trained on the same {rows} as another model, on "
      f"exactly the complementary {rows}, or on three quarters of either: such models "
      "are not used as references for each other."
    )
  if signals.design == "dependent":
    remarks.append(
      "The training sets were not drawn independently: the subsets of some models "
      "partly determine those of others. References were balanced so that their "
      f"number does not reveal membership, and {rows} with too few references are not "
      "scored by attacks that need them."
    )
  return signals, remarks


def _refuse_two_subsets_of_one_model(signals: Signals) -> None:
  """Reject arrays that list one model under two different subsets."""
  outputs = signals.phi.reshape(len(signals.members), -1)
  for one, other in np.argwhere(same_rows(outputs)):
    if (signals.members[one] != signals.members[other]).any():
      raise ValueError(
        f"models {one} and {other} have the same outputs, but different training "
        "sets: correct the arrays"
      )


def _models(chosen: Any) -> str:
  """List the first models of a bool array, with their verb."""
  places = [str(place) for place in np.flatnonzero(chosen)]
  more = len(places) - 8
  listed = ", ".join(places[:8]) + (f" and {more} others" if more > 0 else "")
  return f"Model {listed} was" if len(places) == 1 else f"Models {listed} were"

"""The strength of an attack as a function of the number of models it may train."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mixdef.attacks import Signals, Unavailable, leave_one_out
from mixdef.metrics.roc import complete_targets
from mixdef.metrics.summary import summarize

_FIRST = 4


def budget_sizes(num_models: int) -> list[int]:
  """Return 4, 8, 16, ... up to and including the number of available models.

  >>> budget_sizes(24), budget_sizes(3)
  ([4, 8, 16, 24], [3])
  """
  sizes = []
  size = _FIRST
  while size < num_models:
    sizes.append(size)
    size *= 2
  return [*sizes, num_models]


def budget_curve(
  attack: Callable[..., np.ndarray],
  signals: Signals,
  *,
  fpr: float = 0.01,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Attack the same models with an increasing number of references.

  The targets are the first four models at every size, so only the references differ. If
  the signals name a target, it is the only one, with the other models in their order.
  The whole curve is reported: stopping where the result looks good is a selection.

  Args:
    attack: an attack on signals.
    signals: signals of S models.
    fpr: the FPR at which to report the TPR.
    seed: random seed of the bootstrap.

  Returns:
    One {"num_models", "auc", "auc_ci", "fpr", "tpr", "tpr_ci", "resolvable"} for every
    size at which the targets have references; num_models includes the target.
  """
  targets = range(min(_FIRST, len(signals.members)))
  if signals.target is not None:
    others = [s for s in range(len(signals.members)) if s != signals.target]
    signals, targets = signals.only_models([signals.target, *others]), range(1)
  rows = []
  for size in budget_sizes(len(signals.members)):
    part = signals.first_models(size)
    try:
      scores = leave_one_out(attack, part, targets=targets)[targets]
    except Unavailable:
      continue
    if not len(complete_targets(scores, part.members[targets])):
      continue
    found = summarize(
      scores,
      part.members[targets],
      part.audited,
      fprs=(fpr,),
      groups=part.groups,
      resamples=300,
      seed=seed,
    )
    tpr = found.tpr[f"{fpr:g}"]
    rows.append(
      {
        "num_models": size,
        "auc": found.auc,
        "auc_ci": found.auc_ci,
        "fpr": fpr,
        "tpr": tpr["value"],
        "tpr_ci": tpr["ci"],
        "resolvable": tpr["resolvable"],
      }
    )
  return rows

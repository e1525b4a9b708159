"""Attack one target model after another, and report inputs that an attack lacks."""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Unavailable(ValueError):
  """Raised if an attack needs an input that the signals or models do not provide."""


def check_model(name: str, model: Any, models: int) -> int:
  """Return the index of a model as an int.

  Raises:
    ValueError: unless it is a whole number from 0 to models - 1.

  >>> check_model("target", np.int8(2), 4)
  2
  """
  whole = np.ndim(model) == 0 and np.asarray(model).dtype.kind in "iu"
  if not whole or not 0 <= model < models:
    possible = "pass 0, the only model" if models == 1 else f"pass 0 to {models - 1}"
    given = reprlib.repr(np.asarray(model).tolist())
    raise ValueError(f"{name}={given} is not a model; {possible}")
  return int(model)


def check_source(source: Any) -> None:
  """Raise a ValueError unless attacks can read it: signals, or trained models."""
  several = np.ndim(getattr(source, "members", 0)) == 2
  if several and (hasattr(source, "phi") or hasattr(source, "learner")):
    return
  raise ValueError(
    f"the source is a {type(source).__name__}; pass the Ensemble of fit_many, or "
    "Signals, made by Signals.from_logits(logits, labels, members) or "
    "Signals.from_npz(path); a single model is for audit_release"
  )


def leave_one_out(
  attack: Callable[..., np.ndarray],
  source: Any,
  /,
  *,
  targets: Sequence[int] | None = None,
  **options: Any,
) -> np.ndarray:
  """Attack one model after another, each with the others as its references.

  Args:
    attack: `attack(source, *, target, ...) -> scores [N]`.
    source: `Signals`, or an `Ensemble` for attacks that query the models.
    targets: models to attack, default all; the rows of the others are NaN.
    **options: passed on to every call.

  Returns:
    Scores float64 [S, N]; compare them with `source.members`. A target that lacks
    reference models gets NaN, provided that other targets have some.

  Raises:
    Unavailable: if no target can be attacked.
    ValueError: for a source that is neither, and for scores of another shape.

  >>> from mixdef.attacks import Signals, lira_global
  >>> signals = Signals.from_phi([[0., 1.], [2., 3.]], [[False, True]] * 2)
  >>> leave_one_out(lira_global, signals)
  array([[0., 1.],
         [2., 3.]])
  """
  check_source(source)
  scores = np.full(source.members.shape, np.nan)
  targets = range(len(scores)) if targets is None else targets
  missing: list[Unavailable] = []
  for target in targets:
    try:
      found = np.asarray(attack(source, target=target, **options))
    except Unavailable as error:
      missing.append(error)
      continue
    if found.shape != scores.shape[1:]:
      name = getattr(attack, "__name__", "the attack")
      raise ValueError(
        f"{name} returned scores of shape {list(found.shape)}: return one score per "
        f"record, {list(scores.shape[1:])}"
      )
    scores[target] = found
  if missing and len(missing) == len(targets):
    raise missing[0]
  return scores

"""Select the shadow models, records and classes that an attack is fitted on."""

import zlib
from collections.abc import Iterator

import numpy as np

from mixdef.attacks._targets import Unavailable, check_model
from mixdef.attacks.signals import Signals


def one_shadow(
  signals: Signals, target: int, shadow: int | None = None
) -> tuple[int, np.ndarray]:
  """Choose the single shadow model that an attack is fitted on.

  Args:
    signals: signals of S >= 2 models.
    target: index of the attacked model.
    shadow: index of the shadow; default the first model after the target, cyclically,
      that has both members and non-members and is not the target's exact complement.

  Returns:
    The index, and the records to fit on, bool [N]: the audited records for which the
    shadow is eligible, see `Signals.shadows`.

  Raises:
    Unavailable: if no model can be the shadow.
    ValueError: if the named shadow cannot be used.

  >>> one_shadow(Signals.from_phi(np.eye(3)[:, :2], [[True, False]] * 3), 1)[0]
  2
  """
  check_shadow(len(signals.members), target, shadow)
  usable = signals.shadows(target) & signals.audited
  shadow = choose_shadow(usable, signals.members, target, shadow)
  return shadow, usable[shadow]


def check_shadow(models: int, target: int, shadow: int | None) -> None:
  """Raise a ValueError if a named shadow does not exist or is the target."""
  if shadow is not None:
    check_model("shadow", shadow, models)
  if shadow == target:
    raise ValueError(f"shadow={shadow} is the target; name another model")


def choose_shadow(
  usable: np.ndarray, members: np.ndarray, target: int, shadow: int | None
) -> int:
  """Return the index of the shadow, chosen as in `one_shadow`.

  Args:
    usable: bool [S, N], the audited records for which a model is a reference.
    members: bool [S, N].
    target: index of the attacked model.
    shadow: index of the shadow, or None.
  """
  both = np.logical_and((usable & members).any(1), (usable & ~members).any(1))
  if shadow is None:
    if not both.any():
      raise Unavailable(
        f"needs reference models: no other model can be the shadow of target={target}; "
        "train more models"
      )
    return (target + int(np.roll(both, -target).argmax())) % len(both)
  if not both[shadow]:
    raise ValueError(
      f"shadow={shadow} has only members or only non-members to train on, or is the "
      "target's exact complement; name another"
    )
  return shadow


def several_shadows(signals: Signals, target: int, most: int) -> np.ndarray:
  """Choose up to `most` shadow models and the records to fit on for each.

  If more models are eligible, a checksum of their outputs decides which are used. The
  choice is random, but depends on neither the order of the models nor that of the
  records.

  Args:
    signals: signals of S >= 2 models.
    target: index of the attacked model.
    most: maximum number of models, at least 1.

  Returns:
    bool [S, N], a subset of `Signals.shadows(target)` and of the audited records.

  Raises:
    Unavailable: if the other models have only members or only non-members.
  """
  if most < 1:
    raise ValueError(f"shadows={most}; an attack needs at least 1")
  usable = signals.shadows(target) & signals.audited
  models = np.flatnonzero(usable.any(1))
  phi = signals.phi[:, signals.audited, 0]
  checksums = [zlib.crc32(np.sort(phi[model]).tobytes()) for model in models]
  usable[models[np.argsort(checksums)[most:]]] = False
  if not (usable & signals.members).any() or not (usable & ~signals.members).any():
    raise Unavailable(
      "needs reference models: the other models provide no members, or no "
      f"non-members, on which to attack target={target}; train more models"
    )
  return usable


def by_class(
  labels: np.ndarray, learn: np.ndarray, member: np.ndarray, *, least: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield every class's records with the examples that its attack model is fitted on.

  Args:
    labels: int [N], any values.
    learn: bool [N] or [S, N], the available examples.
    member: bool of the same shape.
    least: minimum number of members and of non-members among a class's examples; a
      class with fewer is short.

  Yields:
    Records bool [N] and examples, bool like `learn`. The last item holds the records of
    all short classes, with all examples.

  >>> labels, yes = np.array([0, 0, 5]), np.ones(3, bool)
  >>> for rows, fit in by_class(labels, yes, np.array([True, False, True])):
  ...   print(rows, fit)
  [ True  True False] [ True  True False]
  [False False  True] [ True  True  True]
  """
  inside = np.atleast_2d(learn & member).sum(0)
  outside = np.atleast_2d(learn & ~member).sum(0)
  short = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    rows = labels == label
    if min(inside[rows].sum(), outside[rows].sum()) < least:
      short |= rows
    else:
      yield rows, learn & rows
  if short.any():
    yield short, learn


def labels_of(signals: Signals) -> np.ndarray:
  """Return the labels [N]; raise `Unavailable` if there are none."""
  if signals.labels is None:
    raise signals.lacking("labels", "build them with labels")
  return signals.labels


def log_probs_of(signals: Signals) -> np.ndarray:
  """Return the log-probabilities [S, N, K]; raise `Unavailable` if there are none."""
  if signals.log_probs is None:
    fix = "build them with Signals.from_logits or ensemble.signals(log_probs=True)"
    raise signals.lacking("log_probs", fix)
  return signals.log_probs

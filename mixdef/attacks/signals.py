"""What the reference attacks read: statistics of S models on N records and Q views."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import per_record
from mixdef.data import validate

_STATISTICS = ("phi", "hinge", "loss", "correct")


@dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
  """Statistics of an ensemble's outputs, with who trained on what.

  Every model sees the same Q views of a record; query 0 is the record itself.

  Attributes:
    phi: float64 [S, N, Q], log p_y - log(1 - p_y).
    hinge: float64 [S, N, Q], margin over the best other class, or None.
    loss: float64 [S, N, Q], cross-entropy.
    correct: float64 [S, N, Q], 1.0 where the label is predicted, or None.
    keep: bool [S, N], True where model s trained on record i.
    labels: int [N], or None.
    audited: bool [N]; False marks reference rows and other records that are never
      scored and never enter a fit over records. All True by default.
  """

  phi: np.ndarray
  loss: np.ndarray
  keep: np.ndarray
  hinge: np.ndarray | None = None
  correct: np.ndarray | None = None
  labels: Any = None
  audited: Any = None

  def __post_init__(self) -> None:
    """Refuse shapes that disagree and values that no attack can rank."""
    if np.ndim(self.phi) != 3 or 0 in np.shape(self.phi):
      raise ValueError(f"phi has shape {np.shape(self.phi)}; pass [S, N, Q], none 0")
    models, records, _ = self.phi.shape
    for name in _STATISTICS:
      values = getattr(self, name)
      if values is None:
        continue
      if values.shape != self.phi.shape:
        raise ValueError(f"{name} has shape {values.shape}, phi {self.phi.shape}")
      per_record.refuse(
        name,
        ~np.isfinite(values),
        "values that are NaN or infinite",
        "build the signals from logits, or drop the models that diverged",
      )
    audited = np.ones(records, bool) if self.audited is None else self.audited
    object.__setattr__(self, "audited", audited)
    validate.mask(self.keep, (models, records), "keep")
    validate.mask(audited, (records,), "audited")
    if self.labels is not None and self.labels.shape != (records,):
      raise ValueError(f"labels have shape {self.labels.shape}; pass [{records}]")

  @classmethod
  def from_logits(
    cls,
    logits: ArrayLike,
    labels: ArrayLike,
    keep: ArrayLike,
    *,
    audited: ArrayLike | None = None,
  ) -> Self:
    """Build signals from logits or log-probabilities of any framework.

    Args:
      logits: [S, N, K], or [S, N, Q, K] with Q aligned views; see
        `per_record.statistics` for what -inf means.
      labels: int [N], classes in 0..K-1.
      keep: bool [S, N], True = member.
      audited: bool [N], default all True.

    Returns:
      Signals with all four statistics; one model is worked on at a time.

    Raises:
      ValueError: if shapes disagree, keep is not bool, or the logits hold NaN.

    >>> signals = Signals.from_logits([[[40., 0., 0.]]], [0], [[True]])
    >>> float(signals.phi[0, 0, 0].round(6))
    39.306853
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim not in (3, 4) or 0 in logits.shape:
      raise ValueError(
        f"logits have shape {logits.shape}; pass [S, N, K] or [S, N, Q, K], none 0"
      )
    if labels.shape != logits.shape[1:2]:
      raise ValueError(f"labels have shape {labels.shape}; pass [{logits.shape[1]}]")
    per_record.refuse(
      "logits", np.isnan(logits), "NaN", "drop the models or views that diverged"
    )
    if logits.ndim == 3:
      logits = logits[:, :, None]
    stacks = {name: np.empty(logits.shape[:-1]) for name in _STATISTICS}
    for model, outputs in enumerate(logits):
      for name, values in per_record.statistics(outputs, labels[:, None]).items():
        stacks[name][model] = values
    return cls(**stacks, keep=np.asarray(keep), labels=labels, audited=_array(audited))

  @classmethod
  def from_phi(
    cls,
    phi: ArrayLike,
    keep: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    audited: ArrayLike | None = None,
  ) -> Self:
    """Build signals from phi alone; the loss follows, hinge and correct stay None.

    Args:
      phi: [S, N], or [S, N, Q] with Q aligned views; finite.
      keep: bool [S, N], True = member.
      labels: int [N], for attacks with one threshold a class.
      audited: bool [N], default all True.

    Returns:
      Signals with `loss = log(1 + e^-phi)`.

    Raises:
      ValueError: if shapes disagree, keep is not bool, or phi is not finite.

    >>> Signals.from_phi([[0., 1.]], [[True, False]]).loss.round(3)[0, :, 0]
    array([0.693, 0.313])
    """
    phi = np.asarray(phi, dtype=np.float64)
    if phi.ndim == 2:
      phi = phi[:, :, None]
    with np.errstate(invalid="ignore"):  # NaN is refused with its place just below
      loss = per_record.loss_of_phi(phi)
    return cls(
      phi=phi,
      loss=loss,
      keep=np.asarray(keep),
      labels=_array(labels),
      audited=_array(audited),
    )

  def statistic(self, name: str) -> np.ndarray:
    """Return the named statistic [S, N, Q], or say why these signals lack it."""
    if name not in _STATISTICS:
      raise ValueError(f"unknown statistic {name!r}; choose from {_STATISTICS}")
    values = getattr(self, name)
    if values is None:
      raise ValueError(
        f"these signals hold no {name}; build them with Signals.from_logits"
      )
    return values

  def check_model(self, name: str, model: int) -> None:
    """Raise a ValueError unless `model` is one of the S models."""
    models = len(self.phi)
    if not 0 <= model < models:
      raise ValueError(f"{name}={model} is no model; pass 0 to {models - 1}")

  def only_audited(self, scores: np.ndarray) -> np.ndarray:
    """Return a copy of scores [N] with NaN at the records that are not audited."""
    return np.where(self.audited, scores, np.nan)


def leave_one_out(
  attack: Callable[..., np.ndarray], signals: Signals, **options: Any
) -> np.ndarray:
  """Attack every model once, with the other S-1 models as its references.

  Args:
    attack: `attack(signals, *, target, ...) -> scores [N]`.
    signals: of S models.
    **options: passed on to every call.

  Returns:
    Scores float64 [S, N]; compare them with `signals.keep`.

  >>> signals = Signals.from_phi([[0., 1.], [2., 3.]], [[False, True]] * 2)
  >>> from mixdef.attacks import lira_global
  >>> leave_one_out(lira_global, signals)
  array([[0., 1.],
         [2., 3.]])
  """
  targets = range(len(signals.phi))
  return np.stack([attack(signals, target=s, **options) for s in targets])


def _array(values: ArrayLike | None) -> np.ndarray | None:
  return None if values is None else np.asarray(values)

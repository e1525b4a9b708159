"""What the reference attacks read: statistics of S models on N records and Q views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import per_record
from mixdef.attacks.designs import DESIGNS, detect_design, references
from mixdef.data import validate

_STATISTICS = ("phi", "hinge", "loss", "correct")


class Unavailable(ValueError):
  """An attack lacks an input that these signals or models cannot give it."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
  """Statistics of an ensemble's outputs, with who trained on what.

  Every model sees the same Q views of a record; view 0 is the record itself.

  Attributes:
    phi: float64 [S, N, Q], log p_y - log(1 - p_y).
    hinge: float64 [S, N, Q], margin over the best other class, or None.
    correct: bool [S, N, Q], the label is predicted, or None.
    keep: bool [S, N], True where model s trained on record i.
    labels: int [N], or None.
    audited: bool [N]; False marks reference rows and other records that are never
      scored and never enter a fit over records. All True by default.
    log_probs: float32 [S, N, K] of the record itself, or None.
    population: the same models on Z records that no model trained on and that are not
      among the N, or None.
    design: how the subsets were drawn: "bernoulli", "balanced" (every record in half
      of the models) or "constant" (in the same number of them); None finds out from
      `keep`. See `references`.
  """

  phi: np.ndarray
  keep: np.ndarray
  hinge: np.ndarray | None = None
  correct: np.ndarray | None = None
  labels: Any = None
  audited: Any = None
  log_probs: np.ndarray | None = None
  population: Signals | None = None
  design: Any = None

  def __post_init__(self) -> None:
    """Refuse shapes that disagree and values that no attack can rank."""
    if np.ndim(self.phi) != 3 or 0 in np.shape(self.phi):
      raise ValueError(f"phi has shape {np.shape(self.phi)}; pass [S, N, Q], none 0")
    models, records, _ = self.phi.shape
    for name in ("phi", "hinge", "correct"):
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
    outputs = self.log_probs
    if outputs is not None and outputs.shape[:-1] != (models, records):
      raise ValueError(f"log_probs have shape {outputs.shape}; pass [S, N, K]")
    self._check_population()
    design = detect_design(self.keep[:, audited])
    if self.design is None:
      object.__setattr__(self, "design", design)
    elif self.design not in DESIGNS:
      raise ValueError(f"design={self.design!r}; choose from {', '.join(DESIGNS)}")

  def _check_population(self) -> None:
    others = self.population
    if others is None:
      return
    if others.phi.shape[::2] != self.phi.shape[::2]:
      raise ValueError(
        f"the population's phi has shape {others.phi.shape}, the records' "
        f"{self.phi.shape}: ask the same models with the same views"
      )
    if others.keep.any():
      raise ValueError("a model trained on a record of the population: leave it out")

  @classmethod
  def from_logits(
    cls,
    logits: ArrayLike,
    labels: ArrayLike,
    keep: ArrayLike,
    *,
    audited: ArrayLike | None = None,
    population: tuple[ArrayLike, ArrayLike] | None = None,
    design: str | None = None,
  ) -> Signals:
    """Build signals from logits or log-probabilities of any framework.

    Args:
      logits: [S, N, K], or [S, N, Q, K] with Q aligned views; see
        `per_record.statistics` for what -inf means.
      labels: int [N], classes in 0..K-1.
      keep: bool [S, N], True = member.
      audited: bool [N], default all True.
      population: logits [S, Z, K] or [S, Z, Q, K] and labels [Z] of records that no
        model trained on.
      design: one of `designs.DESIGNS`; default found out from `keep`.

    Returns:
      Signals with every statistic; one model is worked on at a time.

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
    parts = [per_record.statistics(outputs, labels[:, None]) for outputs in logits]
    others = None
    if population is not None:
      logits_z, labels_z = population
      nobody = np.zeros(np.shape(logits_z)[:2], bool)
      others = cls.from_logits(logits_z, labels_z, nobody)
    return cls(
      **{name: np.stack([part[name] for part in parts]) for name in parts[0]},
      keep=np.asarray(keep),
      labels=labels,
      audited=_array(audited),
      log_probs=_log_softmax(logits[:, :, 0]),
      population=others,
      design=design,
    )

  @classmethod
  def from_phi(
    cls,
    phi: ArrayLike,
    keep: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    audited: ArrayLike | None = None,
    population: ArrayLike | None = None,
    design: str | None = None,
  ) -> Signals:
    """Build signals from phi alone; the loss follows, the rest stays None.

    Args:
      phi: [S, N], or [S, N, Q] with Q aligned views; finite.
      keep: bool [S, N], True = member.
      labels: int [N], for attacks with one threshold a class.
      audited: bool [N], default all True.
      population: phi [S, Z] or [S, Z, Q] of records that no model trained on.
      design: one of `designs.DESIGNS`; default found out from `keep`.

    Returns:
      The signals.

    Raises:
      ValueError: if shapes disagree, keep is not bool, or phi is not finite.

    >>> Signals.from_phi([[0., 1.]], [[True, False]]).loss.round(3)[0, :, 0]
    array([0.693, 0.313])
    """
    phi = np.asarray(phi, dtype=np.float64)
    if phi.ndim == 2:
      phi = phi[:, :, None]
    others = None
    if population is not None:
      others = cls.from_phi(population, np.zeros(np.shape(population)[:2], bool))
    return cls(
      phi=phi,
      keep=np.asarray(keep),
      labels=_array(labels),
      audited=_array(audited),
      population=others,
      design=design,
    )

  @functools.cached_property
  def loss(self) -> np.ndarray:
    """Cross-entropy in nats, float64 [S, N, Q]."""
    return per_record.loss_of_phi(self.phi)

  def statistic(self, name: str) -> np.ndarray:
    """Return the named statistic [S, N, Q], or say why these signals lack it."""
    if name not in _STATISTICS:
      raise ValueError(f"unknown statistic {name!r}; choose from {_STATISTICS}")
    values = getattr(self, name)
    if values is None:
      raise Unavailable(
        f"these signals hold no {name}; build them with Signals.from_logits"
      )
    return values

  def references(self, target: int) -> np.ndarray:
    """Return which models may serve as references for each record, bool [S, N].

    Never the target, never its exact complement, and unless draws were independent no
    more models of either kind than say nothing of the target; see `designs.references`.
    """
    self.check_model("target", target)
    return references(self.keep, target, audited=self.audited, design=self.design)

  def first_models(self, count: int) -> Signals:
    """Return these signals with the first `count` models only.

    Part of a balanced design stays one: the counts of its models still lean, if less,
    to the other side than the target, and evening them out costs references only. Part
    of a constant design counts as what it looks like.
    """
    others = self.population and self.population.first_models(count)
    return dataclasses.replace(
      self,
      **self._each(lambda values: values[:count]),
      keep=self.keep[:count],
      log_probs=None if self.log_probs is None else self.log_probs[:count],
      population=others,
      design=None if self.design == "constant" else self.design,
    )

  def first_view(self) -> Signals:
    """Return these signals with view 0, the records themselves, only."""
    others = self.population and self.population.first_view()
    own = self._each(lambda values: values[:, :, :1])
    return dataclasses.replace(self, **own, population=others)

  def _each(self, cut: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    stacks = {name: getattr(self, name) for name in ("phi", "hinge", "correct")}
    return {name: None if v is None else cut(v) for name, v in stacks.items()}

  def check_model(self, name: str, model: int) -> None:
    """Raise a ValueError unless `model` is one of the S models."""
    models = len(self.phi)
    if not 0 <= model < models:
      raise ValueError(f"{name}={model} is no model; pass 0 to {models - 1}")

  def only_audited(self, scores: np.ndarray) -> np.ndarray:
    """Return a copy of scores [N] with NaN at the records that are not audited."""
    return np.where(self.audited, scores, np.nan)


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
    source: `Signals`, or an `Ensemble` for attacks that ask the models.
    targets: models to attack, default all; the rows of the others are NaN.
    **options: passed on to every call.

  Returns:
    Scores float64 [S, N]; compare them with `source.keep`.

  >>> signals = Signals.from_phi([[0., 1.], [2., 3.]], [[False, True]] * 2)
  >>> from mixdef.attacks import lira_global
  >>> leave_one_out(lira_global, signals)
  array([[0., 1.],
         [2., 3.]])
  """
  scores = np.full(source.keep.shape, np.nan)
  for target in range(len(scores)) if targets is None else targets:
    scores[target] = attack(source, target=target, **options)
  return scores


def _array(values: ArrayLike | None) -> np.ndarray | None:
  return None if values is None else np.asarray(values)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  """Return log-probabilities float32 over the last axis; -inf stays -inf."""
  f = np.asarray(logits, dtype=np.float64)
  f = f - f.max(-1, keepdims=True)
  return (f - np.log(np.exp(f).sum(-1, keepdims=True))).astype(np.float32)

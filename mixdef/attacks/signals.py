"""Statistics of S models on N records and Q views, which reference attacks read."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import _arrays, _designs, _outputs, _per_record, _population
from mixdef.attacks._targets import Unavailable, check_model

_STATISTICS = ("phi", "hinge", "loss", "correct")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
  """Statistics of an ensemble's outputs, with the membership matrix.

  All models see the same Q views of a record; view 0 is the record itself.

  Attributes:
    phi: float64 [S, N, Q], log p_y - log(1 - p_y).
    hinge: float64 [S, N, Q], margin over the best other class, or None.
    correct: bool [S, N, Q], whether the label is predicted, or None.
    members: bool [S, N], True where model s trained on record i.
    labels: int [N], or None.
    audited: bool [N]; False marks auxiliary and other records that are never scored and
      never enter a fit over records. All True by default.
    ids: integers or text [N], unique names of the records, or None.
    groups: integers or text [N], the person of each record, or None.
    sizes: int [N], records behind each row if rows are persons (`by_group`), or None.
    log_probs: float32 [S, N, K] of the record itself, or None.
    population: signals of the same models on Z records that no model trained on and
      that are not among the N, or None.
    design: how the subsets were drawn: "bernoulli", "balanced" (every record in half of
      the models), "constant" (every record in the same number of models) or
      "dependent"; None detects it from `members`. See `references`.
    target: the only model to audit, for which the others serve as references; None
      audits each model in turn.
  """

  phi: np.ndarray
  members: np.ndarray
  hinge: np.ndarray | None = None
  correct: np.ndarray | None = None
  labels: Any = None
  audited: Any = None
  ids: Any = None
  groups: Any = None
  sizes: Any = None
  log_probs: np.ndarray | None = None
  population: Signals | None = None
  design: Any = None
  target: Any = None

  def __post_init__(self) -> None:
    """Reject inconsistent shapes and values that no attack can rank."""
    for name, values in _arrays.conformed(self).items():
      object.__setattr__(self, name, values)
    if self.population is not None:
      if not isinstance(self.population, Signals):
        raise ValueError("population is not a Signals; build it from the same models")
      _population.check(self, self.population)
    if self.design is None:
      design = _designs.detect_design(self._drawn)
      object.__setattr__(self, "design", design)
    elif self.design not in _designs.DESIGNS:
      known = ", ".join(_designs.DESIGNS)
      raise ValueError(f"design={self.design!r}; choose from {known}")
    if self.target is not None:
      object.__setattr__(self, "target", self.check_model("target", self.target))

  @classmethod
  def from_logits(
    cls,
    logits: ArrayLike,
    labels: ArrayLike,
    members: ArrayLike,
    *,
    audited: ArrayLike | None = None,
    population: tuple[ArrayLike, ArrayLike] | None = None,
    ids: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    design: str | None = None,
    target: int | None = None,
  ) -> Signals:
    """Build signals from logits or log-probabilities of any framework.

    Args:
      logits: [S, N, K], or [S, N, Q, K] with Q aligned views; see
        `per_record.statistics` for the meaning of -inf.
      labels: int [N], classes in 0..K-1.
      members: bool [S, N], True = member.
      audited: bool [N], default all True.
      population: logits [S, Z, K] or [S, Z, Q, K] and labels [Z] of records that no
        model trained on.
      ids: integers or text [N], names of the records for the report.
      groups: integers or text [N], the person of each record.
      design: one of `designs.DESIGNS`; detected from `members` by default.
      target: the only model to audit, 0 to S-1; default each in turn.

    Returns:
      Signals with every statistic, computed one model at a time.

    Raises:
      ValueError: if shapes disagree, members is not bool, or the logits contain NaN,
        are probabilities or have another scale; the message says what to pass.

    >>> signals = Signals.from_logits([[[40., 0., 0.]]], [0], [[True]])
    >>> float(signals.phi[0, 0, 0].round(6))
    39.306853
    """
    stacks, labels, members = _outputs.read(logits, labels, members)
    return cls(
      **stacks,
      members=members,
      labels=labels,
      audited=audited,
      ids=ids,
      groups=groups,
      population=cls._queried_alike(population, np.shape(logits)),
      design=design,
      target=target,
    )

  @classmethod
  def from_npz(cls, path: str | pathlib.Path) -> Signals:
    """Read signals from a file of outputs that any framework can write.

    Args:
      path: npz file with `logits` [S,N,K] or [S,N,Q,K] (or log-probabilities), `keep`
        bool [S,N], the members, and `labels` int [N]. Optional are `audited` bool [N];
        `ids` [N] (names of the records, integers or text); `groups` [N] (the person of
        each record, likewise); `population_logits` [S,Z,K] or [S,Z,Q,K] and
        `population_labels` [Z] of records that no model trained on; and `target` (an
        int from 0 to S-1), to audit one model only.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file and what is wrong with it.
    """
    try:
      return cls.from_logits(**_outputs.read_file(path))
    except ValueError as error:
      named = str(error).startswith(str(path))
      raise ValueError(str(error) if named else f"{path}: {error}") from error

  @classmethod
  def _queried_alike(cls, population: Any, shape: tuple[int, ...]) -> Signals | None:
    """Return the signals of a population; `shape` is that of the records' logits."""
    if population is None:
      return None
    if not isinstance(population, (tuple, list)) or len(population) != 2:
      raise ValueError("population is not a pair of arrays; pass (logits, labels)")
    logits, labels = population
    own = np.shape(logits)
    if own[:1] + own[2:] != shape[:1] + shape[2:]:
      raise ValueError(
        f"population logits have shape {own}, the records' {shape}: query the same "
        "models with the same views, and pass all classes"
      )
    nobody = np.zeros(own[:2], bool)
    stacks, labels, _ = _outputs.read(logits, labels, nobody, name="population logits")
    del stacks["log_probs"]  # no attack reads a population's
    made: dict[str, Any] = {**stacks, "members": nobody, "labels": labels}
    return cls(**made)

  @classmethod
  def from_phi(
    cls,
    phi: ArrayLike,
    members: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    audited: ArrayLike | None = None,
    population: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    design: str | None = None,
  ) -> Signals:
    """Build signals from phi alone; the loss follows from it, the rest stays None.

    Args:
      phi: [S, N], or [S, N, Q] with Q aligned views; finite.
      members: bool [S, N], True = member.
      labels: int [N], for attacks with one threshold per class.
      audited: bool [N], default all True.
      population: phi [S, Z] or [S, Z, Q] of records that no model trained on.
      ids: integers or text [N], names of the records for the report.
      design: one of `designs.DESIGNS`; detected from `members` by default.

    Returns:
      The signals.

    Raises:
      ValueError: if shapes disagree, members is not bool, or phi is not finite.

    >>> Signals.from_phi([[0., 1.]], [[True, False]]).loss.round(3)[0, :, 0]
    array([0.693, 0.313])
    """
    phi = _arrays.with_views(phi, "phi")
    if phi.min() >= 0 and phi.max() <= 1 and len(np.unique(phi)) > 50:
      raise ValueError(
        "all values of phi are in [0, 1], like confidences p; pass phi = log p - "
        "log(1 - p)"
      )
    others = None
    if population is not None:
      others = _arrays.with_views(population, "population")
      others = cls(phi=others, members=np.zeros(others.shape[:2], bool))
    given: dict[str, Any] = {
      "phi": phi,
      "members": members,
      "labels": labels,
      "ids": ids,
    }
    return cls(**given, audited=audited, population=others, design=design)

  @functools.cached_property
  def loss(self) -> np.ndarray:
    """Cross-entropy in nats, float64 [S, N, Q]."""
    return _per_record.loss_of_phi(self.phi)

  def statistic(self, name: str) -> np.ndarray:
    """Return the named statistic [S, N, Q]; raise an error if these signals lack it."""
    if name not in _STATISTICS:
      raise ValueError(f"unknown statistic {name!r}; choose from {_STATISTICS}")
    values = getattr(self, name)
    if values is None:
      raise self.lacking(name, "build them with Signals.from_logits")
    return values

  def lacking(self, name: str, fix: str) -> Unavailable:
    """Return the error of an attack that needs an array which these signals lack."""
    if self.unit == "person":
      return Unavailable(
        f"these signals of persons have no {name}: only phi, hinge and labels that are "
        "the same for all records of a person are combined"
      )
    return Unavailable(f"these signals have no {name}; {fix}")

  @functools.cached_property
  def related(self) -> np.ndarray:
    """Pairs of models that are not references of each other, bool [S, S].

    Their subsets determine each other (`designs.related`), or they are one model that
    is listed twice: same subset, same outputs.
    """
    return _designs.related(self._drawn) | self._twice

  @property
  def unit(self) -> str:
    """What a row describes: "record", or "person" (`by_group`)."""
    return "record" if self.sizes is None else "person"

  @property
  def _drawn(self) -> np.ndarray:
    return _designs.drawn(self.members, self.audited, self.groups)

  @functools.cached_property
  def _twice(self) -> np.ndarray:
    """Pairs of equal models, bool [S, S]."""
    _outputs = self.phi.reshape(len(self.phi), -1)
    return _designs.same_rows(self.members) & _designs.same_rows(_outputs)

  @property
  def _copies(self) -> np.ndarray:
    """Models that repeat an earlier one and add no information, bool [S]."""
    return np.asarray(np.triu(self._twice).any(0))

  def references(self, target: int) -> np.ndarray:
    """Return which models may serve as references for each record, bool [S, N].

    This excludes the target and every model whose subset follows from the target's.
    Unless draws were independent, it also drops models until the remaining counts do
    not reveal the target's membership; see `designs.references`.

    Raises:
      Unavailable: if no model can be a reference for any record.
    """
    return self._others(target, _designs.references)

  def excluded_models(self, target: int) -> list[int] | None:
    """Return the models that are references of no record, the target among them.

    All others are references of every record. None is returned where that differs
    between records, where over a quarter of the models are excluded, and where sums
    over all models would serve one target only: read `references` then.
    """
    target, models = self.check_model("target", target), len(self.phi)
    if self.target is not None or type(self).references is not Signals.references:
      return None
    out = self.related[target] | self._copies
    out[target] = True
    if self.design != "bernoulli" or 4 * out.sum() > models:
      return None
    return np.flatnonzero(out).tolist()

  def once(self, name: str, compute: Callable[[], Any]) -> Any:
    """Return what the attacks on all targets share, computed at the first call."""
    if name not in self._shared:
      self._shared[name] = compute()
    return self._shared[name]

  @functools.cached_property
  def _shared(self) -> dict[str, Any]:
    return {}

  def shadows(self, target: int) -> np.ndarray:
    """Return on which models and records an attack may be fitted, bool [S, N].

    See `designs.shadows`.

    Raises:
      Unavailable: if no model can be a shadow.
    """
    return self._others(target, _designs.shadows)

  def _others(self, target: int, choose: Callable[..., np.ndarray]) -> np.ndarray:
    self.check_model("target", target)
    usable = choose(
      self.members, target, audited=self.audited, design=self.design, alike=self.related
    )
    usable[self._copies] = False
    if not usable[:, self.audited].any():
      reason = "the subsets of the other models determine each other"
      if len(usable) == 1:
        reason = "there is only one model"
      elif self.related[target].sum() == len(usable) - 1:
        reason = (
          "the other models were trained on the same records, or on exactly the others"
        )
      raise Unavailable(
        f"it needs reference models, on subsets independent of model {target}'s: "
        f"{reason}; train more models"
      )
    return usable

  def first_models(self, count: int) -> Signals:
    """Return signals of the first `count` models only.

    A slice of a balanced design is still treated as balanced: the counts of its models
    remain informative, if less so, and balancing them costs only references. The design
    of a slice of a constant design is detected anew.
    """
    return self._only(slice(count), range(count))

  def only_models(self, models: Sequence[int]) -> Signals:
    """Return signals of these models only, in this order."""
    return self._only(list(models), models)

  def _only(self, chosen: slice | list[int], models: Sequence[int]) -> Signals:
    return dataclasses.replace(
      self,
      **self._each(lambda values: values[chosen]),
      members=self.members[chosen],
      log_probs=None if self.log_probs is None else self.log_probs[chosen],
      population=self.population and self.population._only(chosen, models),
      design=self.design if self.design in ("bernoulli", "balanced") else None,
      target=models.index(self.target) if self.target in models else None,
    )

  def first_view(self) -> Signals:
    """Return signals of view 0 only, which holds the records themselves."""
    others = self.population and self.population.first_view()
    own = self._each(lambda values: values[:, :, :1])
    return dataclasses.replace(self, **own, population=others)

  def _each(self, cut: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    stacks = {name: getattr(self, name) for name in ("phi", "hinge", "correct")}
    return {name: None if v is None else cut(v) for name, v in stacks.items()}

  def check_model(self, name: str, model: Any) -> int:
    """Return the index of a model; raise a ValueError unless it is one of S."""
    return check_model(name, model, len(self.phi))

  def only_audited(self, scores: np.ndarray) -> np.ndarray:
    """Return a copy of scores [N] with NaN at the records that are not audited."""
    return np.where(self.audited, scores, np.nan)

"""Scores and losses of S GANs on N records, which attacks on critics read."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import Signals
from mixdef.attacks._kept import kept
from mixdef.attacks.gan._sampling import conditions
from mixdef.core import registry, validate
from mixdef.data import Dataset, to_float
from mixdef.defenses.critic import fake_latents
from mixdef.training import Ensemble
from mixdef.training.progress import Progress

_STACKS = ("phi", "hinge", "correct", "log_probs", "critic", "reconstruction")
_RECORDS = 2**12  # records between two progress reports


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GanSignals(Signals):
  """`Signals` of GANs: phi is the negated loss of the critic that fits a record best.

  ```
  l_c(x) = -D_c(x, y) + mean_z D_c(G(z, y), y),   phi = -min_c l_c(x)
  ```

  Attributes:
    critic: float32 [S, N, Q, C], the scores D_c(x, y) of all critics, or None.
    reconstruction: float64 [S, N, Q], the reconstruction losses of the generators, NaN
      where they were not computed, or None; see `with_reconstructions`.
  """

  critic: np.ndarray | None = None
  reconstruction: np.ndarray | None = None

  def __post_init__(self) -> None:
    """Raise an error if shapes are inconsistent."""
    super().__post_init__()
    for name in ("critic", "reconstruction"):
      values = getattr(self, name)
      if values is not None and values.shape[:3] != self.phi.shape:
        raise ValueError(f"{name} has shape {values.shape}, phi {self.phi.shape}")

  def _each(self, cut: Callable[[np.ndarray], np.ndarray]):
    stacks = {name: getattr(self, name) for name in ("critic", "reconstruction")}
    cuts = {name: None if v is None else cut(v) for name, v in stacks.items()}
    return super()._each(cut) | cuts


@functools.partial(registry.SIGNALS.register, name="generators")
@kept(GanSignals, ("phi", "critic"))
def gan_signals(
  ensemble: Ensemble,
  *,
  population: Dataset | None = None,
  views: None = None,
  num_fakes: int = 64,
  progress: bool = False,
) -> GanSignals:
  """Query the critics of GANs on every record; called by `Ensemble.signals`.

  A record is queried under its own label.

  Networks run in inference mode, and a record's output does not depend on other
  records. All models, the target and its references, get the same number of fakes,
  generated from the same latents.

  Args:
    ensemble: S trained GANs.
    population: records that no GAN trained on, for example `ensemble.data.test`.
    views: None; critics see the records themselves.
    num_fakes: number of latents in the mean over z, at least 1.
    progress: whether to show a progress bar (on a terminal) or lines.

  Returns:
    The `GanSignals` with Q = 1, without reconstructions.

  Raises:
    ValueError: if a critic outputs NaN, the population's records have another shape or
      type, or views are passed.

  Deviation: the official code uses the mean of 64 fakes for the target but a single
    fake for the references, whose losses are therefore noisier. For several critics the
    paper's rule, the minimum of D(fake) - D(x), is also applied to the references.

  Reference: Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.
  """
  if views is not None:
    raise ValueError("critics are queried with the records themselves: drop views")
  data, others = ensemble.data, None
  count = len(data)
  if population is not None:
    validate.same_records(data.x, population.x)
    count += len(population)
  shown = Progress(count, unit="record", shown=progress)
  if population is not None:
    nobody = np.zeros((len(ensemble), len(population)), bool)
    stacks = _queried(ensemble, population, num_fakes, shown)
    others = GanSignals(
      **stacks, members=nobody, labels=population.y, groups=population.groups
    )
  stacks = _queried(ensemble, data, num_fakes, shown)
  shown.close()
  return GanSignals(
    **stacks,
    members=ensemble.members,
    labels=data.y,
    audited=data.audited,
    ids=data.ids,
    groups=data.groups,
    population=others,
  )


def with_references(undefended: Signals, defended: Signals, target: int) -> Signals:
  """Replace the outputs of an undefended model by those of its defended twin.

  Any attack on this target then has the undefended models as references. Both ensembles
  have the same membership matrix, so the undefended model of the same row, which was
  trained on the same members, is replaced and never a reference.

  Args:
    undefended: signals of the references, S models.
    defended: signals of the attacked models, S of them on the same records.
    target: index of the attacked model.

  Returns:
    The references' signals with row `target` from `defended`. Arrays that only one side
    has, or that differ in shape, such as scores of more critics, are dropped.

  Raises:
    ValueError: if the two were trained on different subsets.
  """
  if not np.array_equal(undefended.members, defended.members):
    raise ValueError(
      "the references and the attacked models were not trained on the same subsets: "
      "train both with the same members matrix"
    )
  if undefended.phi.shape != defended.phi.shape:
    raise ValueError(
      f"the references' phi has shape {undefended.phi.shape}, the attacked models' "
      f"{defended.phi.shape}: query both with the same records and views"
    )
  undefended.check_model("target", target)

  def joined(name):
    theirs, own = getattr(undefended, name, None), getattr(defended, name, None)
    if theirs is None or own is None or theirs.shape != own.shape:
      return None
    theirs = theirs.copy()
    theirs[target] = own[target]
    return theirs

  stacks: dict[str, Any] = {
    name: joined(name) for name in _STACKS if hasattr(undefended, name)
  }
  others = None
  if undefended.population is not None and defended.population is not None:
    others = with_references(undefended.population, defended.population, target)
  return dataclasses.replace(undefended, **stacks, population=others)


def critic_scores(ensemble: Ensemble, x: ArrayLike, y: ArrayLike) -> np.ndarray:
  """Query every critic on records: D_c(x, y), float32 [S,B,C].

  Args:
    ensemble: S trained GANs.
    x: [B,...], as in the data set.
    y: conditions float32 [B,K].

  Raises:
    ValueError: naming the models that output NaN.
  """
  return _finite(ensemble.query(_scores, x, y))


def fake_scores(ensemble: Ensemble, y: ArrayLike, num_fakes: int) -> np.ndarray:
  """Return mean_z D_c(G(z, y), y) under each condition, float64 [S,B,C].

  The latents are the same for all conditions and models, those of
  `mixdef.defenses.critic.critic_losses`, so equal conditions are evaluated once.

  Args:
    ensemble: S trained GANs.
    y: conditions float32 [B,K].
    num_fakes: number of latents in the mean, at least 1.

  Raises:
    ValueError: for no fakes, or naming the models that output NaN.
  """
  if num_fakes < 1:
    raise ValueError(f"num_fakes={num_fakes}; pass at least 1")
  distinct, place = np.unique(y, axis=0, return_inverse=True)
  fakes = np.tile(np.arange(num_fakes), len(distinct))
  scores = _finite(ensemble.query(_fake_scores, distinct.repeat(num_fakes, 0), fakes))
  scores = scores.reshape(len(ensemble), len(distinct), num_fakes, -1)
  return scores.mean(2, dtype=np.float64)[:, place.reshape(-1)]


def _queried(ensemble, data, num_fakes, progress):
  y = conditions(ensemble[0], data.y)
  fakes = fake_scores(ensemble, y, num_fakes)
  blocks = []
  for first in range(0, len(data), _RECORDS):
    rows = slice(first, first + _RECORDS)
    blocks.append(critic_scores(ensemble, to_float(data.x[rows]), y[rows]))
    progress.advance(blocks[-1].shape[1])
  critic = np.concatenate(blocks, 1)
  phi = (critic - fakes).max(-1, keepdims=True)
  return {"phi": phi, "critic": critic[:, :, None]}


def _scores(learner, state, x, y):
  return learner.predict(state, x, y=y)


def _fake_scores(learner, state, y, fakes):
  """Return scores [B,C] of the fakes with these indices, one under each condition."""
  z = fake_latents(learner, fakes)
  return learner.predict(state, learner.generate(state, z, y), y=y)


def _finite(scores):
  broken = np.flatnonzero(~np.isfinite(scores).all((1, 2)))
  if broken.size:
    raise ValueError(
      f"the critics of models {broken.tolist()} output NaN or infinity because they "
      "diverged; exclude them with `ensemble.converged()`, or use a lower learning "
      "rate"
    )
  return scores

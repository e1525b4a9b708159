"""Attacks that account for mixup: mixed queries, and references that use the defense.

The attacker's knowledge determines the cell of a grid. An attacker who knows that the
defense is mixup trains references with it; an attacker who knows that two records have
the same membership queries their mixtures.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixdef.attacks import (
  Signals,
  Unavailable,
  by_person,
  lira_coverage,
  lira_online,
)
from mixdef.attacks._designs import detect_design, drawn, references
from mixdef.attacks.gan._sampling import conditions
from mixdef.attacks.gan.likelihood import lira_gan_discriminator
from mixdef.attacks.gan.signals import (
  critic_scores,
  fake_scores,
  with_references,
)
from mixdef.core.randomness import stream
from mixdef.data import Dataset, to_float
from mixdef.training import Ensemble

LAMBDAS = (0.2, 0.5, 0.8)
"""Weights of the first record in the queries on a pair, from the official code."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairSignals(Signals):
  """`Signals` of mixtures of P pairs of records; phi is the mean over the mixtures.

  `members` marks the models that trained on both records of a pair. Models that trained
  on one of the two are not references for the pair.

  Attributes:
    contributors: bool [S, P, 2], whether a model trained on either record.
  """

  contributors: np.ndarray

  def references(self, target: int) -> np.ndarray:
    """Return the reference models of each pair, bool [S, P]: with both or with neither.

    A model must be a reference for both records, see `Signals.references`.
    """
    self.check_model("target", target)
    models, pairs, _ = self.contributors.shape
    records = self.contributors.reshape(models, -1)
    everyone = np.ones(2 * pairs, bool)
    usable = references(records, target, audited=everyone, design=self.design)
    return usable.reshape(models, pairs, 2).all(-1) & self.alike

  @property
  def alike(self) -> np.ndarray:
    """Return whether a model trained on both records or on neither, bool [S, P]."""
    return self.contributors[..., 0] == self.contributors[..., 1]


class Cell(NamedTuple):
  """Results of one attacker on T targets.

  Attributes:
    scores: float64 [T, R] of R records, or persons if the records have groups, or of
      pairs of records; NaN where a target trained on one record of a pair only. A
      column refers to the same records for every target, and no two columns have a
      record, or a person, in common, so that columns can be resampled as records.
    members: bool [T, R], whether the target trained on them.
    coverage: number of scores that had to use a fallback fit, over all targets; see
      `mixdef.attacks.lira_coverage`.
  """

  scores: np.ndarray
  members: np.ndarray
  coverage: dict[str, int]


def pair_signals(
  ensemble: Ensemble,
  *,
  lambdas: Sequence[float] = LAMBDAS,
  num_pairs: int | None = None,
  num_fakes: int = 64,
  seed: int = 0,
) -> PairSignals:
  """Query every GAN on mixtures of pairs of records, with conditions mixed alike.

  ```
  x = lam x_1 + (1 - lam) x_2,   y = lam y_1 + (1 - lam) y_2
  phi = mean over lam of max_c [D_c(x, y) - mean_z D_c(G(z, y), y)]
  ```

  The pairs are disjoint and the same for all models. Which of them consist of two
  members or of two non-members differs between models. If records belong to persons,
  one record of each person is paired, so that no two pairs have a person in common.

  Args:
    ensemble: S trained GANs.
    lambdas: weights of the first record, in (0, 1).
    num_pairs: P, at most half of the audited records, or persons, which is the default.
    num_fakes: number of latents in the mean over z, at least 1.
    seed: random seed of the pairs; attacked models and references need the same seed.

  Returns:
    The `PairSignals`.

  Raises:
    ValueError: for a number out of range, or if a critic outputs NaN.
  """
  for lam in lambdas:
    if not 0 < lam < 1:
      raise ValueError(
        f"lambdas contains {lam}, which does not mix; pass weights in (0, 1)"
      )
  if not lambdas:
    raise ValueError("lambdas is empty; pass at least one weight")
  data = ensemble.data
  pairs = _disjoint_pairs(data, num_pairs, seed)
  y = conditions(ensemble[0], data.y)
  conditions_of = [_mixture(y, pairs, lam) for lam in lambdas]
  # Together, because a mixture of two classes recurs with its weights exchanged.
  fakes = fake_scores(ensemble, np.concatenate(conditions_of), num_fakes)
  fakes = np.split(fakes, len(lambdas), axis=1)
  phi = np.zeros((len(ensemble), len(pairs), 1))
  for lam, mixed_y, fake in zip(lambdas, conditions_of, fakes, strict=True):
    scores = critic_scores(ensemble, _mixture(data.x, pairs, lam), mixed_y)
    phi += (scores - fake).max(-1, keepdims=True) / len(lambdas)
  contributors = ensemble.members[:, pairs]
  return PairSignals(
    phi=phi,
    members=contributors[..., 0] & contributors[..., 1],
    contributors=contributors,
    design=detect_design(drawn(ensemble.members, data.audited, data.groups)),
  )


def lira_gan_mixed_query(
  signals: Signals, *, target: int, ddof: int = 0, official: bool = False
) -> np.ndarray:
  """Score pairs by the log-likelihood ratio of the critic's loss of their mixtures.

  In-references trained on both records, out-references on neither: one quarter each of
  models that train on random halves. Pairs with too few references get pooled variances
  or the one-sided test as in `lira_online`; `lira_coverage` counts them.

  Args:
    signals: result of `pair_signals`.
    target: index of the attacked model.
    ddof: 0 or 1, in the variance.
    official: whether to keep the target in the fit of the pairs of which it trained on
      neither record, as the official code does. There, the observed loss is also a row
      of the references' matrix: pass their signals unchanged, without
      `with_auxiliarys`.

  Returns:
    Scores [P] in nats, of pairs instead of records: NaN for a pair of which the target
    trained on one record, or where no reference trained on neither.

  Raises:
    Unavailable: if the signals are not of pairs.

  Deviation: the official ratio divides densities with 1e-8 in the denominator, which
    flattens small densities; here logarithms are subtracted. Its pairs share records.

  Reference: Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.
  """
  if not isinstance(signals, PairSignals):
    raise Unavailable(
      "these are signals of single records; build them with pair_signals"
    )
  signals.check_model("target", target)
  queried = _of_pairs_alike(signals, target)
  if official:
    queried, target = _with_official_twin(queried, target)
  return lira_online(queried, target=target, ddof=ddof)


def adaptive_grid(
  defended: Ensemble,
  undefended: Ensemble,
  mixup: Ensemble | None = None,
  *,
  targets: Sequence[int] | None = None,
  num_pairs: int | None = None,
  num_fakes: int = 64,
  seed: int = 0,
  official: bool = False,
) -> dict[str, Cell]:
  """Attack defended GANs by single and mixed queries, with two kinds of references.

  Every cell scores the attacked network itself. Neither this network nor its undefended
  twin, which trained on the same records, is among the references.

  Args:
    defended: the S attacked GANs.
    undefended: undefended GANs trained on the same subsets.
    mixup: GANs trained with the defense on the same subsets; default `defended` itself,
      where the other models are the references of each.
    targets: the attacked models, default all.
    num_pairs: number of pairs of the mixed query, see `pair_signals`.
    num_fakes: number of latents in the mean over z, at least 1.
    seed: random seed of the pairs.
    official: in the mixed cells, whether to score the references' own row instead of
      the attacked network, as the official scripts do. With undefended references, this
      attacks an undefended GAN.

  Returns:
    One `Cell` each for "single/natural", "single/mixup", "mixed/natural" and
    "mixed/mixup".

  Raises:
    ValueError: if the ensembles were trained on different subsets, or a number is out
      of range.

  Deviation: the official scripts never evaluate the attacked network in the mixed
    cells; here it is evaluated, so these cells differ from the paper's.

  Reference: Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.
  """
  targets = range(len(defended)) if targets is None else targets
  references = {"natural": undefended, "mixup": defended if mixup is None else mixup}

  def single(ensemble):
    return by_person(ensemble.signals(num_fakes=num_fakes))

  def mixed(ensemble):
    return pair_signals(ensemble, num_pairs=num_pairs, num_fakes=num_fakes, seed=seed)

  cells = {}
  for kind, query in (("single", single), ("mixed", mixed)):
    observed = query(defended)
    for name, ensemble in references.items():
      theirs = observed if ensemble is defended else query(ensemble)
      as_official = official and kind == "mixed"
      cells[f"{kind}/{name}"] = _cell(theirs, observed, targets, official=as_official)
  return cells


def _cell(references: Signals, observed: Signals, targets, *, official: bool) -> Cell:
  scores, coverage = [], collections.Counter()
  for target in targets:
    signals = with_references(references, observed, target)
    if isinstance(signals, PairSignals):
      queried = references if official else signals
      scores.append(lira_gan_mixed_query(queried, target=target, official=official))
      signals = _of_pairs_alike(signals, target)
    else:
      scores.append(lira_gan_discriminator(signals, target=target))
    coverage.update(lira_coverage(signals, target=target))
  members = observed.members[list(targets)]
  return Cell(np.stack(scores), members, dict(coverage))


def _of_pairs_alike(signals: PairSignals, target: int) -> PairSignals:
  """Audit only the pairs of two members or of two non-members of the target."""
  return dataclasses.replace(signals, audited=signals.alike[target])


def _with_official_twin(signals: PairSignals, target: int) -> tuple[PairSignals, int]:
  """Attack a twin of the target, which is a reference for pairs it has neither of."""
  contributors = np.concatenate([signals.contributors, signals.contributors[[target]]])
  # One trained record of two excludes it as a reference for the pairs of its members.
  contributors[target, signals.members[target], 0] = False
  phi = np.concatenate([signals.phi, signals.phi[[target]]])
  twin = PairSignals(
    phi=phi,
    members=contributors[..., 0] & contributors[..., 1],
    contributors=contributors,
    audited=signals.audited,
    design="bernoulli",
  )
  return twin, len(signals.phi)


def _disjoint_pairs(data: Dataset, num_pairs: int | None, seed: int):
  """Draw pairs int [P,2] of the audited records, no record or person twice."""
  order = stream(seed, "pairs").permutation(np.flatnonzero(data.audited))
  order = order[np.sort(np.unique(data.units[order], return_index=True)[1])]
  most = len(order) // 2
  count = most if num_pairs is None else num_pairs
  if not 1 <= count <= most:
    raise ValueError(
      f"num_pairs={num_pairs} of {len(order)} audited records; pass 1 to {most} "
      "disjoint pairs"
    )
  return order[: 2 * count].reshape(-1, 2)


def _mixture(values, pairs, lam):
  first, second = (to_float(values[pairs[:, side]]) for side in (0, 1))
  return (lam * first + (1 - lam) * second).astype(np.float32)

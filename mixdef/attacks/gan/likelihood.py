"""LiRA for GANs: the target's loss compared with per-record Gaussians.

The Gaussians are those of `mixdef.attacks.lira`: fitted to reference models with and
without the record, with the maximum-likelihood variance, which the official code uses
(`ddof=0`; 1 is the unbiased one, for few references). All scores are differences of log
densities; no density is divided by another.

Reference: Mixup Training for Generative Models to Defend Membership Inference Attacks,
INFOCOM 2023; Carlini et al., "Membership Inference Attacks From First Principles",
2022, arXiv 2112.03570.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from mixdef.attacks import (
  Signals,
  Unavailable,
  lira_offline,
  lira_online,
  lira_online_fixed,
)
from mixdef.attacks._querying import records_to_query
from mixdef.attacks.gan.reconstruction import reconstruction_losses
from mixdef.attacks.gan.signals import GanSignals
from mixdef.core.check import checked, count, flag
from mixdef.core.registry import attack
from mixdef.training import Ensemble


@attack(family="reference", reads="signals", of="generators")
@checked(ddof=count(0, 1), include_target=flag)
def lira_gan_discriminator(
  signals: Signals, *, target: int, ddof: int = 0, include_target: bool = False
) -> np.ndarray:
  """Score by the log-likelihood ratio of the critic's loss, one variance per record.

  ```
  l(x)       = -D(x, y) + mean_z D(G(z, y), y)
  log Lambda = log(s_out / s_in) + (l - m_out)^2 / (2 s_out^2)
                                 - (l - m_in)^2 / (2 s_in^2)
  ```

  Args:
    signals: result of `Ensemble.signals`; useful from S >= 3 models.
    target: index of the attacked model.
    ddof: 0 or 1, in the variance.
    include_target: whether to fit the Gaussians to the target's own loss, too, as the
      official evaluation of unprotected targets does. This reveals membership; use it
      only to compare with published numbers.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.

  Deviation: the official evaluation of an unprotected target includes it among its own
    references; here it is excluded. The variance is floored as in `lira_online`.

  >>> l = np.array([[-7.0, -11.52, -3.68, -7.16, 0.56]]).T
  >>> members = np.array([[False, True, True, False, False]]).T
  >>> lira_gan_discriminator(Signals.from_phi(-l, members), target=0).round(6)
  array([0.43227])
  """
  if include_target:
    signals, target = _with_twin(signals, target)
  return lira_online(signals, target=target, ddof=ddof)


@attack(family="reference", reads="signals", of="generators")
@checked(ddof=count(0, 1))
def lira_gan_discriminator_fixed(
  signals: Signals, *, target: int, ddof: int = 0
) -> np.ndarray:
  """Score as `lira_gan_discriminator`, with one variance per side for few references.

  Args:
    signals: result of `Ensemble.signals`.
    target: index of the attacked model.
    ddof: 0 or 1, in the variance.

  Returns:
    Scores [N] in nats; NaN where no reference is out, or not audited.
  """
  return lira_online_fixed(signals, target=target, ddof=ddof)


@attack(family="reference", reads="signals", of="generators")
@checked(ddof=count(0, 1))
def lira_gan_discriminator_offline(
  signals: Signals, *, target: int, ddof: int = 0
) -> np.ndarray:
  """Score by how far the loss is below that of references without the record.

      z = (m_out - l) / s_out

  Args:
    signals: result of `Ensemble.signals`; only models without the record are read.
    target: index of the attacked model.
    ddof: 0 or 1, in the variance.

  Returns:
    Scores [N]; NaN where no reference is out, or not audited.
  """
  return lira_offline(signals, target=target, ddof=ddof)


@attack(
  family="reference",
  reads="signals",
  of="generators",
  note="inferred from the plots of the paper, which has no public script",
)
@checked(ddof=count(0, 1))
def lira_gan_reconstruction(
  signals: Signals, *, target: int, ddof: int = 0
) -> np.ndarray:
  """Score as `lira_gan_discriminator`, with the generator's loss of each record.

  The loss is the reconstruction loss of the record, as in `gan_leaks_white_box`.

  Args:
    signals: signals with reconstructions, see `with_reconstructions`.
    target: index of the attacked model.
    ddof: 0 or 1, in the variance.

  Returns:
    Scores [N] in nats; NaN where no reference is out, not audited or not reconstructed.

  Raises:
    Unavailable: if the signals have no reconstructions.

  Deviation: the paper shows the distributions of these losses; no script that uses them
    in an attack is public.
  """
  signals.check_model("target", target)
  losses = getattr(signals, "reconstruction", None)
  if losses is None:
    raise Unavailable(
      "these signals have no reconstructions; add them by with_reconstructions"
    )
  made = ~np.isnan(losses).any((0, 2))
  remade = Signals(
    phi=-losses[:, made],
    members=signals.members[:, made],
    audited=np.asarray(signals.audited)[made],
    design=signals.design,
  )
  scores = np.full(len(made), np.nan)
  scores[made] = lira_online(remade, target=target, ddof=ddof)
  return scores


def with_reconstructions(
  signals: GanSignals,
  ensemble: Ensemble,
  records: ArrayLike | None = None,
  **options,
) -> GanSignals:
  """Add reconstruction losses to signals, computed once for attacks on all targets.

  Args:
    signals: signals of this ensemble.
    ensemble: S trained GANs.
    records: int [R]; default all audited ones. Each needs a latent search in each of
      the models.
    **options: options of `reconstruction_losses`.

  Returns:
    The signals with the losses as `reconstruction`, NaN where not computed.

  Raises:
    ValueError: if the signals are of other models, or as for `reconstruction_losses`.
  """
  if not np.array_equal(signals.members, ensemble.members):
    raise ValueError(
      f"the {len(signals.members)} models of the signals are not the {len(ensemble)} "
      "of the ensemble: build them with ensemble.signals()"
    )
  rows = records_to_query(ensemble, 0, records)
  losses = np.full((*signals.members.shape, 1), np.nan)
  losses[:, rows, 0] = reconstruction_losses(ensemble, rows, **options)
  return dataclasses.replace(signals, reconstruction=losses)


def _with_twin(signals: Signals, target: int) -> tuple[Signals, int]:
  """Add a model with the same outputs as the target, and attack that one instead."""
  signals.check_model("target", target)
  phi = np.concatenate([signals.phi, signals.phi[[target]]])
  members = np.concatenate([signals.members, signals.members[[target]]])
  # The counts are not balanced, because the official code does not balance them.
  twin = _Everyone(
    phi=phi, members=members, audited=signals.audited, design="bernoulli"
  )
  return twin, len(signals.phi)


class _Everyone(Signals):
  """Signals whose models are references of each other, regardless of their subsets."""

  def references(self, target: int) -> np.ndarray:
    """Return all models but the target, bool [S, N]."""
    return np.repeat(
      np.arange(len(self.members)) != target, self.members.shape[1]
    ).reshape(self.members.shape)

  def excluded_models(self, target: int) -> list[int]:
    """Return the target alone."""
    return [target]

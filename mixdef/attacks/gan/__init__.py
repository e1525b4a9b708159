"""Membership-inference attacks on generative models; higher scores mean members.

Attacks on signals read the `GanSignals` of `ensemble.signals()`.
`adaptive_grid` runs the attacks that account for mixup. Every attack scores records,
except `lira_gan_mixed_query`, which scores pairs and is therefore not in the catalogue.
"""

from mixdef.attacks._catalogue import Catalogue
from mixdef.attacks.gan._sampling import generate, grid, interpolations, samples
from mixdef.attacks.gan.adaptive import (
  LAMBDAS,
  Cell,
  PairSignals,
  adaptive_grid,
  lira_gan_mixed_query,
  pair_signals,
)
from mixdef.attacks.gan.calibrated import gan_leaks_calibrated
from mixdef.attacks.gan.critic import logan, logan_black_box, tvd
from mixdef.attacks.gan.density import domias
from mixdef.attacks.gan.likelihood import (
  lira_gan_discriminator,
  lira_gan_discriminator_fixed,
  lira_gan_discriminator_offline,
  lira_gan_reconstruction,
  with_reconstructions,
)
from mixdef.attacks.gan.monte_carlo import monte_carlo, monte_carlo_set
from mixdef.attacks.gan.nearest import gan_leaks_full_black_box
from mixdef.attacks.gan.reconstruction import (
  Perceptual,
  gan_leaks_partial_black_box,
  gan_leaks_white_box,
  reconstruction_losses,
)
from mixdef.attacks.gan.signals import GanSignals, gan_signals, with_references
from mixdef.core import registry

ATTACKS = Catalogue(registry.GAN_ATTACKS, ("critic", "reference", "generator"))
"""The attacks on generative models."""

CATALOGUE = registry.GAN_ATTACKS
"""Every attack on generative models, by name."""

__all__ = [
  "ATTACKS",
  "CATALOGUE",
  "LAMBDAS",
  "Cell",
  "GanSignals",
  "PairSignals",
  "Perceptual",
  "adaptive_grid",
  "gan_signals",
  "generate",
  "grid",
  "interpolations",
  "lira_gan_mixed_query",
  "monte_carlo_set",
  "pair_signals",
  "reconstruction_losses",
  "samples",
  "tvd",
  "with_reconstructions",
  "with_auxiliarys",
  *sorted(CATALOGUE.registered),
]

"""Membership-inference attacks on generative models: larger scores mean member.

Attacks on signals read a `GanSignals`, made once for all targets by `gan_signals`;
`adaptive_grid` runs the attacks that know of mixup. Every score is of a record, but for
`lira_gan_mixed_query`, which scores pairs and so is not in the catalogue.
"""

from mixdef.attacks._catalogue import Attack, Catalogue
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

FAMILIES: dict[str, tuple[Attack, ...]] = {
  "critic": (logan, logan_black_box),
  "reference": (
    lira_gan_discriminator,
    lira_gan_discriminator_fixed,
    lira_gan_discriminator_offline,
    lira_gan_reconstruction,
  ),
  "generator": (
    gan_leaks_full_black_box,
    gan_leaks_partial_black_box,
    gan_leaks_white_box,
    gan_leaks_calibrated,
    monte_carlo,
    domias,
  ),
}
"""Attacks by what they see and do."""

NOTES = {
  "logan_black_box": "the attacker's own GAN, trained on samples of the target",
  "lira_gan_reconstruction": "implied by the paper's figures, no public script",
  "gan_leaks_calibrated": "calibrated by the mean of all models without the record",
}
"""What a report must say beside an attack's figures."""

ATTACKS = Catalogue(FAMILIES, NOTES, training=("logan_black_box",))
"""Attacks on generative models."""

CATALOGUE = ATTACKS.attacks
"""Every attack on generative models by its name."""

ON_MODELS, ON_SIGNALS = ATTACKS.on_models, ATTACKS.on_signals

__all__ = [
  "ATTACKS",
  "CATALOGUE",
  "FAMILIES",
  "LAMBDAS",
  "NOTES",
  "ON_MODELS",
  "ON_SIGNALS",
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
  "with_references",
  *sorted(CATALOGUE),
]

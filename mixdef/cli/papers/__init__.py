"""Settings of papers, one module per table: `--protocol=NAME` and `--study=NAME`."""

from mixdef.cli.papers import (
  adamixup,
  kaya,
  kaya_pairs,
  mixup_gan_celeba,
  mixup_gan_cifar10,
  weighted_smoothing,
)

CLASSIFIERS = {"adamixup": adamixup.SETTINGS}
"""Values of `--protocol` for jobs that train classifiers."""

GANS = {
  "mixup_gan_celeba": mixup_gan_celeba.SETTINGS,
  "mixup_gan_cifar10": mixup_gan_cifar10.SETTINGS,
}
"""Values of `--protocol` for the job `gan`."""

STUDIES = {
  "kaya": kaya.DEFENSES,
  "kaya_pairs": kaya_pairs.DEFENSES,
  "weighted_smoothing": weighted_smoothing.DEFENSES,
}
"""Values of `--study` for the job `sweep`: grids of defenses."""

"""Generative models: their learners and networks, attacks on them, their utility."""

from mixdef.generative.learners import mixup_gan, par_gan, wgan_gp
from mixdef.generative.networks import (
  Networks,
  dense_networks,
  image_networks,
  table_networks,
)

__all__ = [
  "Networks",
  "dense_networks",
  "image_networks",
  "mixup_gan",
  "par_gan",
  "table_networks",
  "wgan_gp",
]

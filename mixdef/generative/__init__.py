"""Generative models: their learners and networks, attacks on them, their utility."""

from mixdef.generative import learners, networks
from mixdef.generative.learners import (
  datalens,
  gs_wgan,
  medgan,
  mixup_gan,
  mlp_wgan_gp,
  par_gan,
  priv_gan,
  wgan_gp,
)
from mixdef.generative.networks import (
  Networks,
  dense_networks,
  image_networks,
  table_networks,
)

__all__ = [
  "Networks",
  "datalens",
  "dense_networks",
  "gs_wgan",
  "image_networks",
  "learners",
  "medgan",
  "mixup_gan",
  "mlp_wgan_gp",
  "networks",
  "par_gan",
  "priv_gan",
  "table_networks",
  "wgan_gp",
]

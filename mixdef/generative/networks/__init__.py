"""Generators and critics, in pairs that fit together.

A generator is called as `module.apply(variables, z, y, train=False, weight=None)` and
returns records [B,...] in [0,1]; a critic as `module.apply(variables, x, y)` and
returns one number a record [B]. Conditions y [B,K] are rows of the simplex, never
integers: they enter by a product, so a mixed label is a condition like any other.
"""

from mixdef.generative.networks.dense import dense_networks, table_networks
from mixdef.generative.networks.images import image_networks
from mixdef.generative.networks.medgan import MedganNetworks, medgan_networks
from mixdef.generative.networks.pair import Networks

__all__ = [
  "MedganNetworks",
  "Networks",
  "dense_networks",
  "image_networks",
  "medgan_networks",
  "table_networks",
]

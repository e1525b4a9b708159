"""Networks of the literature, as `flax.linen` modules created by lower-case factories.

Every network is called as `module.apply(variables, x, train=False, weight=None)` and
returns logits `[B,K]`. All networks have the fields `num_classes` and `dropout`;
networks for sequences, `transformer` and `gru`, also have `num_tokens`; networks for
images also have `spatial_dropout`, `lowering` and
`weight_standardization`; residual and densely connected networks also have `norm`. A
defense changes fields with `module.clone(dropout=0.5)`, which checks them again.

Learners take models of other libraries, too: `adapt` lists them.

Generators and critics come in matching pairs, as `Networks`. A generator is called as
`module.apply(variables, z, y, train=False, weight=None)` and returns records [B,...] in
[0,1]; a critic is called as `module.apply(variables, x, y)` and returns one number per
record [B]. Conditions y [B,K] are rows of the simplex, never integers. They enter by a
product, so a mixed label is a valid condition.
"""

from mixdef.core import registry
from mixdef.models.adapters import adapt
from mixdef.models.cnn import cnn
from mixdef.models.densenet import densenet
from mixdef.models.gan_dense import dense_networks, table_networks
from mixdef.models.gan_images import image_networks
from mixdef.models.gan_medgan import MedganNetworks, medgan_networks
from mixdef.models.gan_pair import Networks
from mixdef.models.gru import gru
from mixdef.models.mlp import mlp
from mixdef.models.partial import predictor
from mixdef.models.resnet import resnet, wide_resnet
from mixdef.models.transformer import transformer
from mixdef.models.weights import read_weights, save_weights

CATALOGUE = registry.MODELS

__all__ = [
  "CATALOGUE",
  "MedganNetworks",
  "Networks",
  "adapt",
  "cnn",
  "dense_networks",
  "densenet",
  "gru",
  "image_networks",
  "medgan_networks",
  "mlp",
  "predictor",
  "read_weights",
  "resnet",
  "save_weights",
  "table_networks",
  "transformer",
  "wide_resnet",
]

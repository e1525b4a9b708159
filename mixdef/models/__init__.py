"""Networks of the literature, as `flax.linen` modules made by lower-case factories.

Every network is called as `module.apply(variables, x, train=False, weight=None)` and
returns logits `[B,K]`. Fields of all: `num_classes`, `dropout`; of those for images
also `spatial_dropout`, `lowering` and `weight_standardization`; of the residual and
dense ones also `norm`. A defense changes them with `module.clone(dropout=0.5)`, which
checks them again.
"""

from mixdef.models.cnn import cnn
from mixdef.models.convolution import convolution
from mixdef.models.densenet import densenet
from mixdef.models.mlp import mlp
from mixdef.models.pooling import max_pool
from mixdef.models.resnet import resnet, wide_resnet

CATALOGUE = {
  "mlp": mlp,
  "cnn": cnn,
  "resnet": resnet,
  "wide_resnet": wide_resnet,
  "densenet": densenet,
}

__all__ = [
  "CATALOGUE",
  "cnn",
  "convolution",
  "densenet",
  "max_pool",
  "mlp",
  "resnet",
  "wide_resnet",
]

"""Defenses: one factory a defense, composed by `mixdef.chain`.

`CATALOGUE` maps canonical names to factories and is what `mixdef.parse` reads.
"""

from mixdef.defenses.adamixup import adamixup
from mixdef.defenses.architecture import dropout, spatial_dropout
from mixdef.defenses.averaging import ema
from mixdef.defenses.labels import label_smoothing
from mixdef.defenses.losses import relaxloss
from mixdef.defenses.mixing import mixup
from mixdef.defenses.privacy import dp_sgd
from mixdef.defenses.regularize import l1, weight_decay
from mixdef.defenses.release import confidence_masking
from mixdef.defenses.smoothing import weighted_smoothing
from mixdef.defenses.stopping import early_stopping
from mixdef.defenses.teachers import distillation

CATALOGUE = {
  factory.__name__: factory
  for factory in (
    adamixup,
    confidence_masking,
    distillation,
    dp_sgd,
    dropout,
    early_stopping,
    ema,
    l1,
    label_smoothing,
    mixup,
    relaxloss,
    spatial_dropout,
    weight_decay,
    weighted_smoothing,
  )
}
ALIASES = {"kd": "distillation", "l2": "weight_decay"}

__all__ = ["ALIASES", "CATALOGUE", *CATALOGUE]

"""Defenses: one factory a defense, composed by `mixdef.chain`.

`CATALOGUE` maps canonical names to factories and is what `mixdef.parse` reads.
"""

from mixdef.defenses.adamixup import adamixup
from mixdef.defenses.architecture import dropout, spatial_dropout
from mixdef.defenses.augment import cutout, gaussian_noise, random_crop, random_flip
from mixdef.defenses.averaging import ema
from mixdef.defenses.concave import ccl
from mixdef.defenses.labels import disturb_label, hamp_label, label_smoothing
from mixdef.defenses.losses import (
  confidence_penalty,
  focal_loss,
  hamp_entropy,
  relaxloss,
)
from mixdef.defenses.memguard import memguard
from mixdef.defenses.mixing import cutmix, mixup
from mixdef.defenses.privacy import dp_sgd
from mixdef.defenses.regularize import l1, weight_decay
from mixdef.defenses.release import confidence_masking, hamp_output
from mixdef.defenses.smoothing import weighted_smoothing
from mixdef.defenses.stopping import early_stopping
from mixdef.defenses.teachers import distillation

CATALOGUE = {
  factory.__name__: factory
  for factory in (
    adamixup,
    ccl,
    confidence_masking,
    confidence_penalty,
    cutmix,
    cutout,
    distillation,
    disturb_label,
    dp_sgd,
    dropout,
    early_stopping,
    ema,
    focal_loss,
    gaussian_noise,
    hamp_entropy,
    hamp_label,
    hamp_output,
    l1,
    label_smoothing,
    memguard,
    mixup,
    random_crop,
    random_flip,
    relaxloss,
    spatial_dropout,
    weight_decay,
    weighted_smoothing,
  )
}
ALIASES = {"ccel": "ccl", "kd": "distillation", "l2": "weight_decay"}

__all__ = ["ALIASES", "CATALOGUE", *CATALOGUE]

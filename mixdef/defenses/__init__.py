"""Defenses: one factory per defense, composed by `mixdef.chain`.

`mixdef.parse` reads the names of `CATALOGUE`, of `RECIPES` (published chains of
defenses) and of `PARTS` (parts of a chain that are no defenses: what is trained of a
pretrained model, and imitation). A new defense is a new file and an import line here.
"""

from mixdef.core import registry
from mixdef.defenses.adam_corrected import adam_corrected
from mixdef.defenses.adamixup import adamixup
from mixdef.defenses.adversarial import adversarial_regularization
from mixdef.defenses.architecture import (
  dropout,
  group_norm,
  spatial_dropout,
  weight_standardization,
)
from mixdef.defenses.augment import cutout, gaussian_noise, random_crop, random_flip
from mixdef.defenses.averaging import ema
from mixdef.defenses.concave import ccl
from mixdef.defenses.critic import relaxloss_gan
from mixdef.defenses.dmp import dmp
from mixdef.defenses.imitation import imitation
from mixdef.defenses.labels import disturb_label, hamp_label, label_smoothing
from mixdef.defenses.losses import (
  confidence_penalty,
  focal_loss,
  hamp_entropy,
  relaxloss,
)
from mixdef.defenses.memguard import memguard
from mixdef.defenses.mixing import cutmix, mixup
from mixdef.defenses.mmd import mmd
from mixdef.defenses.past import past
from mixdef.defenses.privacy import dp_sgd
from mixdef.defenses.recipes import de_et_al, hamp
from mixdef.defenses.regularize import l1, weight_decay
from mixdef.defenses.release import confidence_masking, hamp_output
from mixdef.defenses.selena import selena
from mixdef.defenses.smoothing import weighted_smoothing
from mixdef.defenses.stopping import early_stopping
from mixdef.defenses.teachers import distillation
from mixdef.defenses.transfer import freeze, head_only, lora, start_from

CATALOGUE, RECIPES, PARTS = registry.DEFENSES, registry.RECIPES, registry.PARTS

__all__ = [
  "CATALOGUE",
  "PARTS",
  "RECIPES",
  "adam_corrected",
  *CATALOGUE.registered,
  *PARTS.registered,
  *RECIPES.registered,
]

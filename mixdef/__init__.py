"""Know, and reduce, what a trained model leaks about its training records."""

from mixdef import attacks, auditing, data, defenses, models
from mixdef.attacks import Signals
from mixdef.attacks.query import signals
from mixdef.auditing import audit
from mixdef.chain import chain, from_optax
from mixdef.data import Dataset, load, splits, subsets
from mixdef.defense import Defense, Stage, defense
from mixdef.defenses import (
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
from mixdef.learner import Learner, classifier
from mixdef.parse import parse
from mixdef.training import Ensemble, Run, fit, fit_many

__all__ = [
  "Dataset",
  "Defense",
  "Ensemble",
  "Learner",
  "Run",
  "Signals",
  "Stage",
  "adamixup",
  "attacks",
  "audit",
  "auditing",
  "chain",
  "classifier",
  "confidence_masking",
  "data",
  "defense",
  "defenses",
  "distillation",
  "dp_sgd",
  "dropout",
  "early_stopping",
  "ema",
  "fit",
  "fit_many",
  "from_optax",
  "l1",
  "label_smoothing",
  "load",
  "mixup",
  "models",
  "parse",
  "relaxloss",
  "signals",
  "spatial_dropout",
  "splits",
  "subsets",
  "weight_decay",
  "weighted_smoothing",
]

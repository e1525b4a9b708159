"""The building blocks for writing a defense or a learner."""

from mixdef.core import registry
from mixdef.core.chaining import chain, from_optax
from mixdef.core.check import check_choice, check_count, check_flag, check_number
from mixdef.core.estimators import mean_value_and_grad
from mixdef.core.hooks import (
  Batch,
  Ctx,
  Data,
  Defense,
  Rows,
  Spec,
  Stage,
  defense,
  take,
  weighted_mean,
)
from mixdef.core.learner import Learner, TrainState
from mixdef.core.parsing import parse
from mixdef.core.randomness import batch_keys, fold_in_name, hash_rows, row_keys
from mixdef.core.registry import attack, dataset, learner, model, recipe, section
from mixdef.core.traits import Traits

__all__ = [
  "Batch",
  "Ctx",
  "Data",
  "Defense",
  "Learner",
  "Rows",
  "Spec",
  "Stage",
  "TrainState",
  "Traits",
  "attack",
  "batch_keys",
  "chain",
  "check_choice",
  "check_count",
  "check_flag",
  "check_number",
  "dataset",
  "defense",
  "fold_in_name",
  "from_optax",
  "hash_rows",
  "learner",
  "mean_value_and_grad",
  "model",
  "parse",
  "recipe",
  "registry",
  "row_keys",
  "section",
  "take",
  "weighted_mean",
]

"""The public names of mixdef, which the package imports at their first use."""

from mixdef import (
  attacks,
  auditing,
  core,
  data,
  defenses,
  learners,
  metrics,
  models,
  training,
  utility,
)
from mixdef.attacks import Signals, leave_one_out
from mixdef.auditing import audit, audit_release
from mixdef.core import (
  Defense,
  Learner,
  Stage,
  Traits,
  attack,
  chain,
  dataset,
  defense,
  from_optax,
  learner,
  model,
  parse,
  recipe,
  registry,
  section,
)
from mixdef.data import Dataset, disjoint_splits, load, subsets
from mixdef.learners import classifier
from mixdef.metrics import summarize
from mixdef.training import Ensemble, Run, fit, fit_many

__all__ = [
  "Dataset",
  "Defense",
  "Ensemble",
  "Learner",
  "Run",
  "Signals",
  "Stage",
  "Traits",
  "attack",
  "attacks",
  "audit",
  "audit_release",
  "auditing",
  "chain",
  "classifier",
  "core",
  "data",
  "dataset",
  "defense",
  "defenses",
  "disjoint_splits",
  "fit",
  "fit_many",
  "from_optax",
  "learner",
  "learners",
  "leave_one_out",
  "load",
  "metrics",
  "model",
  "models",
  "parse",
  "recipe",
  "registry",
  "section",
  "subsets",
  "summarize",
  "training",
  "utility",
]

"""What a run folder is agreed to hold, and how the models in it share the machine."""

import dataclasses
from importlib import metadata

import jax
import numpy as np
from absl import logging

from mixdef.data.seeds import KEY_IMPLEMENTATION
from mixdef.reading import Damaged, read_json, seal
from mixdef.training.prepare import Training
from mixdef.training.signature import digest, same_or_refuse, write_json
from mixdef.training.store import Store
from mixdef.training.strategy import decide

FIX = "Choose another out folder."


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The training, with the places that earlier models of the folder had in a batch."""

  training: Training
  strategy: str
  models_at_once: int


def agree(
  store: Store | None,
  training: Training,
  *,
  seed: int,
  strategy: str,
  memory_gb: float | None,
  num_models: int,
) -> Agreement:
  """Compare a training with what the folder holds, and decide how to go about it.

  The same call again decides the same, so that it goes on with the same chunks. Another
  strategy, memory or number of models may decide anew: models do not depend on it.

  Args:
    store: the folder, or None.
    training: what is asked for.
    seed: of everything random.
    strategy: as in `fit_many`.
    memory_gb: as in `fit_many`.
    num_models: that one process has to train.

  Raises:
    AnotherRun: if the folder is of another training, naming the field.
  """
  if store is None:
    return Agreement(training, *decide(training, strategy, memory_gb, num_models))
  signature = store.folder / "signature.json"
  same_or_refuse(signature, _signature(training, seed), fix=FIX)
  path = store.folder / "strategy.json"
  earlier = _earlier(path)
  asked = {"memory_gb": memory_gb, "models": num_models}
  if earlier:
    training = training.with_capacities(earlier["capacities"])
    if strategy in ("auto", earlier["strategy"]) and earlier["asked"] == asked:
      return Agreement(training, earlier["strategy"], earlier["models_at_once"])
  strategy, size = decide(training, strategy, memory_gb, num_models)
  decided = {
    "strategy": strategy,
    "models_at_once": size,
    "capacities": training.capacities,
    "asked": asked,
  }
  write_json(path, seal(decided))
  return Agreement(training, strategy, size)


def _earlier(path):
  """Read how earlier models shared the machine; None if it is not known."""
  try:
    return read_json(path, fix="it is decided anew", sealed=True)
  except FileNotFoundError:
    return None
  except Damaged as error:
    logging.warning("%s", error)
    return None


def _signature(training, seed):
  """Everything that shapes all models alike."""
  learner, plan = training.learner, training.plan._asdict()
  del plan["capacity"]  # padding
  return {
    "learner": learner.text,
    "records": digest(training.data.x, training.data.y, training.data.reference),
    "program": digest(np.frombuffer(training.program_text().encode(), np.uint8)),
    "hyper_parameters": sorted(training.values),
    "seed": seed,
    "random_keys": KEY_IMPLEMENTATION,
    "jax": jax.__version__,
    "mixdef": metadata.version("mixdef"),
    **plan,
  }

"""Check that a run folder matches this training, and fix the execution strategy."""

import dataclasses
import secrets
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import logging

from mixdef.core import files
from mixdef.core.randomness import KEY_IMPLEMENTATION
from mixdef.core.reading import Damaged, digest, read_json, seal
from mixdef.training.options import Options
from mixdef.training.prepare import Training
from mixdef.training.signature import equal_or_refuse, same_or_refuse
from mixdef.training.store import Store
from mixdef.training.strategy import decide, place

FIX = "Choose another out folder."
DRAWN = "drawn from the operating system"
_NOISE = "noise.json"

UNFINISHED = {"models": [int], "epoch": int, "made_from": dict, "each": dict}
"""Form of a checkpoint's notes; `each` holds one digest per model."""


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The training, with batch capacity at least as large as in earlier runs.

  `made_from` identifies everything that all models of the run folder depend on; it is
  empty without a folder. `noise` is the origin of the noise seed; None if the defense
  states no epsilon.
  """

  made_from: dict[str, Any]
  training: Training
  strategy: str
  models_at_once: int
  noise: str | None = None


def agree(
  store: Store | None,
  training: Training,
  options: Options,
  *,
  num_models: int,
) -> Agreement:
  """Check a training against the content of the folder, and choose how to run it.

  Repeating a call repeats the decision, so that training resumes with the same chunks.
  A call with another strategy, memory or number of models may decide differently,
  because models do not depend on the decision.

  Args:
    store: the run folder, or None.
    training: the requested training.
    options: the options of the training.
    num_models: number of models that one process has to train.

  Raises:
    AnotherRun: if the folder holds another training; the message names the field.
    Damaged: if the noise seed stored in the folder cannot be read.
  """
  strategy, memory_gb = options.strategy, options.memory_gb
  noise, secret = None, options.noise_seed
  if training.learner.guarantee:
    noise = DRAWN if secret is None else "given"
    secret = _drawn_before(store) if secret is None else secret
    training = training.with_noise(secret)
  if store is None:
    training, budget = place(training, options)
    how = decide(training, strategy, budget, num_models)
    return Agreement({}, training, *how, noise)
  made_from = _signature(training, options.seed)
  if noise:
    made_from["noise_seed"] = noise if options.noise_seed is None else secret
  _refuse_others(store, training, made_from)
  fresh = same_or_refuse(store.folder / "signature.json", made_from, fix=FIX)
  if fresh and not store.names("*/*"):
    store.write_metrics([])  # remove rows that a different run may have left
  kept = store.folder / _NOISE
  if noise == DRAWN and not files.exists(kept):
    files.write_json(kept, seal({"seed": secret}))
    if not files.on_bucket(kept):
      kept.chmod(0o600)  # the seed allows subtracting the noise
  path = store.folder / "strategy.json"
  earlier = None if fresh else _earlier(path)
  requested = {"memory_gb": memory_gb, "models": num_models}
  if earlier:
    training = training.with_capacities(earlier["capacities"])
  training, budget = place(training, options)
  if (
    earlier
    and strategy in ("auto", earlier["strategy"])
    and earlier.get("requested") == requested
    and not (training.streamed and earlier["strategy"] == "processes")
  ):
    how = earlier["strategy"], earlier["models_at_once"]
    return Agreement(made_from, training, *how, noise)
  strategy, size = decide(training, strategy, budget, num_models)
  decided = {
    "strategy": strategy,
    "models_at_once": size,
    "capacities": training.capacities,
    "requested": requested,
  }
  files.write_json(path, seal(decided))
  return Agreement(made_from, training, strategy, size, noise)


def _drawn_before(store):
  """Return the noise seed stored in the folder, or draw a new one."""
  if store is None or not files.exists(store.folder / _NOISE):
    return secrets.randbits(63)
  fix = "the noise seed of its models is lost: use another out folder"
  return read_json(store.folder / _NOISE, fix=fix, sealed=True)["seed"]


def made_from_alone(training: Training, model: int) -> dict[str, Any]:
  """Return digests of everything that distinguishes one model from the others."""
  rows = [training.rows[model]]
  if training.teachers:
    each = training.teachers.count // training.count
    rows.append(training.teachers.rows[model * each : (model + 1) * each])
  return {
    "members": digest(training.members[model]),
    "rows": digest(*rows),
    "key": digest(jax.random.key_data(training.keys[model])),
    "hyper_parameters": {n: digest(v[model]) for n, v in training.values.items()},
  }


def _refuse_others(store, training, made_from):
  """Reject entries of a different training, even if the signature agrees."""
  for name in [*store.names("models/*"), *store.names("signals-*/*")]:
    number = name.rpartition("/")[2]
    known = number.isdigit() and int(number) < training.count
    if known and (notes := store.notes(name, {"made_from": dict})):
      found = {**made_from, **made_from_alone(training, int(number))}
      equal_or_refuse(store.folder / name, notes["made_from"], found, fix=FIX)
  for name in store.names("unfinished/*"):
    if notes := store.notes(name, UNFINISHED):
      equal_or_refuse(store.folder / name, notes["made_from"], made_from, fix=FIX)


def _earlier(path):
  """Return the strategy decided by an earlier run, or None if it is unknown."""
  try:
    return read_json(path, fix="the strategy is chosen again", sealed=True)
  except FileNotFoundError:
    return None
  except Damaged as error:
    logging.warning("%s", error)
    return None


def _signature(training, seed):
  """Return everything that affects all models alike."""
  learner, plan = training.learner, training.plan._asdict()
  parts = training.data.y, training.data.auxiliary, *(training.persons or ())
  del plan["capacity"], plan["platform"]  # padding, and what `program` tells
  return {
    "learner": learner.text,
    "records": digest(training.records, *parts),
    "program": digest(np.frombuffer(training.program_text().encode(), np.uint8)),
    "hyper_parameters": sorted(training.values),
    "seed": seed,
    "random_keys": KEY_IMPLEMENTATION,
    "jax": jax.__version__,
    "mixdef": metadata.version("mixdef"),
    **plan,
  }

"""Compile a training for a TPU that is not there: `python tpu_programs.py <JSON>`.

Keys of the JSON: `topology`, such as "v5e:2x2"; `network`, "mlp" or "cnn"; `models`;
and `hidden`, the units of the hidden layers of the MLP. Writes what the program of the
steps looks like, or if `budget`, bytes, is given, how many models are trained at once.
"""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import optax
from jax.experimental import topologies
from lowering_cases import training_for

import mixdef
from mixdef.training.programs import programs
from mixdef.training.strategy import models_at_once

N, BATCH = 1024, 128


def learner_and_data(network, hidden):
  rng = np.random.default_rng(0)
  if network == "mlp":
    model, x = mixdef.models.mlp(*hidden), rng.random((N, 446), dtype=np.float32)
  else:
    model = mixdef.models.cnn()
    x = rng.integers(256, size=(N, 32, 32, 3)).astype(np.uint8)
  data = mixdef.Dataset.from_arrays(x, np.arange(N) % 10)
  return mixdef.classifier(model, optax.adam(1e-3)), data


def facts(training):
  """Describe the program of all chips, of which each has its share of the models."""
  train = programs(training.source, training.plan, "vmap").train
  compiled = train.lower(*training.abstract(training.count)).compile()
  text = compiled.as_text()
  return {
    "float64": bool(re.search(r"\bf64\[", text)),
    "custom_calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
    "communication": re.findall(r" (all-\w+|collective-\w+|\w*feed|send|recv)\(", text),
    "loops": len(re.findall(r" while\(", text)),
    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
  }


def compile_for(**asked):
  """Run this file in a process of its own, without XLA's flags for a CPU."""
  alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, __file__, json.dumps(asked)],
    env={**os.environ, **alone, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout)


def main(*, topology, network, models, hidden=(256, 128), budget=None):
  chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  training = training_for(
    chips[0].platform,
    *learner_and_data(network, hidden),
    models=models,
    batch_size=BATCH,
  )
  jax.local_devices = lambda: chips  # what programs are split over
  if budget:
    return models_at_once(training, "vmap", budget, models)
  return {"kind": chips[0].device_kind, "chips": len(chips), **facts(training)}


if __name__ == "__main__":
  print(json.dumps(main(**json.loads(sys.argv[1]))))

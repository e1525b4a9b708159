"""How many models are trained at once: what their compiled program needs."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from lowering_cases import training_for
from training_cases import LEARNER, records

from mixdef.training import strategy as choosing
from mixdef.training.programs import programs

FULL = (
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 74.58G of 15.75G"
)


@pytest.fixture
def training():
  return training_for("cpu", LEARNER, records(), models=16)


def fail_above(monkeypatch, models, text=FULL):
  """Let programs over more models fail while they are compiled, as on a TPU."""
  tried = []

  class Train:
    def __init__(self, train):
      self.train = train

    def lower(self, states, *others):
      tried.append(jax.tree.leaves(states)[0].shape[0])
      self.lowered = self.train.lower(states, *others)
      return self

    def compile(self):
      if tried[-1] > models:
        raise jax.errors.JaxRuntimeError(text)
      return self.lowered.compile()

  def fail(*which):
    program = programs(*which)
    return program._replace(train=Train(program.train))

  monkeypatch.setattr(choosing, "programs", fail)
  return tried


@pytest.mark.parametrize("models", [16, 5, 1])
def test_programs_that_cannot_be_compiled_lead_to_smaller_chunks(
  monkeypatch, training, models
):
  tried = fail_above(monkeypatch, models)
  size, needed = choosing.models_at_once(training, "vmap", 1e12, 16)
  assert tried == [size for size in (16, 8, 4, 2, 1) if 2 * size > models]
  assert size == tried[-1] <= models
  assert 0 < needed < 1e12


def test_models_that_never_compile_are_tried_alone(monkeypatch, training):
  fail_above(monkeypatch, 0)
  assert choosing.models_at_once(training, "vmap", 1e12, 16) == (1, math.inf)
  monkeypatch.setattr(choosing, "_seconds_per_model", lambda *_: 1e6)
  assert choosing.choose(training, 1e12, 16) == "scan"


def test_other_errors_of_the_compiler_are_not_about_memory(monkeypatch, training):
  fail_above(monkeypatch, 4, "INTERNAL: during context [Unknown]")
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    choosing.models_at_once(training, "vmap", 1e12, 16)


# Sizes a chunk of 3 models, then trains it: what is compiled in each of the two.
SIZE_AND_TRAIN = """
import json, logging, jax
import jax.numpy as jnp
from lowering_cases import training_for
from training_cases import LEARNER, records
from mixdef.training.programs import programs
from mixdef.training.strategy import program_bytes

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("jax").addHandler(handler)

def compiled():
  found = [text.split()[4] for text in messages if "Finished XLA compilation" in text]
  messages.clear()
  return [name for name in found if name in ("jit(side_by_side)", "jit(split)")]

training = training_for("cpu", LEARNER, records(), models=3).resident()
program = programs(training.source, training.plan, "vmap")
number = jnp.int32(0)
shared = training.data, None, number
states = program.init(training.keys, None, training.values, training.data)
dealt = program.deal(states, training.values, training.rows, *shared)
with jax.log_compiles():
  program_bytes(training, "vmap", 3)
  sizing = compiled()
  bounds = number, number, number + 1
  program.train(states, training.values, *dealt, training.data, *bounds)
  print(json.dumps([sizing, compiled()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "name"), [(1, "jit(side_by_side)"), (2, "jit(split)")]
)
def test_the_program_that_is_measured_is_the_one_that_runs(devices, name):
  flags = os.environ.get("XLA_FLAGS", "")
  force = f"{flags} --xla_force_host_platform_device_count={devices}"
  helpers = pathlib.Path(__file__).parents[1] / "helpers"
  paths = os.pathsep.join([str(helpers), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run(
    [sys.executable, "-c", SIZE_AND_TRAIN],
    env={**os.environ, "XLA_FLAGS": force, "PYTHONPATH": paths},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr
  assert json.loads(done.stdout) == [[name], []]

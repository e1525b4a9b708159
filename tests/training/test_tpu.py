"""Programs compiled for TPUs by libtpu, which needs no TPU."""

import importlib.util

import pytest
from tpu_programs import compile_for

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install 'mixdef[plan]'",
  ),
]
KINDS = {"v5e:2x2": "TPU v5 lite", "v6e:2x2": "TPU v6 lite"}


@pytest.mark.parametrize("topology", KINDS)
@pytest.mark.parametrize(
  ("network", "megabytes"),
  [("mlp", 1), pytest.param("cnn", 100, marks=pytest.mark.heavy)],
)
def test_models_run_side_by_side_on_four_chips(topology, network, megabytes):
  """Two models on each chip, in batches of 128."""
  found = compile_for(topology=topology, network=network, models=8)
  assert (found["kind"], found["chips"]) == (KINDS[topology], 4)
  assert not found["float64"]
  assert set(found["custom_calls"]) <= {"AssumeGatherIndicesInBound", "ConcatBitcast"}
  assert not found["communication"]
  assert found["loops"] == 1, "a loop over steps, and none over models or records"
  assert found["temporary_bytes"] < 1e6 * megabytes


def test_models_that_a_chip_cannot_hold_are_trained_in_chunks():
  """A model's state takes 62 MB, before and after a step; a chip has 16 GB."""
  found, needed = compile_for(
    topology="v5e:2x2", network="mlp", models=1024, hidden=[2048, 2048], budget=1e15
  )
  assert found == 256
  assert 256 * 3 * 6e7 < needed < 1e12

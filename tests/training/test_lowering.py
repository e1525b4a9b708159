"""Programs for a TPU and a GPU, lowered on any machine; none is compiled."""

import itertools
import re

import jax
import numpy as np
import pytest
from jax import export
from lowering_cases import DEFENSES, NETWORKS, called, training_for

# Images are mixed, not token ids; GANs have no outputs, which these defenses read.
REFUSED = {("transformer", "mixup")} | {
  (f"wgan_gp on {records}", defense)
  for records in ("pictures", "tables")
  for defense in ("selena", "memguard", "weighted_smoothing")
}
SOME = {  # every network, defense and strategy
  ("mlp", "memguard", "scan"),
  ("mlp", "selena", "vmap"),
  ("cnn", "dp_sgd", "vmap"),
  ("wide_resnet", "weighted_smoothing", "scan"),
  ("densenet", "none", "vmap"),
  ("transformer", "dp_sgd by microbatches", "scan"),
  ("wgan_gp on pictures", "mixup", "vmap"),
  ("wgan_gp on tables", "none", "scan"),
}
LATER = [pytest.mark.slow, pytest.mark.heavy]  # the table takes minutes
ALL = [
  case
  for case in itertools.product(NETWORKS, DEFENSES, ("vmap", "scan"))
  if case[:2] not in REFUSED
]


def lowered(function, *arguments):
  """Return the text of a program for both, which names no device."""
  both = export.export(function, platforms=["tpu", "cuda"])
  return both(*arguments).mlir_module()


def check(text):
  assert "stablehlo" in text
  assert not re.findall(r"[x<]f64", text), "pitfall 158: float64"
  # Callbacks into Python and kernels of one platform are custom calls.
  assert not set(re.findall(r"custom_call @(\w+)", text))


@pytest.mark.parametrize(
  ("network", "defense", "strategy"),
  [case if case in SOME else pytest.param(*case, marks=LATER) for case in ALL],
)
def test_programs_lower_for_tpu_and_gpu(network, defense, strategy):
  make, data = NETWORKS[network]
  training = training_for("tpu", make(DEFENSES[defense]), data)
  for function, *arguments in called(training, strategy).values():
    check(lowered(function, *arguments))


def test_what_an_accelerator_lacks_is_found():
  x = jax.ShapeDtypeStruct((3,), np.float32)
  with pytest.raises(NotImplementedError, match="callback"):
    lowered(jax.jit(lambda x: jax.pure_callback(np.sin, x, x)), x)
  with pytest.raises(ValueError, match="@mixdef_convolution"):
    lowered(jax.jit(jax.ffi.ffi_call("mixdef_convolution", x)), x)
  with jax.enable_x64(), pytest.raises(AssertionError, match="float64"):
    check(lowered(jax.jit(lambda x: x.astype(float)), x))


def test_convolutions_take_the_form_of_the_platform():
  """On a CPU, one model after another convolves; elsewhere all at once."""
  make, data = NETWORKS["cnn"]
  loops = {}
  for platform in ("cpu", "gpu", "tpu"):
    training = training_for(platform, make(None), data)
    function, *arguments = called(training, "vmap")["train"]
    loops[platform] = function.lower(*arguments).as_text().count("stablehlo.while")
  assert loops["gpu"] == loops["tpu"] < loops["cpu"]

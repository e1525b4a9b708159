import importlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdef import models
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks import cpu, cpu_table, dp, gpu, peers, recipe, timing, works
from mixdef.cli.flags import FLAGS
from mixdef.learners import classifier
from mixdef.models.layers import conv_layer

TINY = works.Work("mlp", "tiny", models.mlp(4), (6,), 2)


class OneConvolution(nn.Module):
  lowering: str = "auto"

  @nn.compact
  def __call__(self, x):
    x = conv_layer(self.lowering, bias=True, standardize=False)(4, 3)(x)
    return nn.Dense(10)(x.mean((1, 2)))


TIMES = {
  ("ours", "vmap"): [0.4, 0.5, 0.6],
  ("ours", "scan"): [0.2, 0.1, 0.4],
  ("default", "2 processes"): [0.4, 0.4, 0.4],
  ("default", "2 threads"): [0.9, 0.8, 0.7],
  ("tuned", "2 processes"): [0.01, 0.01],  # left out of the third round
  ("tuned", "2 threads"): [0.3, 0.1, 0.2],
  ("peak", "product"): [0.5, 0.25, 1.0],
}


def row(times=TIMES):
  return cpu_table.row_of(
    *("work", times), model_steps=10, batch=100, step_flops=4e6, peak_flops=1e9
  )


def test_a_ratio_is_of_medians_and_its_range_of_the_rounds():
  made = row()
  assert made["strategy"] == "scan"
  assert made["ours"] == [10.0, 20.0, 40.0]
  assert made["torch_default"] == [40.0, 40.0, 40.0]
  assert made["ratio_default"] == 2.0
  assert made["ratio_ranges"]["default"] == [1.0, 4.0]
  assert made["torch_tuned"] == [10.0, 20.0, 30.0]
  assert made["ratio_tuned"] == 1.0
  assert made["ratio_ranges"]["tuned"] == [0.5, 1.5]
  assert made["variants"]["ours"] == {
    "scan": [10.0, 20.0, 40.0],
    "vmap": [40.0, 50.0, 60.0],
  }
  assert list(made["variants"]) == ["ours", "default", "tuned"]


def test_the_share_of_the_peak_and_shadows_a_minute_follow_from_the_median():
  made = row()
  # 4e6 operations in 20 ms against 1e9 in the fastest 0.25 s.
  assert made["peak_fraction"] == 0.05
  assert made["peak_gflops"] == 4.0
  steps = cpu_table.RECORDS / 100 * cpu_table.EPOCHS
  assert made["shadows_per_minute"] == pytest.approx(60 / (0.02 * steps), abs=1e-3)


def test_a_recipe_that_was_not_timed_has_no_metrics():
  made = row({name: times for name, times in TIMES.items() if name[0] != "tuned"})
  assert made["torch_tuned"] is made["ratio_tuned"] is made["torch_bf16"] is None
  assert "tuned" not in made["ratio_ranges"]


def test_cases_take_turns_and_the_slow_leave_their_group(monkeypatch):
  clock, calls = [0.0], []
  monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
  seconds = {
    ("a", "fast"): 1.0,
    ("a", "slow"): 3.0,
    ("a", "hopeless"): 5.0,
    ("b", "alone"): 9.0,
  }

  def case(name):
    def run():
      calls.append(name[1])
      clock[0] += seconds[name]

    return run

  cases = {name: case(name) for name in seconds}
  found = timing.interleave(cases, 4, group=lambda name: name[0])
  assert found["a", "fast"] == [1.0] * 4
  assert found["a", "slow"] == [3.0] * 2
  assert found["a", "hopeless"] == [5.0]
  assert found["b", "alone"] == [9.0] * 4
  assert calls[4:8] == ["fast", "slow", "hopeless", "alone"]
  assert calls[8:] == ["fast", "slow", "alone"] + ["fast", "alone"] * 2


@pytest.mark.slow
def test_without_torch_ours_is_timed_and_one_line_says_how_to_get_it(
  monkeypatch, capsys
):
  monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(cpu, "STRATEGIES", ("vmap", "loop"))
  monkeypatch.setattr(cpu, "_SIDE", 8)
  result = cpu.compare((TINY,), batch=4, repeats=2)
  (made,) = json.loads(json.dumps(result["rows"]))
  assert made["ours"][0] > 0
  assert made["torch_default"] is made["ratio_tuned"] is None
  assert set(made["variants"]) == {"ours"}
  assert set(made["variants"]["ours"]) == {"vmap", "loop"}
  cpu.show(result)
  last = capsys.readouterr().out.splitlines()[-1]
  assert "pip install 'mixdef[bench]'" in last


@pytest.mark.slow
def test_steps_go_on_from_the_last_and_stop_where_they_are_told():
  data = works.random_data(12, (6,), 10)
  learner = classifier(models.mlp(4), optax.sgd(0.1))
  training = works.train_everyone(learner, data, models=2, batch=4, epochs=1)
  one, all_three = works.steps_of(training, "vmap", 1), works.steps_of(training, "vmap")
  first, sums = one()
  second, _ = one()
  _, more = all_three()
  weights = [np.asarray(jax.tree.leaves(s.params)[-1]) for s in (first, second)]
  assert not np.array_equal(*weights)
  assert sums["loss"].shape == (2,)
  assert (more["loss"] > 1.5 * sums["loss"]).all()


@pytest.mark.slow
def test_operations_are_those_of_the_products():
  flops = works.step_flops(models.mlp(64, num_classes=10), (100,), 32)
  # Forward, both gradients of the second layer, the kernel's alone of the first.
  products = 2 * 32 * (2 * 100 * 64 + 3 * 64 * 10)
  assert products < flops < 1.5 * products


def test_the_gpu_suite_refuses_a_cpu_in_one_line():
  with pytest.raises(ValueError, match="--suite=gpu needs a GPU") as refusal:
    BenchSettings(suite="gpu")
  assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_the_gpu_table_on_a_tiny_network(monkeypatch, capsys):
  full, tried = gpu.steps_of, []

  def steps_of(training, strategy, steps):
    tried.append((training.learner.text.count("im2col"), training.count))
    if "im2col" in training.learner.text:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    return full(training, strategy, steps)

  monkeypatch.setattr(gpu, "steps_of", steps_of)
  ways = {way: gpu.WAYS[way] for way in ("vmap, native", "vmap, im2col")}
  monkeypatch.setattr(gpu, "WAYS", ways)
  monkeypatch.setattr(gpu, "PRECISIONS", {"float32": lambda network: network})
  work = works.Work("convolution", "one convolution", OneConvolution(), (4, 4, 3), 2)
  rows = gpu.models_at_once((work,), (1, 2), batch=4, repeats=2)
  assert [(r["models"], r["way"]) for r in rows] == [
    (n, way) for n in (1, 2) for way in ways
  ]
  for made in rows:
    assert (made["ms"] is None) == ("im2col" in made["way"])
    assert made["peak_fraction"] is None  # nobody states a CPU's
    if made["ms"]:
      rate = made["models"] * 1e3 / made["ms"][1]
      assert made["steps_per_second"] == pytest.approx(rate, rel=0.01)
  assert [count for im2col, count in tried if im2col] == [1], "2 cannot fit either"

  trained = recipe.train_shadows(
    BenchSettings(
      model="mlp(16)", epochs=6, num_shadows=2, strategy="loop", learning_rate=0.05
    ),
    recipe.synthetic_pictures(128),
    batch=16,
  )
  assert trained["train_accuracy"] > 0.5
  assert trained["extrapolated"]["num_shadows"] == 256
  assert trained["extrapolated"]["seconds"] == pytest.approx(
    128 * trained["seconds"], abs=1
  )
  about = {"device": "a chip", "batch_size": 4, "epochs": 20, "records": 25_000}
  gpu.show({"about": about, "rows": rows, "recipe": trained})
  told = capsys.readouterr().out
  assert told.count("does not fit into memory") == 2
  assert "256 shadows, extrapolated: " in told


def test_throughput_of_a_gpu_row():
  made = gpu.throughput(
    [0.2, 0.1, 0.4], 8, 10, flops=1e9, peak=1e12, batch=gpu.RECORDS // 10
  )
  assert made["ms"] == [10.0, 20.0, 40.0]
  assert made["steps_per_second"] == 400.0
  assert made["peak_fraction"] == 0.4
  assert made["shadows_per_minute"] == 60 * 400 / (10 * gpu.EPOCHS)
  assert gpu.peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
  assert gpu.peak_flops("NVIDIA H100 NVL", "float32") is None


@pytest.mark.slow
def test_bfloat16_is_computed_in_and_parameters_stay_float32():
  network = models.mlp(8)
  x = jax.random.normal(jax.random.key(0), (4, 6))
  lowered = recipe.InBfloat16(network)
  variables = lowered.init(jax.random.key(1), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  exact = network.apply({"params": variables["params"]["network"]}, x)
  found = lowered.apply(variables, x)
  assert found.dtype == jnp.float32
  assert 0 < abs(found - exact).max() < 0.05


@pytest.mark.slow
def test_every_dp_column_is_there_and_memory_is_told(monkeypatch, capsys):
  monkeypatch.setattr(dp, "WORKS", {"tiny": (models.mlp(4), (6,))})
  monkeypatch.setattr(dp, "_BATCHES", (4, 8))
  result = dp.run(BenchSettings(suite="dp", repeats=1, batch_size=4))
  dp.show(result)
  _, head, line, memory = capsys.readouterr().out.splitlines()
  for column in ("plain", "ghost clipping and noise", "microbatches", "optax"):
    assert column in head
  assert line.startswith("tiny")
  assert "MB at batch 4" in memory
  assert "MB at batch 8" in memory


@pytest.mark.parametrize("suite", FLAGS["suite"].choices)
def test_every_suite_is_a_module_that_runs_and_shows(suite):
  module = importlib.import_module(f"mixdef.cli.benchmarks.{suite}")
  assert callable(module.run)
  assert callable(module.show)


@pytest.mark.slow
@pytest.mark.parametrize("work", [works.MLP, works.CNN, works.WIDE_RESNET])
def test_torch_trains_networks_of_the_same_layers(work):
  torch = pytest.importorskip("torch")
  from mixdef.cli.benchmarks import torch_networks

  ours = jax.eval_shape(work.model.init, jax.random.key(0), jnp.zeros((1, *work.shape)))
  theirs = torch_networks.NETWORKS[work.name]().parameters()
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(ours))
  assert sizes == sorted(leaf.numel() for leaf in theirs)
  x, y = torch.zeros(2, *peers.channels_first(work.shape)), torch.zeros(2).long()
  for name in peers.RECIPES:
    torch_networks.trainer(work.name, name, x, y, batch=2)()


@pytest.mark.slow
def test_torch_processes_answer_and_end(monkeypatch):
  pytest.importorskip("torch")
  first, *_ = peers._cores()
  monkeypatch.setattr(peers, "_cores", lambda: [first])
  work = works.MLP._replace(steps=1)
  with peers.torch_cases(work, models=3, batch=4) as cases:
    assert {recipe for recipe, _ in cases} == set(peers.RECIPES)
    (process,) = next(iter(cases.values())).args[0]
    for run in cases.values():
      run()
    process.kill()
    with pytest.raises(RuntimeError, match="ended with status -9"):
      next(iter(cases.values()))()
  assert process.returncode is not None

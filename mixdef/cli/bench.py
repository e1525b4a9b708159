"""Time training and attacks of mixdef, as ratios of one interleaved run.

  mixdef bench --suite=cpu       eight shadow models at once, compared with PyTorch
  mixdef bench --suite=gpu       up to 64 models at once, and a recipe
  mixdef bench --suite=dp        DP-SGD compared with plain steps and with optax
  mixdef bench --suite=attacks   model queries, attacks, intervals
  mixdef bench --suite=defenses  training and queries with every defense

All cases are compiled and then timed in turn, round after round, so that changes in
the speed of the machine affect all of them equally. result.json has `rows`; the modules
of mixdef.cli.benchmarks describe them. PyTorch is timed if it is installed (pip install
'mixdef[bench]').
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib

from etils import epy

from mixdef.cli import job
from mixdef.cli.settings import JobSettings, about

with epy.lazy_imports():
  import jax

  import mixdef
  from mixdef.cli import texts


@dataclasses.dataclass(frozen=True)
class BenchSettings(JobSettings):
  """The suite to time; the fields from `dataset` on are only used by `--suite=gpu`."""

  suite: str = "cpu"
  repeats: int = 7
  batch_size: int = 128
  dataset: str = "synthetic"
  data_dir: str = ""
  model: str = "wide_resnet(16, 4)"
  defense: str = "none"
  learning_rate: float = 0.2
  epochs: int = 20
  num_shadows: int = 64
  strategy: str = "auto"

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    with about("model", self.model):
      texts.networks(self.model, num_classes=2)
    with about("defense", self.defense):
      mixdef.parse(self.defense)
    if self.suite == "gpu" and jax.default_backend() != "gpu":
      raise ValueError(
        f"--suite=gpu needs a GPU: JAX sees only {jax.devices()[0].device_kind}; on a "
        "machine with one, pip install 'mixdef[cuda12]'"
      )

  @property
  def subject(self) -> str:
    """The suite."""
    return self.suite


def run(settings: BenchSettings, folder: pathlib.Path) -> dict:
  """Time a suite; returns the content of result.json."""
  del folder
  return {"suite": settings.suite, **_suite(settings.suite).run(settings)}


def show(result: dict) -> None:
  """Print the rows of the suite."""
  _suite(result["suite"]).show(result)


def _suite(name):
  return importlib.import_module(f"mixdef.cli.benchmarks.{name}")


JOB = job.Job("bench", __doc__, BenchSettings, run, show)

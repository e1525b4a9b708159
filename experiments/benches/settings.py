"""What bench.py is asked for on the command line."""

from __future__ import annotations

import dataclasses

from etils import epy
from settings import JobSettings, about

with epy.lazy_imports():
  import jax
  import texts

  import mixdef


@dataclasses.dataclass(frozen=True)
class BenchSettings(JobSettings):
  """What to time.

  The fields from `dataset` on belong to the training recipe of `--suite=gpu`.
  """

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
    """Refuse what cannot be used before anything is written."""
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
  def label(self) -> str:
    """The suite."""
    return self.suite

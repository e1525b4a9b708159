"""What bench.py is asked for on the command line."""

import dataclasses

import jax
from settings import JobSettings

SUITES = ("cpu", "gpu", "dp", "attacks", "defenses")


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
    if self.suite not in SUITES:
      raise ValueError(f"--suite={self.suite} is none of {', '.join(SUITES)}")
    for name in ("repeats", "batch_size", "epochs", "num_shadows"):
      if getattr(self, name) < 1:
        raise ValueError(f"--{name}={getattr(self, name)} must be at least 1")
    if self.suite == "gpu" and jax.default_backend() != "gpu":
      raise ValueError(
        f"--suite=gpu needs a GPU: JAX sees only {jax.devices()[0].device_kind}; on a "
        "machine with one, pip install 'mixdef[cuda12]'"
      )

  @property
  def label(self) -> str:
    """The suite."""
    return self.suite

"""Time what mixdef is fast at, as ratios of one interleaved run.

  python experiments/bench.py --suite=cpu      eight shadows at once, beside PyTorch
  python experiments/bench.py --suite=gpu      up to 64 models at once, and a recipe
  python experiments/bench.py --suite=dp       DP-SGD beside the plain step and optax
  python experiments/bench.py --suite=attacks  asking models, attacking them, intervals
  python experiments/bench.py --suite=defenses training and asking with every defense

Every case is compiled, then all are timed in turn, round after round, so a drift of
the machine hits them alike. result.json has `rows`; the suites' modules in benches/ say
what their rows hold. PyTorch is timed where it is installed (pip install
'mixdef[bench]').
"""

import importlib
import pathlib

import job
from benches.settings import BenchSettings


def run(settings: BenchSettings, folder: pathlib.Path) -> dict:
  """Time a suite; returns what result.json holds."""
  del folder
  return {"suite": settings.suite, **_suite(settings.suite).run(settings)}


def show(result: dict) -> None:
  """Print the rows as the suite does."""
  _suite(result["suite"]).show(result)


def _suite(name):
  return importlib.import_module(f"benches.{name}")


if __name__ == "__main__":
  job.main("bench", BenchSettings, run, show)

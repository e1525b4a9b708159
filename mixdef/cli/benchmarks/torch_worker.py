"""Train PyTorch models on the given cores, one epoch of each per line of input.

  python -m mixdef.cli.benchmarks.torch_worker '{"work": "mlp", "cores": [0], ...}'

A line of standard input names the recipe, and a line of output reports the end of the
epoch. The models of a recipe are created when it is first named.
"""

import json
import os
import sys


def main() -> None:
  """Train epochs until standard input ends."""
  task = json.loads(sys.argv[1])
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, task["cores"])
  # After pinning, because PyTorch sizes its thread pools by the available cores.
  import torch  # pyrefly: ignore[missing-import]

  from mixdef.cli.benchmarks.torch_networks import CLASSES, trainer

  torch.set_num_threads(len(task["cores"]))
  torch.manual_seed(0)
  size, batch = task["steps"] * task["batch"], task["batch"]
  x, y = torch.randn(size, *task["shape"]), torch.randint(CLASSES, (size,))
  recipes = {}
  for line in sys.stdin:
    recipe = line.strip()
    if recipe not in recipes:
      recipes[recipe] = [
        trainer(task["work"], recipe, x, y, batch) for _ in range(task["models"])
      ]
    for epoch in recipes[recipe]:
      epoch()
    print("done", flush=True)


if __name__ == "__main__":
  main()

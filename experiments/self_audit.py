"""Measure how close the canaries of one run come to its epsilon, and what they cost.

  python experiments/self_audit.py --out=runs/self_audit

Trains small networks on digits with `dp_sgd(canaries=m)`: one run for each of epsilon
1, 4 and 8 with 1,000 and with 10,000 canaries, whose bounds are compared with those
expected of Gaussian scores; 30 runs of a true claim, whose test and moments must not
fail; and three seeds with and without canaries, for the accuracy. A call with the same
--out continues where another stopped.

Cost and result: see docs/results/self_audit.md.
"""

import json
import pathlib

import numpy as np
import optax
from absl import app, flags, logging

import mixdef
from mixdef import metrics
from mixdef.auditing import self_audit
from mixdef.defenses import accounting

_OUT = flags.DEFINE_string("out", "runs/self_audit", "folder of the results")
_SEEDS = flags.DEFINE_integer("seeds", 30, "runs of a true claim")

DELTA = 1e-5
EPSILONS = (1.0, 4.0, 8.0)
EXPECTED = {  # of epsilon, by Gaussian scores: order statistics, Steinke with r = m/10
  1_000: ((0.50, 0.85, 0.90), (0.19, 0.39, 0.36)),
  10_000: ((0.79, 0.96, 0.97), (0.40, 0.46, 0.48)),
}
TIGHT = {"epochs": 100, "batch_size": 287}  # q = 0.2, 500 steps
SHORT = {"epochs": 20, "batch_size": 144}  # q = 0.1, 200 steps


def train(name, widths, canaries, epsilons, models_each, how, rate=0.5):
  """Train models of each epsilon with the same number of canaries."""
  data = mixdef.load("digits").hold_out(0.2)
  steps = -(-len(data) // how["batch_size"])
  training = {
    "sampling_probability": how["batch_size"] / len(data),
    "steps": steps * how["epochs"],
  }
  noises = [
    accounting.noise_multiplier(epsilon, delta=DELTA, **training)
    for epsilon in epsilons
    for _ in range(models_each)
  ]

  def learner(noise):
    defense = mixdef.defenses.dp_sgd(noise, canaries=canaries)
    return mixdef.classifier(mixdef.models.mlp(*widths), optax.sgd(rate), defense)

  return mixdef.fit_many(
    learner,
    data,
    np.ones((len(noises), len(data)), bool),
    **how,
    num_members=len(data),
    sweep={"noise": np.array(noises, np.float32)},
    strategy="vmap",
    out=pathlib.Path(_OUT.value) / name,
    progress=True,
  )


def tightness(canaries):
  """Return the bounds of one run for each epsilon, with the expected ratios."""
  name = f"tight_{canaries}"
  runs = train(name, (300, 300), canaries, EPSILONS, 1, TIGHT)
  rows = []
  for place, epsilon in enumerate(EPSILONS):
    found = self_audit(runs[place])
    kept = runs[place].state.defense["dp_sgd"]["canaries"]
    scores = metrics.log_likelihood_ratio(
      kept.observed,
      noise_multiplier=metrics.noise_scales(kept.observed, kept.leaves),
      sampling_probability=TIGHT["batch_size"] / len(runs.data),
    )
    independent, few = bounds(scores, np.asarray(kept.members), found.claimed)
    rows.append(
      {
        "epsilon": epsilon,
        "order_statistics": independent,
        "one_run": few,
        "expected": [EXPECTED[canaries][bound][place] for bound in (0, 1)],
        **found.to_json(),
      }
    )
  return rows


def simulated(canaries):
  """Return mean and deviation of the bounds of the same claims without a training."""
  probability, rows = TIGHT["batch_size"] / 1437, []
  training = {"sampling_probability": probability, "steps": 500}
  for epsilon in EPSILONS:
    noise = accounting.noise_multiplier(epsilon, delta=DELTA, **training)
    found = []
    for seed in range(10):
      rng = np.random.default_rng(seed)
      members = rng.random(canaries) < 0.5
      seen = noise * rng.standard_normal((500, canaries), np.float32)
      seen += (rng.random(seen.shape, np.float32) < probability) & members
      scores = metrics.log_likelihood_ratio(
        seen, noise_multiplier=noise, sampling_probability=probability
      )
      found.append(bounds(scores, members, epsilon))
    rows.append({"mean": np.mean(found, 0).tolist(), "std": np.std(found, 0).tolist()})
  return rows


def bounds(scores, members, epsilon):
  """Return order statistics of all canaries and Steinke's bound of m/10, of epsilon."""
  some, half = len(scores) // 20, len(scores) // 2
  return (
    metrics.epsilon_order_statistics(
      scores, members, guesses_in=half, guesses_out=half, delta=DELTA
    )
    / epsilon,
    metrics.epsilon_one_run(
      scores, members, guesses_in=some, guesses_out=some, delta=DELTA
    )
    / epsilon,
  )


def claims():
  """Return the audits of runs of a true claim."""
  runs = train("claims", (150,), 1_000, (4.0,), _SEEDS.value, SHORT)
  return [self_audit(runs[place]).to_json() for place in range(_SEEDS.value)]


def accuracy(canaries):
  """Return the test accuracy of three models at epsilon 1 and 8."""
  runs = train(
    f"cost_{canaries}", (300, 300), canaries, (1.0, 8.0), 3, SHORT, rate=0.25
  )
  right = [runs[place].accuracy(runs.data.test) for place in range(6)]
  return {"canaries": canaries, "1": right[:3], "8": right[3:]}


def main(_):
  """Run what is missing, and write result.json."""
  logging.set_verbosity(logging.INFO)
  path = pathlib.Path(_OUT.value) / "result.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  found = json.loads(path.read_text()) if path.exists() else {}
  parts = {
    **{f"tight_{m}": lambda m=m: tightness(m) for m in EXPECTED},
    **{f"simulated_{m}": lambda m=m: simulated(m) for m in EXPECTED},
    "claims": claims,
    **{f"cost_{m}": lambda m=m: accuracy(m) for m in (0, 1_000, 5_000)},
  }
  for name, measure in parts.items():
    if name not in found:
      found[name] = measure()
      path.write_text(json.dumps(found, indent=1))
      logging.info("%s: %s", name, found[name])


if __name__ == "__main__":
  app.run(main)

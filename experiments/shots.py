"""Fine-tune a pretrained network with few records a class: accuracy and leakage.

  python experiments/shots.py --out=runs/shots

A small convolutional network is pretrained on classes 0 to 4 of Fashion-MNIST and
fine-tuned on 5, 20 or 100 records of each of the classes 5 to 9, as a whole or the head
alone, without a defense and with DP-SGD. A cell has three pools of records. A call with
the same --out continues where another stopped.

Cost and result: 46 minutes on two shared cores. Undefended, online LiRA falls from AUC
0.95 (5 shots, all layers) to 0.54 (100 shots, head); DP-SGD at epsilon 8 holds it below
0.54, at chance accuracy with 5 shots and 68% with 100. See docs/results/shots.md.
"""

import functools
import itertools
import json
import pathlib

import flax.linen as nn
import numpy as np
import optax
from absl import app, flags, logging

import mixdef
from mixdef import attacks, metrics
from mixdef.kernels.convolution import linen_conv

_OUT = flags.DEFINE_string("out", "runs/shots", "folder of the results")
_POOLS = flags.DEFINE_integer("pools", 3, "number of pools of records per cell")

HEAD = "head/.*"
PARTS = {"whole": "", "head": f"|head_only({HEAD!r})"}
MODELS = {"whole": 32, "head": 64}
RATES = {"whole": 1e-3, "head": 1e-2}  # of Adam
DEFENSES = ("none", "epsilon=8", "epsilon=1")
EPOCHS = {5: 40, 20: 40, 100: 15}  # by shots
BATCH = {5: 25, 20: 50, 100: 100}
DELTA = 1e-4
HELD_OUT = 100  # records of each class
ATTACKS = {
  "lira_online": attacks.lira_online,
  "lira_offline": attacks.lira_offline,
  "rmia": attacks.rmia,
}


class Net(nn.Module):
  """Two convolutions with stride 2, a dense layer and a head."""

  num_classes: int = 5

  @nn.compact
  def __call__(self, x):
    """Return logits [B,K] of images [B,H,W,C]."""
    conv = functools.partial(linen_conv, "auto")
    for channels in (16, 32):
      x = nn.Conv(channels, (3, 3), strides=2, conv_general_dilated_cls=conv)(x)
      x = nn.relu(x)
    x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes, name="head")(x)


def of_classes(data, first):
  """Return the records of five classes, labelled 0 to 4."""
  chosen = (data.y >= first) & (data.y < first + 5)
  return mixdef.Dataset.from_arrays(
    data.x[chosen], data.y[chosen] - first, num_classes=5, name=data.name
  )


def of_each_class(data, count, seed):
  """Draw `count` records of every class, sorted by class."""
  order = np.random.default_rng(seed).permutation(len(data))
  rows = [order[data.y[order] == label][:count] for label in range(5)]
  return data.select(np.concatenate(rows))


def halves_of_each_class(models, shots, seed):
  """Draw `shots` of the 2 * shots records of every class for every model."""
  draws = np.random.default_rng(seed).random((models, 5, 2 * shots))
  return (draws.argsort(2) < shots).reshape(models, -1)


def pretrained(data, out):
  """Return the path of weights trained on the classes 0 to 4."""
  path = out / "pretrained.npz"
  if not path.exists():
    learner = mixdef.classifier(Net(), optax.adam(1e-3))
    run = mixdef.fit(learner, of_classes(data, 0), epochs=3)
    logging.info("pretrained: %.3f", run.accuracy(of_classes(data.test, 0)))
    mixdef.models.save_weights(path, run.state.params)
  return path


def learner_of(weights, part, defense):
  """Return the learner of a cell."""
  chain = f"start_from({str(weights)!r}, fresh={HEAD!r}){PARTS[part]}"
  if defense != "none":
    chain += f"|dp_sgd({defense}, delta={DELTA})"
  return mixdef.classifier(Net(), optax.adam(RATES[part]), mixdef.chain(chain))


def cell(data, learner, shots, models, seed):
  """Train and attack the shadow models of one pool."""
  pool = of_each_class(of_classes(data, 5), 2 * shots, seed)
  unseen = of_each_class(of_classes(data.test, 5), HELD_OUT, seed)
  shadows = mixdef.fit_many(
    learner,
    pool,
    halves_of_each_class(models, shots, seed),
    epochs=EPOCHS[shots],
    batch_size=BATCH[shots],
    num_members=5 * shots,
    strategy="scan",
    seed=seed,
  )
  signals = shadows.signals(population=unseen)
  correct, members = signals.correct[..., 0], signals.members
  return {
    "models": models,
    "seconds": shadows.seconds,
    "train": float(correct[members].mean()),
    "test": float(signals.population.correct.mean()),
    "members": members.tolist(),
    "scores": {
      name: mixdef.leave_one_out(attack, signals).tolist()
      for name, attack in ATTACKS.items()
    },
  }


def row(cells):
  """Return one row of the table, from the cells of several pools."""
  members = np.concatenate([np.array(one["members"]) for one in cells], 1)
  test = [one["test"] for one in cells]
  words = [
    str(cells[0]["models"]),
    f"{np.mean([one['train'] for one in cells]):.1%}",
    f"{np.mean(test):.1%} [{min(test):.1%}, {max(test):.1%}]",
  ]
  for name in ATTACKS:
    scores = np.concatenate([np.array(one["scores"][name]) for one in cells], 1)
    found = metrics.summarize(scores, members, fprs=[0.01])
    others = metrics.summarize(scores, np.roll(members, 1, 0), fprs=[0.01]).auc
    (low, high), tpr = found.auc_ci, found.tpr["0.01"]
    words += [f"{found.auc:.3f} [{low:.3f}, {high:.3f}]"]
    words += [f"{tpr['value']:.1%} [{tpr['ci'][0]:.1%}, {tpr['ci'][1]:.1%}]"]
    logging.info("%s: AUC %.3f for the members of another model", name, others)
  return words


def main(argv):
  """Run every cell that has no result yet, and print the table."""
  del argv
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  data = mixdef.load("fashion_mnist")
  weights = pretrained(data, out)
  for defense, shots, part in itertools.product(DEFENSES, EPOCHS, PARTS):
    learner, cells = learner_of(weights, part, defense), []
    for seed in range(_POOLS.value):
      path = out / f"{shots}-{part}-{defense}-{seed}.json"
      if not path.exists():
        found = cell(data, learner, shots, MODELS[part], seed)
        path.write_text(json.dumps(found))
      cells.append(json.loads(path.read_text()))
    print(f"| {shots} | {part} | {defense} |", " | ".join(row(cells)), "|", flush=True)


if __name__ == "__main__":
  app.run(main)

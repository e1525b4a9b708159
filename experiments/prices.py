"""Compare what each price of a release audit finds, and what it costs.

  python experiments/prices.py --out=runs/prices --dataset=location30

Several models are released, each trained on a random half of one pool of records. A
quarter of the other half is the population of the network, the rest is the hold-out.
The reference models are trained once, on random halves of the pool, and serve all
releases; 20 of them are the ordinary models of `imitate`. A call with the same --out
continues where another stopped.

Cost and result: 10 to 50 minutes a data set on two shared cores. Ranking by losses in
training is 97% and 98% precise on two tables, 55% on Fashion-MNIST and 8% on CIFAR-10;
16 references with BaVarIA find about as much as imitators or more, at half the cost,
but on CIFAR-10; a cascade beats LiRA with as many models on Location-30 only. See
docs/results/release.md.
"""

import collections
import functools
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np
import optax
from absl import app, flags
from scipy import stats

import mixdef
from mixdef import attacks
from mixdef.auditing.cascade import train_cascade
from mixdef.auditing.prices import Price, imitator_of
from mixdef.metrics.false_discoveries import fdr_list
from mixdef.metrics.holdout import Rules
from mixdef.metrics.roc import Roc
from mixdef.training.traces import default_every

_OUT = flags.DEFINE_string("out", "runs/prices", "folder of the results")
_DATASET = flags.DEFINE_string("dataset", "location30", "one of RECIPES")


class Recipe(NamedTuple):
  """How the models of a data set, with one layer of 128, are trained by Adam."""

  records: int  # of the pool
  rate: float
  epochs: int
  batch_size: int = 128
  releases: int = 8


RECIPES = {
  "location30": Recipe(5010, 1e-3, 50),
  "diabetes130_top100dx": Recipe(6000, 3e-3, 30),
  "fashion_mnist": Recipe(4000, 2e-3, 30),
  "cifar10": Recipe(4000, 5e-4, 40),
  "digits": Recipe(300, 1e-3, 12, 32, 2),
}
REFERENCES = 64
POPULATION = 0.25  # of the records outside a release
RATES = {"TPR at 0.1%": 0.001, "TPR at 1%": 0.01}
TOP = 0.01  # fraction of the members in the precision of a ranking
RANKINGS = ("final_loss", "lt_iqr", "lt_iqr(every=1)")  # of members; no attacks
ONLINE = {
  "lira_online": attacks.lira_online,
  "rmia": functools.partial(attacks.rmia, score="ratio"),
  "bavaria": attacks.bavaria,
}


class Study(NamedTuple):
  """The records, the recipe, and the reference models with their outputs [S,N,K]."""

  pool: mixdef.Dataset
  learner: mixdef.Learner
  how: dict
  references: mixdef.Ensemble
  log_probs: np.ndarray
  cost: float  # of a reference model, in trainings of a release
  each: float  # cost of the losses of all members, likewise
  out: pathlib.Path


class Release(NamedTuple):
  """A released model; it is model 0 of the signals, and the references follow."""

  number: int
  run: mixdef.Run
  population: np.ndarray  # bool [N]
  signals: mixdef.Signals


def free(study, release):
  """Attack the release alone, and rank its members by their losses in training."""
  own, run, pool = release.signals.only_models([0]), release.run, study.pool
  outside, hinge, network = release.population, own.hinge[0, :, 0], np.empty(len(pool))
  started, network[outside] = time.monotonic(), np.nan
  network[~outside] = attacks.quantile_network(
    *(pool.x[~outside], pool.y[~outside], hinge[~outside]),
    population=(pool.x[outside], pool.y[outside], hinge[outside]),
  )
  spent, (losses, points) = time.monotonic() - started, run.trace
  plan = run.plan._replace(num_records=int(run.members.sum()))
  few = (points % default_every(plan) == 0) | (points == plan.epochs)
  unit = plan.epochs * np.median([row["seconds"] for row in run.history])
  return {
    "loss_threshold": (attacks.loss_threshold(own, target=0), 0.0),
    "quantile_network": (network, spent / unit),
    "final_loss": (losses[-1], study.each),
    "lt_iqr": (attacks.lt_iqr(losses[few]), study.each * few.sum()),
    "lt_iqr(every=1)": (attacks.lt_iqr(losses), study.each * len(points)),
  }


def imitate(study, release):
  """Attack with imitators of the release, and ordinary models."""
  price, seed = Price.parse("imitate"), 100 + release.number
  imitators = mixdef.fit_many(
    imitator_of(study.learner, release.signals),
    study.pool,
    mixdef.subsets(study.pool, price.imitators, seed=seed),
    strategy="vmap",
    seed=seed,
    out=study.out / f"imitators-{release.number}",
    **study.how,
  )
  own, out = release.signals.phi[0], imitators.signals()
  inside = release.signals.only_models(range(1, 1 + price.models))
  cost = price.imitators * study.cost
  return {
    "glira": (attacks.glira(own, out), cost),
    "imia": (attacks.imia(own, inside, out), cost + price.models * study.cost),
  }


def shadows(study, release, *, count):
  """Attack with the first reference models."""
  signals, cost = release.signals.first_models(1 + count), count * study.cost
  return {name: (attack(signals, target=0), cost) for name, attack in ONLINE.items()}


def cascade(study, release):
  """Attack with rounds of reference models, as many in all as the best LiRA has."""
  price, seed = Price.parse(f"cascade:2x{REFERENCES // 2}"), 200 + release.number

  def train(keep, name, first):
    return mixdef.fit_many(
      study.learner,
      study.pool,
      keep,
      model_ids=np.arange(first, first + len(keep)),
      strategy="vmap",
      seed=seed,
      out=study.out / f"cascade-{release.number}" / name,
      **study.how,
    )

  found = train_cascade(
    release.signals.phi[0],
    study.pool,
    rounds=price.rounds,
    models=price.models,
    seed=seed,
    train=train,
    query=lambda ensemble: ensemble.signals(),
  )
  return {"cmia": (found.scores, found.models * study.cost)}


PRICES = {
  "free": free,
  "imitate": imitate,
  "shadows:16": functools.partial(shadows, count=16),
  "shadows:30": functools.partial(shadows, count=30),  # as many models as imitate
  "shadows:64": functools.partial(shadows, count=64),
  "cascade:2x32": cascade,  # as many models as shadows:64
}


def opened(name, recipe, out):
  """Draw the pool, and train the reference models."""
  data = mixdef.load(name)
  pool = data.select(np.random.default_rng(0).permutation(len(data))[: recipe.records])
  model = mixdef.models.mlp(128, num_classes=data.num_classes)
  learner = mixdef.classifier(model, optax.adam(recipe.rate))
  size = {"batch_size": recipe.batch_size, "num_members": len(pool) // 2}
  how, keep = {**size, "epochs": recipe.epochs}, mixdef.subsets(pool, REFERENCES)
  many = functools.partial(mixdef.fit_many, learner, pool, strategy="vmap")
  references = many(keep, out=out / "references", **how)
  path, short = out / "costs.json", {**size, "epochs": 6}
  if not path.exists():
    rounds = [costs(learner, pool, keep[:16], many, short) for _ in range(3)]
    path.write_text(json.dumps(np.median(rounds, 0).tolist()))
  cost, each = np.array(json.loads(path.read_text())) / [1, recipe.epochs]
  log_probs = references.log_probs(pool.x)
  return Study(pool, learner, how, references, log_probs, cost, each, out)


def costs(learner, pool, keep, many, how):
  """Return the time of a reference model, and of a pass over members, in epochs.

  Short trainings and passes take turns, so that other work slows all of them.
  """
  run, x = mixdef.fit(learner, pool, keep[0], **how), pool.x[keep[0]]
  alone, together = (
    np.median([row["seconds"] / row["count"] for row in models.history[1:]])
    for models in (run, many(keep, **how))  # the first epoch compiles
  )
  passes = [time.monotonic()]
  for _ in range(6):
    run.log_probs(x)
    passes.append(time.monotonic())
  return together / alone, np.median(np.diff(passes)) / alone


def released(study, number, members):
  """Train one release with the trace of its losses, and query it."""
  path, pool = study.out / f"release-{number}", study.pool
  also = {"out": path, "trace": "loss", "every": 1, "seed": 1 + number}
  run = mixdef.fit(study.learner, pool, members, **also, **study.how)
  drawn = np.random.default_rng(number).random(len(pool)) < POPULATION
  signals = mixdef.Signals.from_logits(
    np.concatenate([run.log_probs(pool.x)[None], study.log_probs]),
    pool.y,
    np.concatenate([members[None], study.references.members]),
    audited=members | ~drawn,
    design="bernoulli",
    target=0,
  )
  return Release(number, run, ~members & drawn, signals)


def scored(study, release):
  """Return scores [N] and cost by price and attack, computed or from the folder.

  The cost is a multiple of the training of the release.
  """
  found = {}
  for price, attack in PRICES.items():
    path = study.out / f"{release.number}-{price.replace(':', '-')}.json"
    if not path.exists():
      made = attack(study, release).items()
      path.write_text(json.dumps({k: [v.tolist(), float(c)] for k, (v, c) in made}))
    for name, (scores, cost) in json.loads(path.read_text()).items():
      found[price, name] = np.array(scores), cost
  return found


def judged(scores, members, exposed, ranking):
  """Return what the scores of members and hold-out of one release find."""
  own, others = scores[members], scores[~members]
  top = np.argsort(-own, kind="stable")[: round(TOP * len(own))]
  found = {"precision": exposed[members][top].mean()}
  if ranking:
    return found
  curve, rules = Roc.of(scores, members), Rules.of(own, others)
  found |= {rate: curve.tpr_at(fpr) for rate, fpr in RATES.items()}
  named, shown = fdr_list(own, others).named, rules.shown(0.5, 0.1)
  return found | {"AUC": curve.auc, "named": named, "shown": shown}


def evaluated(releases, scores, *, permuted=False):
  """Return the findings by (price, attack), and the share of exposed members.

  A member is exposed if LiRA with the most reference models scores it above all but
  0.1% of the hold-out records, those of all releases together.
  """
  best, rows = [key for key in scores[0] if key[1] == "lira_online"][-1], []
  for release, found in zip(releases, scores, strict=True):
    inside, own = ~release.population, release.run.members[~release.population]
    if permuted:
      own = np.random.default_rng(release.number).permutation(own)
    rows.append((own, {key: (one[inside], c) for key, (one, c) in found.items()}))
  outside = np.sort(np.concatenate([found[best][0][~own] for own, found in rows]))
  threshold = outside[-1 - int(RATES["TPR at 0.1%"] * len(outside))]
  results, base = collections.defaultdict(list), []
  for own, found in rows:
    exposed = own & (found[best][0] > threshold)
    base.append(exposed.sum() / own.sum())
    for key, (one, cost) in found.items():
      result = judged(one, own, exposed, key[1] in RANKINGS)
      results[key].append({**result, "cost": cost})
  return results, base


def interval(values, form="z.1%"):
  """Return the mean over releases and its 95% t interval as text."""
  mean, half = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
  return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def table(results, base):
  """Yield the rows of the table; its last two columns compare with the best LiRA."""
  best = [found for key, found in results.items() if key[1] == "lira_online"][-1]
  yield f"| | chance | 0 | {interval(base)} |"
  for key, found in results.items():
    row = {name: np.array([one[name] for one in found]) for name in found[0]}
    words = [*key, f"{np.median(row['cost']):.3g}", interval(row["precision"])]
    if key[1] not in RANKINGS:
      words += [interval(row["AUC"], "z.3f"), *(interval(row[rate]) for rate in RATES)]
      words += [interval(row["named"], "z.0f"), f"{row['shown'].mean():.0f}"]
      words += [interval(row[r] - [one[r] for one in best]) for r in RATES]
    yield f"| {' | '.join(words)} |"


def main(argv):
  """Run what has no result yet, and print the tables."""
  del argv
  recipe, out = RECIPES[_DATASET.value], pathlib.Path(_OUT.value) / _DATASET.value
  study = opened(_DATASET.value, recipe, out)
  members = mixdef.subsets(study.pool, recipe.releases, seed=1)
  releases = [released(study, number, row) for number, row in enumerate(members)]
  scores = [scored(study, release) for release in releases]
  for side, wanted in (("members", True), ("hold-out", False)):
    rows = [(one.run.members == wanted) & ~one.population for one in releases]
    both = [*zip(releases, rows, strict=True)]
    right = [one.run.accuracy(study.pool.select(chosen)) for one, chosen in both]
    print(f"{np.sum(rows) / len(rows):.0f} {side}, accuracy {interval(right)}")
  for permuted in (False, True):
    print("membership permuted:" if permuted else f"a reference costs {study.cost:.3g}")
    print(*table(*evaluated(releases, scores, permuted=permuted)), sep="\n", flush=True)


if __name__ == "__main__":
  app.run(main)

"""The steps of an audit after training: model queries, attacks and intervals."""

import numpy as np
import optax

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks.timing import rows_of, show
from mixdef.cli.benchmarks.works import random_data

__all__ = ["run", "show"]


def run(settings: BenchSettings) -> dict:
  """Time queries, attacks and intervals."""
  rows, models, records = [], 4, 256
  pictures = random_data(records, (32, 32, 3), 10)
  trained = _trained(mixdef.models.cnn(), pictures, models)
  for name in ("none", "mirror", "shifts"):
    views = mixdef.attacks.VIEWS[name]()
    count = views(pictures.x[:1]).shape[1]
    rows += rows_of(
      f"signals, cnn 32x32, {count} views",
      {"per model, record and view": lambda v=views: trained.signals(views=v)},
      settings.repeats,
      per=models * records * count,
    )
  digits = mixdef.load("digits")
  known = _trained(mixdef.models.mlp(64), digits, models)
  some = np.arange(100)
  cases = {
    name: lambda a=attack: a(known, target=0, records=some)
    for name, attack in mixdef.attacks.ATTACKS.on_models.items()
    if name != "augmentation_aware"  # aware of the defense, but there is none
  }
  rows += rows_of("per record, mlp(64), digits", cases, settings.repeats, per=len(some))
  signals = _random_signals(models=64, records=4000)
  cases = {
    attack.__name__: lambda a=attack: a(signals, target=0)
    for family in ("reference", "threshold")
    for attack in mixdef.attacks.ATTACKS.families[family]
  }
  rows += rows_of("per target of 64 x 4000", cases, settings.repeats)
  scores = mixdef.attacks.leave_one_out(mixdef.attacks.lira_global, signals)
  cases = {"1000 resamples": lambda: mixdef.metrics.summarize(scores, signals.members)}
  rows += rows_of("summarize 64 x 4000", cases, settings.repeats)
  return {"rows": rows}


def _trained(model, data, models):
  """Models after one epoch; the time of a query does not depend on their training."""
  learner = mixdef.classifier(model, optax.adam(1e-3))
  members = mixdef.subsets(data, models, seed=0)
  return mixdef.fit_many(learner, data, members, epochs=1, strategy="loop")


def _random_signals(models, records):
  rng = np.random.default_rng(0)
  members = mixdef.subsets(records, models, seed=0)
  logits = rng.normal(size=(models, records, 10))
  labels = rng.integers(0, 10, records)
  logits[:, np.arange(records), labels] += 2 * members
  others = rng.normal(size=(models, 1000, 10)), rng.integers(0, 10, 1000)
  return mixdef.Signals.from_logits(logits, labels, members, population=others)

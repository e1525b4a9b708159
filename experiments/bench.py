"""Time what mixdef is fast at, as ratios of one interleaved run.

  python experiments/bench.py --suite=cpu     ensembles: vmap, scan and loop
  python experiments/bench.py --suite=dp      DP-SGD against the plain step and optax
  python experiments/bench.py --suite=attacks asking models, attacking them, intervals
  python experiments/bench.py --suite=defenses training and asking with every defense

Every case is compiled, then all are timed in turn, round after round, so a drift of
the machine hits them alike. result.json has `rows`: the work, the case, milliseconds
(min, median, max) and the ratio of its median to the first case of the same work.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import job
import numpy as np
import optax
from settings import JobSettings

import mixdef
from mixdef.defense import Ctx, Data, Rows
from mixdef.training.plan import make_plan
from mixdef.training.prepare import prepare
from mixdef.training.programs import STRATEGIES, programs


@dataclasses.dataclass(frozen=True)
class BenchSettings(JobSettings):
  """What to time."""

  suite: str = "cpu"
  repeats: int = 7
  batch_size: int = 128

  def __post_init__(self):
    """Refuse what cannot be used before anything is written."""
    super().__post_init__()
    if self.suite not in SUITES:
      raise ValueError(f"--suite={self.suite} is none of {', '.join(SUITES)}")

  @property
  def label(self) -> str:
    """The suite."""
    return self.suite


def interleave(cases: dict[str, Callable[[], object]], repeats: int) -> dict:
  """Time every case `repeats` times in turn: {name: [seconds]}."""
  for run in cases.values():
    jax.block_until_ready(run())  # compile
  seconds = {name: [] for name in cases}
  for _ in range(repeats):
    for name, run in cases.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def rows_of(work: str, cases: dict, repeats: int, *, per: int = 1, **more) -> list:
  """Time the cases of one work; a figure is milliseconds per `per`-th of a run."""
  seconds = interleave(cases, repeats)
  first = statistics.median(next(iter(seconds.values())))
  rows = []
  for name, times in seconds.items():
    low, middle, high = min(times), statistics.median(times), max(times)
    figures = [round(1e3 * value / per, 4) for value in (low, middle, high)]
    ratio = round(middle / first, 3)
    rows.append({"work": work, "case": name, "ms": figures, "ratio": ratio, **more})
  return rows


def ensembles(settings: BenchSettings) -> list:
  """Time one epoch of eight models under each strategy, per model and step."""
  rows, models = [], 8
  works = {
    "mlp(256, 128), 446 features": (
      mixdef.models.mlp(num_classes=30),
      (446,),
      30,
      2505,
    ),
    "cnn 28x28": (mixdef.models.cnn(), (28, 28, 1), 10, 512),
    "wide_resnet(10, 1) 32x32": (
      mixdef.models.wide_resnet(10, 1),
      *((32, 32, 3), 10, 256),
    ),
  }
  for work, (model, shape, classes, size) in works.items():
    data = _random_data(size, shape, classes)
    training = prepare(
      mixdef.classifier(model, optax.adam(1e-3)),
      *({}, data, np.ones((models, size), bool)),
      jax.vmap(jax.random.key)(jnp.arange(models)),
      epochs=60,
      batch_size=settings.batch_size,
      num_members=None,
    )
    steps = training.plan.steps_per_epoch
    cases = {}
    for strategy in STRATEGIES:
      program = programs(training.source, training.plan, strategy)
      states = program.init(training.keys, None, {}, training.data)
      cases[strategy] = lambda train=program.train, states=states, t=training: train(
        *(states, {}, t.rows, t.data),
        *(jnp.int32(0), jnp.int32(0), jnp.int32(t.plan.steps_per_epoch)),
      )
    found = rows_of(work, cases, settings.repeats, per=models * steps)
    for row in found:
      minutes = row["ms"][1] * steps * training.plan.epochs / 60e3
      row["shadows_per_minute_at_60_epochs"] = round(1 / minutes, 2)
    rows += found
  return rows


def private(settings: BenchSettings) -> list:
  """Time one step of DP-SGD beside the plain step and optax's aggregate."""
  rows, size = [], settings.batch_size

  def optax_aggregate(key):
    return optax.contrib.differentially_private_aggregate(
      l2_norm_clip=1.0, noise_multiplier=0.0, key=key
    )

  defenses = {
    "plain": mixdef.chain(),
    "ghost clipping": mixdef.dp_sgd(0.0),
    "ghost clipping and noise": mixdef.dp_sgd(1.0),
    "microbatches": mixdef.dp_sgd(0.0, estimator="microbatch"),
    "optax aggregate": mixdef.from_optax("optax", optax_aggregate, per_example=True),
  }
  works = {
    "mlp(512, 256), 784 features": (mixdef.models.mlp(512, 256), (784,)),
    "cnn 28x28": (mixdef.models.cnn(), (28, 28, 1)),
  }
  for work, (model, shape) in works.items():
    data = _random_data(2 * size, shape, 10)
    device = Data(*map(jnp.asarray, (data.x, data.y, data.reference)))
    batch = Rows(jnp.arange(size), jnp.ones(size), jnp.zeros(size))
    cases = {}
    for name, defense in defenses.items():
      learner = mixdef.classifier(model, optax.sgd(0.1), defense)
      everyone = np.ones((1, len(data)), bool)
      plan = make_plan(learner.traits, data, everyone, epochs=1, batch_size=size)
      state = learner.init(jax.random.key(0), plan.spec(device, None))
      ctx = Ctx(jax.random.key(1), jnp.int32(0), jnp.int32(0), 1)
      step = jax.jit(learner.step)
      cases[name] = lambda step=step, state=state, b=batch, c=ctx, d=device: step(
        *(state, d, b, c)
      )
    rows += rows_of(work, cases, settings.repeats)
  return rows


def attacks(settings: BenchSettings) -> list:
  """Time what an audit does after training: questions, attacks, intervals."""
  rows, models, records = [], 4, 256
  pictures = _random_data(records, (32, 32, 3), 10)
  asked = _trained(mixdef.models.cnn(), pictures, models)
  for name in ("none", "mirror", "shifts"):
    views = mixdef.attacks.VIEWS[name]()
    count = views(pictures.x[:1]).shape[1]
    rows += rows_of(
      f"signals, cnn 32x32, {count} views",
      {"a model, record and view": lambda v=views: mixdef.signals(asked, queries=v)},
      settings.repeats,
      per=models * records * count,
    )
  digits = mixdef.load("digits")
  known = _trained(mixdef.models.mlp(64), digits, models)
  some = np.arange(100)
  cases = {
    name: lambda a=attack: a(known, target=0, records=some)
    for name, attack in mixdef.attacks.ON_MODELS.items()
    if name != "augmentation_aware"  # there is no defense to be aware of
  }
  rows += rows_of("a record, mlp(64), digits", cases, settings.repeats, per=len(some))
  signals = _random_signals(models=64, records=4000)
  cases = {
    attack.__name__: lambda a=attack: a(signals, target=0)
    for family in ("reference", "threshold")
    for attack in mixdef.attacks.FAMILIES[family]
  }
  rows += rows_of("a target of 64 x 4000", cases, settings.repeats)
  scores = mixdef.attacks.leave_one_out(mixdef.attacks.lira_global, signals)
  cases = {"1000 resamples": lambda: mixdef.auditing.summarize(scores, signals.keep)}
  return rows + rows_of("summarize 64 x 4000", cases, settings.repeats)


def defended(settings: BenchSettings) -> list:
  """Time an epoch, teachers included, and a query with every defense."""
  rows, models = [], 2
  every = {name: make() for name, make in mixdef.defenses.CATALOGUE.items()}
  of_networks = {name: made for name, made in every.items() if made.model}
  the_rest = {name: made for name, made in every.items() if not made.model}
  works = {
    "resnet(8), 28x28": (mixdef.models.resnet(8, norm="batch"), 320, of_networks),
    "mlp(256, 128), 28x28": (mixdef.models.mlp(), 1280, the_rest),
  }
  for work, (model, size, parts) in works.items():
    data = _random_data(size, (28, 28, 1), 10).with_reference(size // 5)
    keep = np.tile(data.audited, (models, 1))
    chosen = {"none": mixdef.chain(), **parts}
    trains, answers = {}, {}
    for name, defense in chosen.items():
      training = prepare(
        mixdef.classifier(model, optax.adam(1e-3), defense),
        *({}, data, keep, jax.vmap(jax.random.key)(jnp.arange(models))),
        epochs=10,
        batch_size=settings.batch_size,
        num_members=None,
      )
      trains[name], state = _epochs_of(training)
      program = programs(training.source, training.plan, "scan")
      x = jnp.asarray(data.x[:256])
      if name == "none" or defense.release_output:
        answers[name] = lambda ask=program.predict, state=state, x=x: ask(state, {}, x)
    for measure, cases in (("train", trains), ("answer", answers)):
      named = f"{measure}, {work}"
      rows += rows_of(named, cases, settings.repeats, per=models, measure=measure)
  return rows


def _epochs_of(training):
  """A function that trains one epoch of every stage, and the last stage's states."""
  stages, part = [], training
  while part is not None:
    program = programs(part.source, part.plan, "scan")
    states = program.init(part.keys, part.zero_table(), {}, part.data)
    stages.append((part, program, states))
    part = part.teachers

  def run():
    done = []
    for part, program, states in stages:
      steps, last = part.plan.steps_per_epoch, jnp.int32(part.plan.epochs - 1)
      states, _ = program.train(
        *(states, {}, part.rows, part.data, last, jnp.int32(0), jnp.int32(steps))
      )
      if part.learner.epoch:
        states = program.epoch(states, {}, part.rows, part.data, last)
      done.append(states)
    return done

  return run, stages[0][2]


SUITES = {"cpu": ensembles, "dp": private, "attacks": attacks, "defenses": defended}


def run(settings: BenchSettings, folder: pathlib.Path) -> dict:
  """Time a suite; returns what result.json holds."""
  del folder
  return {"suite": settings.suite, "rows": SUITES[settings.suite](settings)}


def show(result: dict) -> None:
  """Print the rows as a table."""
  print(f"{'work':30}{'case':28}{'ms: min, median, max':30}ratio")
  for row in result["rows"]:
    figures = "  ".join(f"{value:.3g}" for value in row["ms"])
    print(f"{row['work']:30}{row['case']:28}{figures:30}{row['ratio']:.3g}")


def _random_data(size, shape, classes):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(size, *shape)).astype(np.float32)
  y = rng.integers(0, classes, size)
  return mixdef.Dataset.from_arrays(x, y, num_classes=classes)


def _trained(model, data, models):
  """Models after one epoch: how long they take to answer does not depend on it."""
  learner = mixdef.classifier(model, optax.adam(1e-3))
  keep = mixdef.subsets(models, len(data), seed=0)
  return mixdef.fit_many(learner, data, keep, epochs=1, strategy="loop")


def _random_signals(models, records):
  rng = np.random.default_rng(0)
  keep = mixdef.subsets(models, records, seed=0)
  logits = rng.normal(size=(models, records, 10))
  labels = rng.integers(0, 10, records)
  logits[:, np.arange(records), labels] += 2 * keep
  others = rng.normal(size=(models, 1000, 10)), rng.integers(0, 10, 1000)
  return mixdef.Signals.from_logits(logits, labels, keep, population=others)


if __name__ == "__main__":
  job.main("bench", BenchSettings, run, show)

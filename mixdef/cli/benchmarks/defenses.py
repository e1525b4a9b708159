"""Times of training and queries with every defense, for docs/make_pages.py."""

import jax.numpy as jnp
import optax

import mixdef
from mixdef.cli.bench import BenchSettings
from mixdef.cli.benchmarks.timing import rows_of, show
from mixdef.cli.benchmarks.works import random_data, train_everyone
from mixdef.training.programs import programs
from mixdef.training.streaming import train_steps

__all__ = ["run", "show"]


def run(settings: BenchSettings) -> dict:
  """Time an epoch, including teachers, and a query with every defense."""
  rows, models = [], 2
  catalogue = {name: make() for name, make in mixdef.defenses.CATALOGUE.items()}
  every = {n: part for n, part in catalogue.items() if not part.traits.critic}
  of_networks = {name: made for name, made in every.items() if made.model}
  the_rest = {name: made for name, made in every.items() if not made.model}
  works = {
    "resnet(8), 28x28": (mixdef.models.resnet(8, norm="batch"), 320, of_networks),
    "mlp(256, 128), 28x28": (mixdef.models.mlp(), 1280, the_rest),
  }
  for work, (model, size, parts) in works.items():
    data = random_data(size, (28, 28, 1), 10).with_auxiliary(size // 5)
    chosen = {"none": mixdef.chain(), **parts}
    trains, outputs = {}, {}
    for name, defense in chosen.items():
      learner = mixdef.classifier(model, optax.adam(1e-3), defense)
      training = train_everyone(
        learner, data, models=models, batch=settings.batch_size, epochs=10
      )
      trains[name], state = _epochs_of(training)
      program = programs(training.source, training.plan, "scan")
      x = jnp.asarray(data.x[:256])
      if name == "none" or defense.release_output:
        outputs[name] = lambda predict=program.predict, state=state, x=x: predict(
          state, {}, x
        )
    for measure, cases in (("train", trains), ("answer", outputs)):
      named = f"{measure}, {work}"
      rows += rows_of(named, cases, settings.repeats, per=models, measure=measure)
  return {"rows": rows}


def _epochs_of(training):
  """Return a function that trains one epoch of every stage, and the final states."""
  stages, part = [], training
  while part is not None:
    program = programs(part.source, part.plan, "scan")
    states = program.init(part.keys, part.zero_table(), {}, part.data)
    stages.append((part, program, states))
    part = part.teachers

  def run():
    done = []
    for part, program, states in stages:
      steps, last = part.plan.steps_per_epoch, part.plan.epochs - 1
      states, _ = train_steps(program, part, states, last, 0, steps)
      if part.learner.epoch:
        states = program.epoch(states, {}, part.rows, part.data, jnp.int32(last))
      done.append(states)
    return done

  return run, stages[0][2]

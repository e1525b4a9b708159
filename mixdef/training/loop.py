"""The one train loop: epochs over a chunk of models, kept from being lost."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.training.ensemble import predict_in_blocks
from mixdef.training.prepare import Training, fold_keys
from mixdef.training.programs import programs
from mixdef.training.progress import Progress
from mixdef.training.store import Store

_CHECKPOINT_SECONDS = 60.0


class Loop:
  """Train chunks of models, keeping what a kill must not lose."""

  def __init__(self, store: Store | None, progress: Progress):
    self.store, self.progress, self.history = store, progress, []
    self._earlier = store.read_metrics() if store else []

  def run(self, training: Training, strategy: str, name: str, real: int):
    """Train the models of `training` to the end, or load them if that was done.

    Args:
      training: the models; those after the first `real` fill up a chunk.
      strategy: how they share the machine.
      name: of the chunk, in the store and in the metrics.
      real: how many count in the metrics.
    """
    program = programs(training.source, training.plan, strategy)
    if self.store and self.store.has(name):
      self._recall(name, training.plan.epochs)
      self.store.forget_epochs(name)
      self.progress.resume(training.work)
      table = jax.eval_shape(training.zero_table)
      template = jax.eval_shape(
        *(program.init, training.keys, table, training.values, training.data)
      )
      template = jax.eval_shape(
        *(program.finish, template, training.values, training.rows, training.data)
      )
      return self.store.load(name, template)
    table = None
    if training.teachers:
      table = self._table(training, strategy, f"{name}-teachers", real)
    states = program.init(training.keys, table, training.values, training.data)
    states, done = self._resumed(states, name)
    if self.store:
      self.store.write_metrics(self.history)  # without rows after the checkpoint
    self.progress.resume(done * training.count)
    saved = time.monotonic()
    for epoch in range(done, training.plan.epochs):
      states, row = _one_epoch(program, training, states, epoch, real)
      self.history.append({"models": name, **row})
      self.progress.advance(training.count, loss=row["loss"], accuracy=row["accuracy"])
      if self.store:
        self.store.append_metrics(self.history[-1])
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
          self.store.save(f"{name}-epoch-{epoch + 1}", states)
          self.store.forget_epochs(name, before=epoch + 1)
          saved = time.monotonic()
    states = program.finish(states, training.values, training.rows, training.data)
    if self.store:
      self.store.save(name, states)
      self.store.forget_epochs(name)
    return states

  def _table(self, training, strategy, name, real):
    """Train the stage before and condense its outputs into [S,N,K]."""
    teachers = training.teachers
    each = teachers.count // training.count
    states = self.run(teachers, strategy, name, real * each)
    program = programs(teachers.source, teachers.plan, strategy)
    log_probs = jnp.asarray(
      predict_in_blocks(program.raw, states, teachers.values, teachers.data.x)
    )
    stage, _ = training.learner.before[0]
    shape = (training.count, stage.models)
    return jax.vmap(stage.table)(
      fold_keys(training.keys, "stage"),
      log_probs.reshape(*shape, *log_probs.shape[1:]),
      teachers.rows.reshape(*shape, -1),
      training.keep,
    )

  def _resumed(self, states, name):
    """The latest checkpoint of an unfinished chunk, or the fresh states."""
    epochs = self.store.epochs(name) if self.store else []
    if not (self.store and epochs):
      return states, 0
    self._recall(name, epochs[-1])
    return self.store.load(f"{name}-epoch-{epochs[-1]}", states), epochs[-1]

  def _recall(self, name, epochs):
    """Take over the metrics an earlier run wrote up to a checkpoint."""
    self.history += [
      row
      for row in self._earlier
      if row["models"] in (name, f"{name}-teachers")
      and row not in self.history
      and (row["models"] != name or row["epoch"] < epochs)
    ]


def _one_epoch(program, training, states, epoch, real):
  """Train one epoch; returns the states and the row for metrics.jsonl."""
  started = time.monotonic()
  steps, number = training.plan.steps_per_epoch, jnp.int32(epoch)
  states, sums = program.train(
    *(states, training.values, training.rows, training.data),
    *(number, jnp.int32(0), jnp.int32(steps)),
  )
  if training.learner.epoch:
    states = program.epoch(
      states, training.values, training.rows, training.data, number
    )
  jax.block_until_ready(states)
  sums = {name: np.asarray(value, np.float64)[:real] for name, value in sums.items()}
  if sums.pop("overflow").any():
    raise RuntimeError(
      f"epoch {epoch}: a batch drew more members than its {training.plan.capacity} "
      f"places, which happens once in 1e9 trainings: train with another seed"
    )
  means = {name: float(value.mean()) / steps for name, value in sums.items()}
  seconds = round(time.monotonic() - started, 4)
  return states, {"epoch": epoch, **means, "seconds": seconds}

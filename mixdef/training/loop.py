"""The training loop: trains a chunk of models epoch by epoch and checkpoints it."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mixdef.core.reading import digest
from mixdef.training.agreement import FIX, UNFINISHED
from mixdef.training.devices import Stopped
from mixdef.training.ensemble import predict_in_blocks
from mixdef.training.prepare import Training, fold_keys
from mixdef.training.programs import programs, query_program
from mixdef.training.progress import Progress
from mixdef.training.signature import equal_or_refuse
from mixdef.training.store import Store
from mixdef.training.streaming import train_steps
from mixdef.training.traces import Trace, TraceLog

_CHECKPOINT_SECONDS = 60.0
_NOT_METRICS = ("epoch", "diverged", "seconds")  # entries of a row, not metrics
_ROWS_SECONDS = 5.0  # at least, between two writes of the metrics of a chunk


class Loop:
  """Train chunks of models, with checkpoints that survive a kill.

  `history` holds one row per epoch and chunk, starting with those of earlier runs in
  the store. Checkpoints record `made_from`, which identifies the inputs of all models,
  and a digest of the inputs of each model.
  """

  def __init__(
    self,
    store: Store | None,
    progress: Progress,
    made_from: dict,
    trace: TraceLog | None = None,
  ):
    self.store: Any = store  # used only if there is one
    self.trace = trace
    self.progress = progress
    self.made_from = made_from
    self.history = store.read_metrics() if store else []
    self._safe: set[int] = set()

  def run(self, training: Training, strategy: str, models: list[int], kind="models"):
    """Train some models to the end, from their last checkpoint if it exists.

    Args:
      training: the models to train; models beyond `models` pad the chunk.
      strategy: execution strategy.
      models: indices of the models.
      kind: "models", or "teachers" of the previous stage.

    Returns:
      The finished states of all of `training`.
    """
    name = f"{kind}-{models[0]:05d}"
    program = programs(training.source, training.plan, strategy)
    table = None
    if training.teachers:
      table = self._table(training, strategy, models)
    states = program.init(training.keys, table, training.values, training.data)
    first = states
    states, done = self._resumed(kind, training, models, states)
    trace = self.trace if kind == "models" else None
    if trace and trace.missing(done, self._notes(training, models)):
      states, done = first, 0  # the losses of the first epochs were not kept
    if trace and not done:
      self._log(trace, 0, program, training, states, models)
    rows = self._earlier_rows(name, len(models), done)
    self.progress.resume(done * len(models))
    if done:
      logging.info(
        "resuming %s %d to %d after epoch %d of %d",
        kind,
        models[0],
        models[-1],
        done,
        training.plan.epochs,
      )
    saved = written = time.monotonic()
    reached = done, states  # one assignment, so that an interrupt cannot split the pair
    try:
      for epoch in range(done, training.plan.epochs):
        states, row = _one_epoch(program, training, states, epoch, models)
        rows.append({"models": name, "count": len(models), **row, **_process()})
        reached = epoch + 1, states
        if trace and reached[0] in trace.epochs:
          self._log(trace, reached[0], program, training, states, models)
        metrics = {k: v for k, v in row.items() if k not in _NOT_METRICS}
        self.progress.advance(len(models), **metrics)
        now = time.monotonic()
        if now - saved > _CHECKPOINT_SECONDS:
          self._checkpoint(kind, training, models, rows, *reached)
          saved = written = time.monotonic()
        elif now - written > _ROWS_SECONDS:
          self._write(rows)
          written = time.monotonic()
    except KeyboardInterrupt:
      if self.store and reached[0] > done:
        self._checkpoint(kind, training, models, rows, *reached)
        logging.info(
          "wrote a checkpoint of %s %d to %d after epoch %d of %d",
          kind,
          models[0],
          models[-1],
          reached[0],
          training.plan.epochs,
        )
      raise
    self._write(rows)
    self.history += rows
    return program.finish(states, training.values, training.rows, training.data)

  def forget(self, models: Sequence[int]) -> None:
    """Remove checkpoints whose models have all been saved elsewhere.

    Args:
      models: models that have now been saved.
    """
    self._safe.update(models)
    if self.store:
      for kind in ("models", "table"):
        for name, notes in self._begun(kind, []):
          if self._safe.issuperset(notes["models"]):
            self.store.forget(name)

  def read_trace(self, training: Training) -> Trace | None:
    """Return the losses of the only model of a training, if they were kept."""
    if self.trace is None:
      return None
    return self.trace.read(self._notes(training, [0]))

  def _begun(self, kind, models):
    """Return checkpoints that contain these models, latest first, with their notes.

    A checkpoint may contain more models: a kill while a chunk's models are written
    leaves only some of them to do, and another run may use another chunk size.
    """
    found = []
    for name in self.store.names(f"unfinished/{kind}-*") if self.store else []:
      notes = self.store.notes(name, UNFINISHED)
      if notes and set(models) <= set(notes["models"]):
        found.append((name, notes))
    return sorted(found, key=lambda item: -item[1]["epoch"])

  def _table(self, training, strategy, models):
    """Train the previous stage and condense its outputs into [S,N,K]."""
    teachers = training.teachers
    for name, notes in self._begun("table", models):
      shapes = jax.eval_shape(training.zero_table)
      kept = self._pick(name, notes, training, models, shapes)
      if kept is not None:
        self.progress.resume(teachers.work // training.count * len(models))
        return kept
    each = teachers.count // training.count
    theirs = [model * each + teacher for model in models for teacher in range(each)]
    states = self.run(teachers, strategy, theirs, kind="teachers")
    stage, _ = training.learner.stages[0]
    predict, rows = programs(teachers.source, teachers.plan, strategy).raw, ()
    if stage.query:
      rows = (teachers.data.y,)
      predict = query_program(
        teachers.source, teachers.plan.platform, strategy, stage.query, 2
      )
    log_probs = jnp.asarray(
      predict_in_blocks(predict, states, teachers.values, teachers.records, *rows)
    )
    shape = (training.count, stage.models)
    table = jax.vmap(stage.table)(
      fold_keys(training.keys, "stage"),
      log_probs.reshape(*shape, *log_probs.shape[1:]),
      teachers.rows.reshape(*shape, -1),
      training.members,
    )
    if self.store:
      name = f"table-{models[0]:05d}-{models[-1]:05d}"
      self._keep(name, training, models, table, epoch=0)
      for name, _ in self._begun("teachers", theirs):
        self.store.forget(name)
    return table

  def _checkpoint(self, kind, training, models, rows, epoch, states):
    """Write the metrics and states of a chunk after `epoch` epochs."""
    if not self.store:
      return
    chunk = f"{kind}-{models[0]:05d}-{models[-1]:05d}"
    self._write(rows)
    self._keep(f"{chunk}-epoch-{epoch}", training, models, states, epoch=epoch)
    for name, notes in self._begun(kind, []):
      if notes["models"] == models and notes["epoch"] < epoch:
        self.store.forget(name)

  def _keep(self, name, training, models, tree, *, epoch):
    """Save the models of a chunk, without the padding."""
    rows = jax.tree.map(lambda leaf: leaf[: len(models)], tree)
    self.store.save(
      f"unfinished/{name}",
      rows,
      models=models,
      epoch=epoch,
      made_from=self.made_from,
      each=_each_made_from(training, models),
    )

  def _resumed(self, kind, training, models, states):
    """Return the latest readable checkpoint of these models, or the initial states."""
    for name, notes in self._begun(kind, models):
      kept = self._pick(name, notes, training, models, states)
      if kept is not None:
        return kept, notes["epoch"]
    return states, 0

  def _pick(self, name, notes, training, models, template):
    """Load some models of a saved chunk, repeating the last one as padding."""
    each = _each_made_from(training, models)
    theirs = {model: notes["each"].get(model) for model in each}
    equal_or_refuse(self.store.folder / name, theirs, each, fix=FIX)
    earlier = notes["models"]
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((len(earlier), *leaf.shape[1:]), leaf.dtype),
      template,
    )
    kept = self.store.load(name, shapes)
    if kept is None:
      return None
    wanted = [earlier.index(model) for model in models]
    fill = jax.tree.leaves(template)[0].shape[0] - len(wanted)
    rows = np.array(wanted + wanted[-1:] * fill)
    return jax.tree.map(lambda leaf: leaf[rows], kept)

  def _log(self, trace, epoch, program, training, states, models):
    """Keep the losses of all records after `epoch` epochs; nothing else changes."""
    own = states, training.values
    log_probs = predict_in_blocks(program.raw, *own, training.data.x)[0]
    notes = self._notes(training, models)
    trace.keep(epoch, log_probs, training.data, **notes)

  def _notes(self, training, models):
    return {"made_from": self.made_from, "each": _each_made_from(training, models)}

  def _write(self, rows):
    if self.store and rows:
      self.store.write_chunk(rows)

  def _earlier_rows(self, name, count, done):
    """Remove the rows of a chunk from the history; return those of its first epochs."""
    earlier, others = [], []
    for row in self.history:
      if (row["models"], row["count"]) != (name, count):
        others.append(row)
      elif row["epoch"] < done:
        earlier.append(row)
    self.history = others
    return earlier


def _process():
  """Return the entry of a row for the process that trains, if there are several."""
  return {"process": jax.process_index()} if jax.process_count() > 1 else {}


def _each_made_from(training, models):
  """Return a digest per model of its members, rows, random key and hyper-parameters."""
  own = (
    training.members,
    training.rows,
    jax.random.key_data(training.keys),
    *training.values.values(),
  )
  own = [np.asarray(array) for array in own]
  return {
    f"model {model}": digest(*(array[place] for array in own))
    for place, model in enumerate(models)
  }


def _one_epoch(program, training, states, epoch, models):
  """Train one epoch, and return the states and the row for metrics.jsonl.

  The row holds means over the models with a finite loss.
  """
  started = time.monotonic()
  steps, number = training.plan.steps_per_epoch, jnp.int32(epoch)
  states, sums = train_steps(program, training, states, epoch, 0, steps)
  if training.learner.epoch:
    states = program.epoch(
      states, training.values, training.rows, training.data, number
    )
  jax.block_until_ready(states)
  count = len(models)
  sums = {name: np.asarray(value, np.float64)[:count] for name, value in sums.items()}
  if sums.pop("overflow").any():
    raise Stopped(
      f"epoch {epoch}: a batch drew more members than its {training.plan.capacity} "
      "places, which happens once in 1e9 trainings: use another seed"
    )
  sound = np.isfinite(list(sums.values())).all(0)
  row = {"epoch": epoch}
  if not sound.all():
    row["diverged"] = [models[place] for place in np.flatnonzero(~sound)]
    sound = sound if sound.any() else ~sound
  means = {name: float(value[sound].mean()) / steps for name, value in sums.items()}
  seconds = round(time.monotonic() - started, 4)
  return states, {**row, **means, "seconds": seconds}

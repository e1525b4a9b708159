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
  """Train chunks of models, keeping what a kill must not lose.

  `history` holds a row an epoch and chunk, those of earlier runs in the store first.
  """

  def __init__(self, store: Store | None, progress: Progress):
    self.store, self.progress = store, progress
    self.history = store.read_metrics() if store else []

  def run(self, training: Training, strategy: str, models: list[int], kind="models"):
    """Train some models to the end, from their last checkpoint if there is one.

    Args:
      training: of the models; those beyond `models` fill up a chunk.
      strategy: how they share the machine.
      models: their numbers.
      kind: "models", or "teachers" of the stage before.

    Returns:
      The finished states of all of `training`.
    """
    name = f"{kind}-{self._begun(kind, models):05d}"
    program = programs(training.source, training.plan, strategy)
    table = None
    if training.teachers:
      table = self._table(training, strategy, models)
    states = program.init(training.keys, table, training.values, training.data)
    states, done = self._resumed(name, models, states)
    self._forget_rows(name, done)
    self.progress.resume(done * training.count)
    saved = time.monotonic()
    for epoch in range(done, training.plan.epochs):
      states, row = _one_epoch(program, training, states, epoch, models)
      self._append({"models": name, **row})
      self.progress.advance(training.count, loss=row["loss"], accuracy=row["accuracy"])
      if self.store and time.monotonic() - saved > _CHECKPOINT_SECONDS:
        self._checkpoint(name, models, states, epoch + 1)
        saved = time.monotonic()
    return program.finish(states, training.values, training.rows, training.data)

  def forget(self, models: list[int]) -> None:
    """Remove the checkpoints of a chunk whose models are safe elsewhere."""
    if self.store:
      self.store.forget(f"unfinished/table-{self._begun('table', models):05d}")
      self.store.forget_epochs(f"unfinished/models-{self._begun('models', models):05d}")

  def _begun(self, kind, models):
    """Number of the chunk that holds the work on some models: its first model's.

    A kill while a chunk's models are written leaves fewer of them to do than it had.
    """
    for name in self.store.names(f"unfinished/{kind}-*") if self.store else []:
      earlier = (self.store.notes(name) or {}).get("models", [])
      if set(models) <= set(earlier):
        return earlier[0]
    return models[0]

  def _table(self, training, strategy, models):
    """Train the stage before and condense its outputs into [S,N,K]."""
    teachers = training.teachers
    name = f"unfinished/table-{self._begun('table', models):05d}"
    if self.store and self.store.has(name):
      kept = self._pick(name, models, jax.eval_shape(training.zero_table))
      if kept is not None:
        self.progress.resume(teachers.work)
        return kept
    each = teachers.count // training.count
    theirs = [model * each + teacher for model in models for teacher in range(each)]
    states = self.run(teachers, strategy, theirs, kind="teachers")
    program = programs(teachers.source, teachers.plan, strategy)
    log_probs = jnp.asarray(
      predict_in_blocks(program.raw, states, teachers.values, teachers.data.x)
    )
    stage, _ = training.learner.before[0]
    shape = (training.count, stage.models)
    table = jax.vmap(stage.table)(
      fold_keys(training.keys, "stage"),
      log_probs.reshape(*shape, *log_probs.shape[1:]),
      teachers.rows.reshape(*shape, -1),
      training.keep,
    )
    if self.store:
      self.store.save(name, table, models=models, rows=training.count)
      theirs = self._begun("teachers", theirs)
      self.store.forget_epochs(f"unfinished/teachers-{theirs:05d}")
    return table

  def _checkpoint(self, name, models, states, epoch):
    rows = len(states.key)
    path = f"unfinished/{name}-epoch-{epoch}"
    self.store.save(path, states, models=models, rows=rows)
    self.store.forget_epochs(f"unfinished/{name}", before=epoch)

  def _resumed(self, name, models, states):
    """The latest readable checkpoint of these models, or the fresh states."""
    name = f"unfinished/{name}"
    for epoch in reversed(self.store.epochs(name) if self.store else []):
      kept = self._pick(f"{name}-epoch-{epoch}", models, states)
      if kept is not None:
        return kept, epoch
    return states, 0

  def _pick(self, name, models, template):
    """Read the rows of some models from what a chunk with at least these left.

    Models that an earlier run has finished need not be among those of this one.
    """
    notes = self.store.notes(name) or {"models": [], "rows": 0}
    if not set(models) <= set(notes["models"]):
      return None
    wanted = [notes["models"].index(model) for model in models]
    count = jax.tree.leaves(template)[0].shape[0]
    wanted += wanted[-1:] * (count - len(wanted))
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((notes["rows"], *leaf.shape[1:]), leaf.dtype),
      template,
    )
    kept = self.store.load(name, shapes)
    if kept is None:
      return None
    return jax.tree.map(lambda leaf: leaf[np.array(wanted)], kept)

  def _append(self, row):
    if jax.process_count() > 1:
      row["process"] = jax.process_index()
    self.history.append(row)
    if self.store:
      self.store.append_metrics(row)

  def _forget_rows(self, name, done):
    """Drop the rows of epochs that are trained again."""
    kept = [r for r in self.history if r["models"] != name or r["epoch"] < done]
    if self.store and len(kept) < len(self.history):
      self.store.write_metrics(kept)
    self.history = kept


def _one_epoch(program, training, states, epoch, models):
  """Train one epoch; returns the states and the row for metrics.jsonl.

  The row holds means over the models whose loss is finite.
  """
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
  count = len(models)
  sums = {name: np.asarray(value, np.float64)[:count] for name, value in sums.items()}
  if sums.pop("overflow").any():
    raise RuntimeError(
      f"epoch {epoch}: a batch drew more members than its {training.plan.capacity} "
      f"places, which happens once in 1e9 trainings: train with another seed"
    )
  sound = np.isfinite(list(sums.values())).all(0)
  row = {"epoch": epoch}
  if not sound.all():
    row["diverged"] = [models[place] for place in np.flatnonzero(~sound)]
    sound = sound if sound.any() else ~sound
  means = {name: float(value[sound].mean()) / steps for name, value in sums.items()}
  seconds = round(time.monotonic() - started, 4)
  return states, {**row, **means, "seconds": seconds}

"""Train the missing models of an ensemble, and query them while they are in memory."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mixdef.core import registry
from mixdef.core.files import path_of
from mixdef.core.learner import Learner, TrainState
from mixdef.data import Dataset
from mixdef.training import devices
from mixdef.training.agreement import Agreement, agree, made_from_alone
from mixdef.training.ensemble import Ensemble
from mixdef.training.entry import is_key
from mixdef.training.lock import locked
from mixdef.training.loop import Loop
from mixdef.training.options import Options
from mixdef.training.prepare import Training
from mixdef.training.programs import programs
from mixdef.training.progress import Progress
from mixdef.training.store import Store
from mixdef.training.stored import NOTES, Stored, joined, name_of, rows_of
from mixdef.training.traces import Trace, TraceLog, default_every


@dataclasses.dataclass(frozen=True)
class Shadows:
  """An ensemble in training, processed chunk by chunk; see `open_shadows`."""

  source: Learner | Callable[..., Learner]
  data: Dataset
  members: np.ndarray
  options: Options
  agreed: Agreement
  store: Any  # Store | None, used only if there is one
  loop: Loop

  def train(self) -> TrainState | None:
    """Train the missing models chunk by chunk; one of several processes its share.

    With a run folder, finished models are found there, and a chunk is written and
    queried before the next one is trained, so that memory does not grow with S.

    Returns:
      The states of all models if there is no run folder, else None.
    """
    epochs = self.agreed.training.work // len(self.members)
    parts = []
    for chunk in _chunks(len(self.members), self.agreed.models_at_once, self.store):
      found = {model: self._read(model) for model in chunk}
      lost = [
        model for model in chunk if found[model] is None and not self._done(model)
      ]
      self.loop.progress.resume(epochs * (len(chunk) - len(lost)))
      if lost:
        states = self._train(lost)
        if self.store or len(chunk) < len(self.members):
          states = _to_host(states)
        self._keep(lost, states)
        if self.store is None:
          parts.append(states)
          continue
        found |= {model: rows_of(states, place) for place, model in enumerate(lost)}
      self._query({model: state for model, state in found.items() if state is not None})
      self.loop.forget(chunk)
    if parts:
      return parts[0] if len(parts) == 1 else joined(parts)
    return None

  def ensemble(self, states: TrainState | None) -> Ensemble:
    """Return the models as an ensemble, in the run folder if `states` is None."""
    models = range(len(self.members))
    return self._ensemble(models, states or self._stored(models, {}))

  @property
  def trace(self) -> Trace | None:
    """The losses during the training of the only model, if they were kept."""
    return self.loop.read_trace(self.agreed.training)

  def _ensemble(self, models: Sequence[int], held: TrainState | Stored) -> Ensemble:
    chosen = np.array(models)
    values = self.agreed.training.values.items()
    return Ensemble(
      source=self.source,
      values={name: value[chosen] for name, value in values},
      held=held,
      members=self.members[chosen],
      data=self.data,
      plan=self.agreed.training.plan,
      strategy=self.agreed.strategy,
      noise=self.agreed.noise,
      history=self.loop.history,
      models_at_once=self.agreed.models_at_once,
    )

  def _stored(self, models, recent):
    return Stored(
      self.store, np.array(models), self._made_from, self._read, self.data, recent
    )

  def _made_from(self, model: int) -> dict[str, Any]:
    """Return everything that determines a model, with arrays as digests."""
    return {**self.agreed.made_from, **made_from_alone(self.agreed.training, model)}

  def _notes(self, model):
    name = name_of(model)
    return self.store.notes(name, NOTES) if self.store.has(name) else None

  def _read(self, model):
    """Return a model of the store, or None without intact parameters."""
    notes = self.store and self._notes(model)
    if not (notes and notes["parameters"]):
      return None
    return self.store.load(name_of(model), self._shapes)

  def _done(self, model):
    """Return whether the outputs of a model, which are all that is kept, are kept."""
    if self.store is None or self.options.keep_params:
      return False
    notes = self._notes(model)
    if notes is None:
      return False
    return notes["diverged"] or self._outputs.has(self.store, model)

  @functools.cached_property
  def _outputs(self) -> Any:
    """Return the query whose outputs are kept, or None."""
    if self.options.signals is None:
      return None
    query: Any = registry.SIGNALS[self.agreed.training.learner.kind]
    return query.named(self.data, **self.options.signals)

  def _query(self, found):
    """Query the models whose outputs are not in the store."""
    if self._outputs is None:
      return
    models = [model for model in found if not self._outputs.has(self.store, model)]
    if models:
      ensemble = self._ensemble(models, self._stored(models, dict(found)))
      sound = ~ensemble.diverged
      if sound.any():
        self._outputs(ensemble.select(sound))

  @functools.cached_property
  def _shapes(self):
    """Return the shapes and types of one finished model."""
    one = self.agreed.training.select([0])
    program = programs(self.source, one.plan, "loop")
    table = jax.eval_shape(one.zero_table)
    fresh = jax.eval_shape(program.init, one.keys, table, one.values, one.data)
    done = jax.eval_shape(program.finish, fresh, one.values, one.rows, one.data)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), done
    )

  def _keep(self, models, states):
    """Write trained models to the store, if there is one; warn if some diverged."""
    ensemble = self._ensemble(models, states)
    diverged = ensemble.diverged
    for model in np.array(models)[diverged]:
      logging.warning("model %d diverged: its parameters are not finite", model)
    for place, model in enumerate(models if self.store else []):
      self.store.save(
        name_of(model),
        rows_of(states, place) if self.options.keep_params else {},
        made_from=self._made_from(model),
        diverged=bool(diverged[place]),
        guarantee=ensemble[place].guarantee,
        parameters=self.options.keep_params,
      )

  def _train(self, models):
    """Train models; vmapped chunks are padded, so that all use the same program."""
    count = len(models)
    whole = self.agreed.models_at_once if self.agreed.strategy == "vmap" else count
    fill = devices.evenly(whole, self.agreed.strategy) - count
    rows = models + models[-1:] * fill
    if fill:
      logging.info(
        "%d of %d places repeat model %d to fill the program; the copies are dropped",
        *(fill, len(rows), models[-1]),
      )
    states = self.loop.run(
      self.agreed.training.select(rows), self.agreed.strategy, models
    )
    return rows_of(states, slice(count))


@contextlib.contextmanager
def open_shadows(
  source: Learner | Callable[..., Learner],
  data: Dataset,
  training: Training,
  options: Options,
) -> Iterator[Shadows]:
  """Lock a run folder, check that it matches the training, and yield its `Shadows`.

  Args:
    source: as `learner` of `fit_many`.
    data: the records.
    training: the training returned by `prepare`.
    options: the options of the training.

  Raises:
    AnotherRun: if the folder holds models made from other things.
    BlockingIOError: if another run is writing there.
  """
  store = None if options.out is None else Store(path_of(options.out, "out"))
  processes = jax.process_count() if store else 1  # alone without a shared folder
  first = jax.process_index() == 0
  with contextlib.ExitStack() as held:

    def begin():
      nonlocal store
      if store and first:
        lock = held.enter_context(locked(store.folder))
        store = dataclasses.replace(store, lock=lock)
        store.gather_metrics()
      agreed = agree(
        store,
        training,
        options,
        num_models=-(-training.count // processes),
      )
      own = sum(map(len, _chunks(training.count, agreed.models_at_once, store)))
      work = training.work // training.count * own
      unit = "epoch" if training.work == training.plan.epochs else "model epoch"
      shown = Progress(work, unit=unit, shown=options.progress)
      loop = Loop(store, shown, agreed.made_from, _trace(store, training, options))
      members = np.asarray(training.members)
      return Shadows(source, data, members, options, agreed, store, loop)

    shadows = devices.process0_first(begin) if store else begin()
    try:
      with devices.barrier("trained") if store else contextlib.nullcontext():
        yield shadows
    finally:
      shadows.loop.progress.close()
    if store:
      shadows.loop.history = devices.process0_first(lambda: _gathered(store))


def _trace(store, training, options):
  """Return the log of the losses that `fit` was asked for, or None."""
  if options.trace is None:
    return None
  epochs = training.plan.epochs
  return TraceLog(epochs, options.every or default_every(training.plan), store)


def _gathered(store):
  """Merge what the processes wrote, on process 0, and return the metrics."""
  if jax.process_index() == 0:
    store.gather_metrics()
    store.forget("unfinished")
  return store.read_metrics()


def _chunks(total, size, store):
  """Return the chunks of models of this process: every n-th chunk of n processes."""
  chunks = [range(first, min(first + size, total)) for first in range(0, total, size)]
  return chunks[jax.process_index() :: jax.process_count()] if store else chunks


def _to_host(states):
  """Move states to the host; random keys stay, because numpy cannot represent them."""
  return jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), states)

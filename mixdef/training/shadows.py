"""Train the missing models of an ensemble, loading finished ones from disk."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mixdef.core.files import local_path
from mixdef.core.learner import Learner, TrainState
from mixdef.data import Dataset
from mixdef.training import devices
from mixdef.training.agreement import Agreement, agree, made_from_alone
from mixdef.training.ensemble import Ensemble, Entries
from mixdef.training.entry import is_key
from mixdef.training.loop import Loop
from mixdef.training.options import Options
from mixdef.training.prepare import Training
from mixdef.training.programs import programs
from mixdef.training.progress import Progress
from mixdef.training.store import Store, locked


@dataclasses.dataclass(frozen=True)
class Shadows:
  """An ensemble in training, processed chunk by chunk; see `open_shadows`."""

  source: Learner | Callable[..., Learner]
  data: Dataset
  members: np.ndarray
  agreed: Agreement
  store: Any  # Store | None, used only if there is one
  loop: Loop

  def finished(
    self, wanted: Callable[[int], bool] | None = None, *, keep_params: bool = True
  ) -> Iterator[tuple[list[int], TrainState]]:
    """Yield finished models chunk by chunk; one of several processes yields its share.

    Models found in the store are loaded, and the others are trained. The caller must
    have saved a chunk before requesting the next one, because its checkpoints are
    removed then.

    Args:
      wanted: selects models; defaults to all.
      keep_params: write each finished model to the store.

    Yields:
      Indices of models, and their states with a leading axis.
    """
    epochs = self.agreed.training.work // len(self.members)
    for chunk in _chunks(len(self.members), self.agreed.models_at_once):
      models = [model for model in chunk if wanted is None or wanted(model)]
      kept = {model: self._read(model) for model in models}
      kept = {model: state for model, state in kept.items() if state is not None}
      lost = [model for model in models if model not in kept]
      self.loop.progress.resume(epochs * (len(chunk) - len(lost)))
      if not models:
        continue
      if not lost:
        yield models, _stack([kept[model] for model in models])
        continue
      states = self._train(lost)
      if self.store or len(chunk) < len(self.members):
        states = _to_host(states)
      if self.store and keep_params:
        self._write(lost, states)
      if kept:
        kept |= {model: _row(states, place) for place, model in enumerate(lost)}
        states = _stack([kept[model] for model in models])
      yield models, states
      self.loop.forget(chunk)

  def read(self) -> TrainState:
    """Load the models written by all processes.

    Raises:
      Stopped: if some are missing.
    """
    states = [self._read(model) for model in range(self.agreed.training.count)]
    if any(state is None for state in states):
      raise devices.Stopped(f"{self.store.folder} misses models: run it again")
    return _stack(states)

  def ensemble(self, models: Sequence[int], states: Any) -> Ensemble:
    """Return some of the models as an ensemble; states may be None if never queried."""
    chosen = np.array(models)
    kept = None
    if self.store:
      kept = Entries(self.store, chosen, self.made_from, states, self.data)
    return Ensemble(
      source=self.source,
      values={
        name: value[chosen] for name, value in self.agreed.training.values.items()
      },
      states=states,
      members=self.members[chosen],
      data=self.data,
      plan=self.agreed.training.plan,
      strategy=self.agreed.strategy,
      noise=self.agreed.noise,
      history=self.loop.history,
      models_at_once=self.agreed.models_at_once,
      kept=kept,
    )

  def has(self, model: int) -> bool:
    """Return whether a finished model is in the store and can be read."""
    return self._read(model) is not None

  def made_from(self, model: int) -> dict[str, Any]:
    """Return everything that determines a model, with arrays as digests."""
    return {**self.agreed.made_from, **made_from_alone(self.agreed.training, model)}

  def _read(self, model):
    name = f"models/{model:05d}"
    if not (self.store and self.store.has(name)):
      return None
    return self.store.load(name, self._shapes)

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

  def _write(self, models, states):
    for place, model in enumerate(models):
      name, made_from = f"models/{model:05d}", self.made_from(model)
      self.store.save(name, _row(states, place), made_from=made_from)

  def _train(self, models):
    """Train models; vmapped chunks are padded, so that all use the same program."""
    count = len(models)
    whole = self.agreed.models_at_once if self.agreed.strategy == "vmap" else count
    fill = devices.evenly(whole, self.agreed.strategy) - count
    rows = models + models[-1:] * fill
    states = self.loop.run(
      self.agreed.training.select(rows), self.agreed.strategy, models
    )
    states = jax.tree.map(lambda leaf: leaf[:count], states)
    for model in np.array(models)[self.ensemble(models, states).diverged]:
      logging.warning("model %d diverged: its parameters are not finite", model)
    return states


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
    ValueError: if there is no folder and several processes.
  """
  processes = jax.process_count()
  if options.out is None and processes > 1:
    raise ValueError(
      f"{processes} processes train together: give out, a folder they share"
    )
  store = None if options.out is None else Store(local_path(options.out, "out"))
  first = jax.process_index() == 0
  with contextlib.ExitStack() as held:

    def begin():
      if store and first:
        held.enter_context(locked(store.folder))
        store.gather_metrics()
      agreed = agree(
        store,
        training,
        options,
        num_models=-(-training.count // processes),
      )
      own = sum(map(len, _chunks(training.count, agreed.models_at_once)))
      work = training.work // training.count * own
      shown = Progress(work, unit="epoch", shown=options.progress)
      loop = Loop(store, shown, agreed.made_from)
      members = np.asarray(training.members)
      return Shadows(source, data, members, agreed, store, loop)

    shadows = devices.process0_first(begin)
    try:
      with devices.barrier("trained"):
        yield shadows
    finally:
      shadows.loop.progress.close()
    if store:
      shadows.loop.history = devices.process0_first(lambda: _gathered(store))


def _gathered(store):
  """Merge what the processes wrote, on process 0, and return the metrics."""
  if jax.process_index() == 0:
    store.gather_metrics()
    store.forget("unfinished")
  return store.read_metrics()


def _chunks(total, size):
  """Return the chunks of models of this process: every n-th chunk of n processes."""
  chunks = [range(first, min(first + size, total)) for first in range(0, total, size)]
  return chunks[jax.process_index() :: jax.process_count()]


def _to_host(states):
  """Move states to the host; random keys stay, because numpy cannot represent them."""
  return jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), states)


def _row(states, place):
  return jax.tree.map(lambda leaf: leaf[place], states)


def _stack(states):
  rows = (jax.tree.map(lambda leaf: leaf[None], state) for state in states)
  return jax.tree.map(join, *rows)


def join(*leaves):
  """Concatenate leaves of states along the axis of models, on the host."""
  return (jnp if is_key(leaves[0]) else np).concatenate(leaves)

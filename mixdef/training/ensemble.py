"""The results of training: one `Run`, or an `Ensemble` of S runs."""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core import registry, validate
from mixdef.core.learner import Learner, TrainState
from mixdef.data import Dataset
from mixdef.training.devices import evenly, on_one_device, spread
from mixdef.training.programs import programs, query_program
from mixdef.training.sampling import Plan
from mixdef.training.stored import Stored, rows_of
from mixdef.training.traces import Trace

_AT_ONCE = 4  # concurrent blocks on a CPU; each holds its own activations
READ_OFF = "read off the membership"
BLOCK = 256  # records per forward pass; one size, so one program and equal outputs


def predict_in_blocks(
  predict: Callable, states, values, *rows, size: int = BLOCK
) -> np.ndarray:
  """Predict on rows [B,...] in padded blocks of one size: float32 [S,B,K].

  A single size means a single compiled program, and the prediction for a record does
  not depend on the other queried records.

  Raises:
    ValueError: for no records.
  """
  count = len(rows[0])
  if not count:
    raise ValueError("x holds 0 records: nothing to predict")

  def predicted_block(first):
    blocks = [array[first : first + size] for array in rows]
    missing = size - len(blocks[0])
    if missing:
      blocks = [
        np.concatenate([block, np.repeat(np.asarray(block[:1]), missing, 0)])
        for block in blocks
      ]
    predicted = predict(states, values, *map(jnp.asarray, blocks))
    return np.asarray(predicted)[:, : size - missing]

  first, *others = range(0, count, size)
  blocks = [predicted_block(first)]  # compiles once
  # A convolution uses only one CPU core, so blocks are evaluated concurrently there.
  busy = min(os.cpu_count() or 1, _AT_ONCE) if jax.default_backend() == "cpu" else 1
  with ThreadPoolExecutor(busy) as pool:
    blocks += pool.map(predicted_block, others)
  return np.concatenate(blocks, 1)


def _learner(source, values) -> Learner:
  """Return a learner, made of its hyper-parameters if the source is a function."""
  return source if isinstance(source, Learner) else source(**values)


def _training_seconds(history: list[dict]) -> float:
  """Return the seconds spent in the epochs of a history, including earlier runs.

  With several processes, which train concurrently, the slowest one counts.
  """
  spent = collections.Counter()
  for row in history:
    spent[row.get("process", 0)] += row.get("seconds", 0.0)
  return max(spent.values(), default=0.0)


@dataclasses.dataclass(frozen=True)
class Run:
  """One trained model: its `state` and its `members` bool [N].

  `history` and `seconds` are those of the training it was part of. `noise` is the
  origin of the noise seed, if the defense states an epsilon. `trace` holds the losses
  of all records during the training, if `fit` was asked for them.
  """

  source: Learner | Callable[..., Learner]
  values: dict[str, Any]
  state: TrainState
  members: np.ndarray
  data: Dataset
  plan: Plan
  history: list[dict]
  noise: str | None = None
  trace: Trace | None = None

  @property
  def learner(self) -> Learner:
    """The learner that was trained; `learner.predict(state, x)` can be traced."""
    return _learner(self.source, self.values)

  def log_probs(self, x, *, raw: bool = False, checked: bool = True) -> np.ndarray:
    """Return the released model's log-probabilities [B,K] for records x [B,...].

    Args:
      x: records as in the data set: uint8 images or float32.
      raw: skip the output hooks (masked or noised outputs).
      checked: reject values that cannot be such records. Attacks that perturb records
        set it to False, because they also query points outside the valid range.

    Raises:
      ValueError: for records of another shape, type or scale than the training's.
    """
    x = validate.queries(x, self.data.x) if checked else x
    program = programs(self.source, self.plan, "loop")
    own = (self.state, self.values)
    states, values = jax.tree.map(lambda leaf: leaf[None], own)
    predict = program.raw if raw else program.predict
    return predict_in_blocks(predict, states, values, x)[0]

  def accuracy(self, x: Any, y: Any = None) -> float:
    """Return the fraction of records whose most likely class is y, in [0,1].

    Args:
      x: records [B,...], as for `log_probs`, or a `Dataset`.
      y: labels [B], integers in [0, num_classes); those of the `Dataset` by default.

    Raises:
      ValueError: for other records or labels.
    """
    if isinstance(x, Dataset):
      x, y = x.x, x.y if y is None else y
    x, y = validate.queries(x, self.data.x), validate.labels(y, "y")
    validate.lengths(x, y)
    validate.label_range(y, self.data.num_classes, "y")
    return float((self.log_probs(x).argmax(-1) == y).mean())

  def query(self, function: Callable, *rows, size: int = BLOCK) -> np.ndarray:
    """Evaluate a custom function of the model on rows; see `Ensemble.query`.

    Returns:
      [B,...].
    """
    where = self.plan.platform, "loop"
    program = query_program(self.source, *where, function, len(rows))
    own = (self.state, self.values)
    states, values = jax.tree.map(lambda leaf: leaf[None], own)
    return predict_in_blocks(program, states, values, *rows, size=size)[0]

  @property
  def seconds(self) -> float:
    """Seconds the epochs took, those of interrupted runs included."""
    return _training_seconds(self.history)

  @property
  def diverged(self) -> bool:
    """Whether the model has non-finite parameters, or returns NaN."""
    leaves = jax.tree.leaves((self.state.params, self.state.stats))
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves):
      return True
    return bool(np.isnan(self.log_probs(self.data.x[:BLOCK])).any())

  @property
  def guarantee(self) -> dict[str, Any]:
    """The `epsilon` and `delta` stated by the defense, or None.

    If an epsilon is stated, `num_members` says whether the size of the training set was
    given or computed from the membership matrix, and `noise_seed` says whether the
    noise seed was drawn or given; knowledge of the seed allows subtracting the noise.
    Where records belong to groups, `unit` says whether it protects a "record" or a
    "person" with all records. `excludes` says that the columns of a table were encoded
    by statistics of the records. `accounting` holds what epsilon was computed from,
    and its two bounds, for a defense that samples by Poisson.
    """
    states = self.learner.guarantee
    fitted = self.data.schema is not None and self.data.schema.fitted
    if states:
      stated = states(self.state)
      # States are float32, so round to seven digits.
      known = {name: float(f"{value:.6g}") for name, value in stated.items()}
      epsilon, delta = known.pop("epsilon"), known.pop("delta")
      known = {n: value if math.isfinite(value) else None for n, value in known.items()}
      if math.isfinite(epsilon):
        return {
          "epsilon": epsilon,
          "delta": delta,
          **(
            {"accounting": {"sampling": self.plan.sampling, **known}} if known else {}
          ),
          "num_members": "given" if self.plan.size_given else READ_OFF,
          "noise_seed": self.noise,
          **({} if self.data.groups is None else {"unit": self.plan.unit}),
          **({"excludes": "encoding of columns"} if fitted else {}),
        }
    return {"epsilon": None, "delta": None}


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """S models trained on subsets of the same records.

  `states` have the leading axis S; `held` are the states, or `Stored`, which loads them
  from a run folder when they are used. `members` bool [S,N] is the membership matrix;
  `values` holds the hyper-parameters that differ between models. `ensemble[s]` is one
  `Run`.
  """

  source: Learner | Callable[..., Learner]
  values: dict[str, Any]
  held: TrainState | Stored
  members: np.ndarray
  data: Dataset
  plan: Plan
  strategy: str
  models_at_once: int
  history: list[dict]
  noise: str | None = None

  def __len__(self) -> int:
    return len(self.members)

  @property
  def learner(self) -> Learner:
    """The learner of the first model."""
    return _learner(self.source, rows_of(self.values, 0))

  @property
  def states(self) -> TrainState:
    """The states of all models, with the leading axis S, in memory.

    Raises:
      Stopped: if the run folder lacks some.
    """
    return self.held.read() if isinstance(self.held, Stored) else self.held

  @property
  def stored(self) -> Stored | None:
    """Where the models are in a run folder; None if weights or records changed."""
    held = self.held
    return held if isinstance(held, Stored) and held.data is self.data else None

  @property
  def guarantee(self) -> dict[str, Any]:
    """What the defense states of the first model; see `Run.guarantee`."""
    stored = self.stored
    return stored.select([0]).notes[0]["guarantee"] if stored else self[0].guarantee

  @property
  def seconds(self) -> float:
    """Seconds the epochs took, those of interrupted runs included."""
    return _training_seconds(self.history)

  @property
  def per_minute(self) -> float:
    """Models trained per minute, including their teachers; NaN if none was trained."""
    rows = [row for row in self.history if row["models"].startswith("models-")]
    trained = sum(row["count"] for row in rows) / self.plan.epochs
    return 60 * trained / self.seconds if self.seconds else math.nan

  def __getitem__(self, s: int) -> Run:
    if not -len(self) <= s < len(self):
      raise IndexError(f"model {s} of an ensemble of {len(self)}")
    one = self.select([s])
    state, values = jax.tree.map(lambda leaf: leaf[0], (one.states, one.values))
    return Run(
      self.source,
      values,
      state,
      self.members[s],
      self.data,
      self.plan,
      self.history,
      self.noise,
    )

  @property
  def diverged(self) -> np.ndarray:
    """Whether each model has non-finite parameters or returns NaN: bool [S]."""
    if self.stored:
      return np.array([notes["diverged"] for notes in self.stored.notes])
    states = self.states
    finite = [
      np.isfinite(np.asarray(leaf, np.float32)).reshape(len(self), -1).all(1)
      for leaf in jax.tree.leaves((states.params, states.stats))
    ]
    silent = np.isnan(self.log_probs(self.data.x[:BLOCK])).any((1, 2))
    return silent | ~np.all(finite, axis=0)

  def converged(self) -> "Ensemble":
    """Return the ensemble of the models that did not diverge.

    Raises:
      ValueError: if all did.
    """
    broken = self.diverged
    if broken.all():
      raise ValueError("all models diverged: train with a lower learning rate")
    return self.select(~broken) if broken.any() else self

  def select(self, models: slice | np.ndarray | Sequence[int]) -> "Ensemble":
    """Return an ensemble of some models, given as a slice, a mask or indices."""
    models = models if isinstance(models, slice) else np.asarray(models)
    values, members = rows_of((self.values, self.members), models)
    held = self.held
    held = held.select(models) if isinstance(held, Stored) else rows_of(held, models)
    return dataclasses.replace(self, held=held, values=values, members=members)

  def log_probs(self, x, *, raw: bool = False) -> np.ndarray:
    """Return every released model's log-probabilities [S,B,K] for records x [B,...].

    Args:
      x: records as in the data set: uint8 images or float32.
      raw: skip the output hooks (masked or noised outputs).

    Raises:
      ValueError: for records of another shape, type or scale than the training's.
    """
    x = validate.queries(x, self.data.x)
    return np.concatenate([predict(x) for _, predict in self.chunks(raw=raw)])

  def chunks(self, *, raw: bool = False) -> Iterator[tuple[slice, Callable]]:
    """Yield chunks of models that fit in memory, each with its predict function.

    Run all queries on one chunk before the next, so that its states are moved to the
    device only once.

    Args:
      raw: skip the output hooks (masked or noised outputs).

    Yields:
      The slice of models, and `x [B,...] -> log-probabilities [S',B,K]` of those S'.
    """
    program = programs(self.source, self.plan, self.strategy)
    yield from self._queried(program.raw if raw else program.predict)

  def query(self, function: Callable, *rows, size: int = BLOCK) -> np.ndarray:
    """Evaluate a custom function of every model on rows.

    Args:
      function: `(learner, state, *rows [B,...]) -> [B,...]`, traced; passing the same
        object again reuses its compiled program.
      *rows: arrays of equal length.
      size: number of rows per call.

    Returns:
      [S,B,...].
    """
    where = self.plan.platform, self.strategy
    program = query_program(self.source, *where, function, len(rows))
    return np.concatenate([one(*rows, size=size) for _, one in self._queried(program)])

  def signals(
    self,
    *,
    population: Dataset | None = None,
    views: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: bool = False,
    **options: Any,
  ) -> Any:
    """Query every model on every record, for the attacks.

    Args:
      population: records that no model trained on, such as `data.test`, for attacks
        that calibrate on them.
      views: x [B,...] -> [B,Q,...], the views of a record to query, with the record
        itself as view 0; by default the record alone. See `mixdef.attacks.VIEWS`.
      progress: show a progress bar (on a terminal) or progress lines.
      **options: for classifiers `log_probs` (keep them, default True); for GANs
        `num_fakes` (latents in the critics' baseline, default 64).

    Returns:
      `Signals` [S,N,Q] of classifiers, or `GanSignals` [S,N,1] of GANs.

    Raises:
      ValueError: if a model outputs NaN, the views have another shape, or the
        population holds records of another shape or type.
    """
    validate.asked(population, views)
    query = registry.SIGNALS[self.learner.kind]
    return query(self, population=population, views=views, progress=progress, **options)

  def _queried(self, predict):
    for first in range(0, len(self), self.models_at_once):
      models = slice(first, first + self.models_at_once)
      count = min(self.models_at_once, len(self) - first)
      fill = np.minimum(np.arange(evenly(count, self.strategy)), count - 1)
      own = self.select(first + fill)
      place = spread if self.strategy in ("vmap", "scan") else on_one_device
      function = functools.partial(
        predict_in_blocks, predict, *place((own.states, own.values))
      )
      yield (
        models,
        lambda *rows, function=function, count=count, **how: function(*rows, **how)[
          :count
        ],
      )

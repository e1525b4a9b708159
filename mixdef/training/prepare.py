"""Inputs of the training of S models, including the teachers of earlier stages."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mixdef.core import validate
from mixdef.core.hooks import Data, Featured, Rows
from mixdef.core.learner import Learner
from mixdef.core.mapped import MappedRecords
from mixdef.core.randomness import fold_in_name, row_keys
from mixdef.core.streamed import Block
from mixdef.models.features import NoFeatures
from mixdef.training.devices import aligned, on_all_devices
from mixdef.training.programs import of_one, programs, query_program
from mixdef.training.sampling import Persons, Plan, make_plan, persons_of

_ROWS = jnp.int32, jnp.float32, jnp.float32  # index, weight, auxiliary

_ROW_BYTES = 12  # index, weight and auxiliary


@dataclasses.dataclass(frozen=True)
class Training:
  """S models to train; leaves have the leading axis S, and `data` is shared.

  `source` builds the learner from a model's hyper-parameters `values`; `learner` is the
  first model's. `records` are those of the data set, on the host. `data` is on the
  devices, with all records after `resident`, and before or else one of them as an
  example. `members` marks the members, `rows` the records trained on, and `teachers`
  are the S*M models of the previous stage. `block` is the number of bytes of records
  that are read at once if they are streamed. `persons` are there if steps draw persons.
  """

  source: Learner | Callable
  learner: Learner
  values: dict
  records: Any
  data: Data | Featured
  members: Any
  rows: Any
  keys: Any
  plan: Plan
  teachers: "Training | None" = None
  block: float = 0.0
  persons: Persons | None = None

  @property
  def count(self) -> int:
    """Number of models S."""
    return len(self.members)

  @property
  def work(self) -> int:
    """Total number of model epochs, including the teachers'."""
    return self.count * self.plan.epochs + (self.teachers.work if self.teachers else 0)

  @property
  def streamed(self) -> bool:
    """Whether the records are read during training, in blocks."""
    return len(self.data.x) < len(self.records)

  def resident(self, spare: float = math.inf) -> "Training":
    """Return the training with all records on the devices, the teachers' included.

    Args:
      spare: bytes that the features of frozen layers may take.
    """
    x = self.records
    if isinstance(x, MappedRecords):
      x, first = aligned(x.shape, x.dtype), 0
      for block in self.records.blocks():
        x[first : first + len(block)] = block
        first += len(block)
    return self._with(self.data._replace(x=on_all_devices(x)), 0.0)._featured(spare)

  def _featured(self, spare):
    """Return the training with the features of frozen layers, if steps can use them."""
    teachers = self.teachers and self.teachers._featured(spare)
    training = dataclasses.replace(self, teachers=teachers)
    return _with_features(training, spare) if self.learner.features else training

  def streaming(self, block: float) -> "Training":
    """Return the training whose records are read in blocks of so many bytes."""
    return self._with(self.data, block)

  def _with(self, data, block):
    teachers = self.teachers and self.teachers._with(data, block)
    return dataclasses.replace(self, data=data, block=block, teachers=teachers)

  def _rows(self, count):
    """Return the number of rows in a step of `count` models."""
    return count * self.plan.step_rows

  def group(self, count: int) -> tuple[int, int]:
    """Return how many steps of `count` models share a block, and its records."""
    rows, total = self._rows(count), self.plan.steps_per_epoch
    most = max(1, int(self.block / (rows * self.records[:1].nbytes)))
    steps = -(-total // -(-total // most))
    return steps, min(self.plan.num_records, steps * rows)

  def dealt_bytes(self, count: int) -> int:
    """Return the bytes of the rows of an epoch of `count` models."""
    return _ROW_BYTES * self._rows(count) * self.plan.steps_per_epoch

  def select(self, models) -> "Training":
    """Return the training of some of the models, with their teachers."""
    models = np.asarray(list(models))
    teachers = self.teachers
    if teachers:
      each = self.learner.stages[0][0].models
      teachers = teachers.select((models[:, None] * each + np.arange(each)).ravel())
    own = (self.values, self.members, self.rows, self.keys)
    values, members, rows, keys = jax.tree.map(lambda leaf: leaf[models], own)
    return dataclasses.replace(
      self, values=values, members=members, rows=rows, keys=keys, teachers=teachers
    )

  @property
  def capacities(self) -> list[int]:
    """Batch capacity in member rows, followed by the teachers' capacities."""
    return [self.plan.capacity, *(self.teachers.capacities if self.teachers else [])]

  def with_noise(self, seed: int) -> "Training":
    """Return the training with this seed folded into all keys, the teachers' too."""
    keys = fold_keys(self.keys, "noise")
    for word in np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32):
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys, word)
    teachers = self.teachers and self.teachers.with_noise(seed)
    return dataclasses.replace(self, keys=keys, teachers=teachers)

  def with_capacities(self, least: list[int]) -> "Training":
    """Return the training with at least the batch capacities of an earlier run."""
    own, *theirs = least
    return dataclasses.replace(
      self,
      plan=self.plan._replace(capacity=max(own, self.plan.capacity)),
      teachers=self.teachers and self.teachers.with_capacities(theirs),
    )

  def zero_table(self):
    """Return a zero table of shape [S,N,K], or None if there is no previous stage."""
    if not self.teachers:
      return None
    columns = self.learner.stages[0][0].columns or self.plan.num_classes
    return jnp.zeros((self.count, self.plan.num_records, columns))

  def abstract(self, count: int, *, blocks: bool = False) -> Any:
    """Return the argument shapes of `Programs.train` for the first `count` models.

    Args:
      count: number of models.
      blocks: whether `train` is given blocks of records, and not all of them.
    """
    states, values, rows, data, number = self.abstract_epoch(count)
    deal = programs(self.source, self.plan, "vmap").deal
    drawn = rows, data, _shapes(self.persons)
    dealt, metrics = jax.eval_shape(deal, states, values, *drawn, number)
    if blocks:
      size = self.group(count)[1]
      x = jax.ShapeDtypeStruct((size, *data.x.shape[1:]), data.x.dtype)
      data = data._replace(x=Block(x, jax.ShapeDtypeStruct((size,), jnp.int32)))
    return states, values, dealt, metrics, data, number, number, number

  def abstract_epoch(self, count: int) -> Any:
    """Return the argument shapes of `Programs.epoch`; `deal` has `persons` too."""
    part = self.select(range(count))
    init = programs(self.source, self.plan, "vmap").init
    table = jax.eval_shape(part.zero_table)
    # The shapes of all records, whether or not they are streamed.
    x = jax.ShapeDtypeStruct(self.records.shape, self.records.dtype)
    data = _shapes(self.data._replace(x=x))
    states = jax.eval_shape(init, part.keys, table, part.values, data)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return *_shapes((states, part.values, part.rows)), data, number

  def program_text(self) -> str:
    """Return the lowered text of one model's training and prediction.

    It changes with the model, optimizer and defense, whether or not these have a text,
    and with nothing else. In particular, it depends neither on the batch capacity nor
    on where features are computed.
    """
    smallest = dataclasses.replace(
      self,
      plan=self.plan._replace(capacity=1),
      data=Data(*self.data[:3]),
    )
    function = of_one(self.source, smallest.plan)
    states, values, dealt, metrics, data, number, *_ = smallest.abstract(1)
    rows = smallest.abstract_epoch(1)[2]
    one = self.select([0])
    own = states, values, rows, one.keys, one.zero_table(), dealt, metrics
    state, values, rows, key, table, dealt, metrics = _of_one(own)
    record = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
    called: list[tuple] = [
      (function.init, key, table, values, data),
      (function.deal, state, values, rows, data, _shapes(self.persons), number),
      (function.train, state, values, dealt, metrics, data, number, number, number),
      (function.finish, state, values, rows, data),
      (function.predict, state, values, record),
    ]
    if self.learner.epoch:
      called.append((function.epoch, state, values, rows, data, number))
    lowered = [jax.jit(each).lower(*arguments) for each, *arguments in called]
    if self.teachers:
      lowered.append(self._lowered_table(self.teachers))
    text = "".join(one.as_text() for one in lowered)
    return text + (self.teachers.program_text() if self.teachers else "")

  def _lowered_table(self, teachers):
    """Lower the program that turns the teachers' outputs into one model's table."""
    ((stage, _),) = self.learner.stages
    states, values, rows, data, _ = teachers.abstract_epoch(1)
    predict, rows_of = programs(teachers.source, teachers.plan, "vmap").raw, (data.x,)
    if stage.query:
      platform = teachers.plan.platform
      predict = query_program(teachers.source, platform, "vmap", stage.query, 2)
      rows_of = data.x, data.y
    log_probs = jax.eval_shape(predict, states, values, *rows_of)
    one, kept = _shapes((self.keys[0], self.members[0]))

    def of_all(leaf):
      return jax.ShapeDtypeStruct((stage.models, *leaf.shape[1:]), leaf.dtype)

    return jax.jit(stage.table).lower(one, of_all(log_probs), of_all(rows), kept)


def _shapes(tree):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _of_one(tree):
  """Return the shapes of one model, of arrays with the leading axis S."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree
  )


def prepare(
  source, values, data, members, keys, *, epochs, batch_size, num_members, shared=None
):
  """Check the inputs of a training and build it; arguments as in `fit_many`.

  The device holds only one record until `Training.resident` is called. `shared` are the
  `Data` of the training whose teachers these are.
  """
  first = {name: value[0] for name, value in values.items()}
  learner = source if isinstance(source, Learner) else source(**first)
  if not isinstance(learner, Learner):
    raise TypeError(
      f"learner returned a {type(learner).__name__} for {first}: with sweep=, pass a "
      "function (**values) -> classifier(model, optimizer)"
    )
  if learner.traits.needs_auxiliary and not data.auxiliary.any():
    raise ValueError(
      "the defense needs auxiliary records of the defender, but there are none: use "
      "data.with_auxiliary(500), or --auxiliary=500"
    )
  if data.standardized and learner.guarantee:
    raise ValueError(
      f"{data.name} was standardized by the moments of its own records, which the "
      "epsilon of the training does not cover: pass the original records, or use "
      "data.standardize(public) with the moments of public records"
    )
  if learner.traits.quantities:
    validate.quantities(
      data.x, "a part of the defense that mixes, perturbs or crops records"
    )
  if learner.generate:
    validate.quantities(data.x, "a generator")
    _check_unit_range(data)
  device = shared or on_all_devices(Data(data.x[:1], data.y, data.auxiliary))
  rows = members = jnp.asarray(members)
  if learner.rows:
    rows = _choose(learner.rows, fold_keys(keys, "rows"), members, device.auxiliary)
  persons = None
  if learner.traits.per_person:
    _refuse_persons(learner, data)
    persons = on_all_devices(persons_of(data, rows))
  plan = make_plan(
    learner.traits,
    data,
    rows,
    epochs=epochs,
    batch_size=batch_size,
    num_members=None if learner.rows else num_members,
    num_shards=learner.num_shards,
  )
  if values and learner.traits.per_example and not learner.stages:
    # Traced values cannot be checked, so check those of the first model here.
    spec = plan.spec(device, None)
    jax.eval_shape(lambda key: learner.init(key, spec), keys[0])
  teachers = None
  if learner.stages:
    ((stage, teacher),) = learner.stages
    each = jnp.arange(stage.models)
    stage_keys = fold_keys(keys, "stage")
    their_rows = _choose(stage.rows, stage_keys, members, device.auxiliary)
    their_keys = jax.vmap(row_keys, in_axes=(0, None))(fold_keys(keys, "teacher"), each)
    teachers = prepare(
      teacher if isinstance(source, Learner) else _teacher_of(source),
      jax.tree.map(lambda leaf: jnp.repeat(leaf, stage.models, 0), values),
      data,
      np.asarray(their_rows).reshape(-1, len(data)),
      their_keys.reshape(-1),
      epochs=epochs,
      batch_size=batch_size,
      num_members=_teacher_size(num_members, stage, stage_keys[0], device.auxiliary),
      shared=device,
    )
  own = source, learner, values, data.x, device, members, rows, keys, plan
  return Training(*own, teachers, persons=persons)


def _with_features(training, spare):
  """Compute what frozen layers make of the records, if the steps can use it."""
  plan, data = training.plan, training.data
  states, _, _, shapes, number = training.abstract_epoch(1)
  state, key = _of_one((states, training.keys))
  rows = [jax.ShapeDtypeStruct((plan.step_rows,), kind) for kind in _ROWS]
  where = plan.position(key, number, number)
  try:
    features = training.learner.features(state, shapes, Rows(*rows), where)
    found = jax.eval_shape(features, data.x)
    needed = found.size * found.dtype.itemsize
    if needed > spare:
      raise NoFeatures(f"they need {needed / 1e9:.3g} GB of {spare / 1e9:.3g} GB")
  except NoFeatures as reason:
    logging.info("features of frozen layers are computed in every step: %s", reason)
    return training
  logging.info(
    "features of the frozen layers are computed once (%d records, %d numbers each)",
    *(len(found), found.size // len(found)),
  )
  found = on_all_devices(jax.jit(features)(data.x))
  return dataclasses.replace(
    training, data=Featured(data.x, data.y, data.auxiliary, found)
  )


def _refuse_persons(learner, data):
  """Raise if steps cannot draw persons, as a part of the chain does."""
  fault = None
  if data.groups is None:
    fault = f"{data.name} has no groups: pass groups= to the data set, or --group"
  elif learner.generate:
    fault = "a GAN draws records: use unit='record'"
  elif learner.traits.auxiliary_rows:
    fault = "another part adds auxiliary records to them: drop one"
  if fault:
    raise ValueError(f"unit='person' draws persons, and {fault}")


def _check_unit_range(data):
  """Raise if records lie outside [0,1], the range of generators (uint8 is 0..255)."""
  x = data.x
  if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):
    raise ValueError(
      f"{data.name} has values from {x.min():.4g} to {x.max():.4g}, but generators "
      "produce values in [0,1]: rescale the records, and remove --standardize"
    )


def _choose(rows, keys, members, auxiliary):
  """Select the rows of each model, one model at a time.

  A selection may draw per record and teacher, which for S models at once would need
  much memory.
  """
  return jax.lax.map(lambda own: rows(*own, auxiliary), (keys, members))


def _teacher_size(num_members, stage, key, auxiliary):
  """Return the public size of a teacher's training set.

  Its share of `num_members` is its share of the records if all of them were members.
  """
  if num_members is None:
    return None
  everyone = ~auxiliary
  share = stage.rows(key, everyone, auxiliary).sum() / (stage.models * everyone.sum())
  return max(1, round(num_members * float(share)))


def _teacher_of(source):
  return lambda **values: source(**values).stages[0][1]


def fold_keys(keys, name):
  """Derive the random stream of this name from each model's key."""
  return jax.vmap(lambda key: fold_in_name(key, name))(keys)

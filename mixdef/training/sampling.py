"""Sizes of a training and the rows of its steps: epochs, Poisson draws, shards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core import validate
from mixdef.core.hooks import Ctx, Data, Rows, Spec
from mixdef.core.platform import platform
from mixdef.core.randomness import drawn, fold_in_name

_COUNTED = 2**31 - 1  # int32


class Persons(NamedTuple):
  """The records of each of G persons: `order` [N] holds their ids, person by person.

  Those of person g begin at place `first[g]`, and are `size[g]` many.
  """

  order: Any
  first: Any
  size: Any


class Plan(NamedTuple):
  """Static sizes; hashable, so they key the cache of compiled programs.

  Steps per epoch and the sampling probability are derived from the public
  `num_members`. `capacity` is the number of members that a step can hold for each
  of the `num_shards` shards of the members; `auxiliary_rows` is the number of auxiliary
  rows added to a step. `size_given` says whether `num_members` was given or computed
  from the membership. With `per_person`, members and batches are counted in persons,
  each of which takes that many rows of a step. With `bands`, the members are in so many
  random groups that take turns, and a step draws from one of them. `platform` is what
  its programs are traced for, "cpu", "gpu" or "tpu".
  """

  num_records: int
  num_members: int
  num_classes: int
  batch_size: int
  steps_per_epoch: int
  epochs: int
  capacity: int
  auxiliary_rows: int
  poisson: bool
  platform: str
  num_shards: int = 1
  size_given: bool = False
  per_person: int = 0
  bands: int = 1

  @property
  def probability(self) -> float:
    """Probability that a member is in a Poisson batch, over its random group."""
    return self.batch_size / self.num_members

  @property
  def unit(self) -> str:
    """What steps draw: "record" or "person"."""
    return "person" if self.per_person else "record"

  @property
  def sampling(self) -> str:
    """How steps draw if `poisson`: "Poisson" or "cyclic Poisson"."""
    return "cyclic Poisson" if self.bands > 1 else "Poisson"

  @property
  def step_rows(self) -> int:
    """Number of rows of a step, padding and auxiliary rows included."""
    own = self.num_shards * self.capacity * max(1, self.per_person)
    return own + self.auxiliary_rows

  def spec(self, data: Data, table) -> Spec:
    """Return the `Spec` that initializes a model of this training."""
    return Spec(
      example=data.x[:1],
      variables=None,
      table=table,
      num_records=self.num_records,
      num_members=self.num_members,
      num_classes=self.num_classes,
      batch_size=self.batch_size,
      steps_per_epoch=self.steps_per_epoch,
      epochs=self.epochs,
    )

  def position(self, key, step, epoch) -> Ctx:
    """Return the `Ctx` of a step, counted over all epochs, and an epoch."""
    return Ctx(
      key=key,
      step=step,
      epoch=epoch,
      epochs=self.epochs,
      steps_per_epoch=self.steps_per_epoch,
      batch_size=self.batch_size,
    )


def make_plan(
  traits, data, rows, *, epochs, batch_size, num_members=None, num_shards=1
) -> Plan:
  """Derive the sizes of a training.

  Args:
    traits: the learner's `Traits`.
    data: a `Dataset`.
    rows: bool [S,N], the rows that each model trains on.
    epochs: number of passes over the members, at least 1.
    batch_size: average number of members per step and shard, at least 1.
    num_members: public size of a training set; defaults to the mean over models. It and
      `batch_size` count persons if `traits.per_person` is set.
    num_shards: number of disjoint shards of the members, which all contribute to a
      step.

  Raises:
    ValueError: for sizes out of range, and for Poisson batches larger than the data.
  """
  sizes = np.asarray(rows)[:, first_records(traits, data)].sum(1)
  size_given = num_members is not None
  if not size_given:
    num_members = max(1, round(float(sizes.mean())))
  epochs = validate.integer(epochs, "epochs", least=1)
  batch_size = validate.integer(batch_size, "batch_size", least=1)
  num_members = validate.integer(num_members, "num_members", least=1)
  steps = -(-num_members // (num_shards * batch_size))
  if steps * epochs > _COUNTED:
    raise ValueError(
      f"epochs={epochs} of {steps} steps each exceed the maximum of {_COUNTED} steps: "
      "reduce epochs"
    )
  poisson = traits.poisson
  if poisson and batch_size > num_members:
    raise ValueError(
      f"batch_size={batch_size} exceeds the {num_members} members, but Poisson "
      "sampling needs a probability of at most 1: reduce batch_size"
    )
  if poisson and traits.bands * batch_size > num_members:
    raise ValueError(
      f"bands={traits.bands} with batches of {batch_size} of {num_members} members "
      "need a probability above 1 in each group: pass at most "
      f"bands={num_members // batch_size}, or reduce batch_size"
    )
  if not poisson and sizes.min() < num_shards * steps:
    each = f" of each of {num_shards} critics" if num_shards > 1 else ""
    raise ValueError(
      f"a model has {sizes.min()} members for the {steps} steps of an epoch{each}: "
      "increase batch_size above "
      f"{batch_size}{', or use fewer critics' * (num_shards > 1)}"
    )
  largest = int(sizes.max())
  capacity = -(-largest // (num_shards * steps))
  if poisson:
    draws = steps * epochs * len(sizes)
    capacity = _poisson_capacity(largest, batch_size, num_members, draws)
  num_reference = int(np.asarray(data.auxiliary).sum())
  return Plan(
    num_records=len(data),
    num_members=int(num_members),
    num_classes=data.num_classes,
    batch_size=int(batch_size),
    steps_per_epoch=steps,
    epochs=int(epochs),
    capacity=capacity,
    auxiliary_rows=-(-num_reference // steps) if traits.auxiliary_rows else 0,
    poisson=poisson,
    platform=platform(),
    num_shards=num_shards,
    size_given=size_given,
    per_person=traits.per_person,
    bands=traits.bands,
  )


def first_records(traits, data) -> np.ndarray:
  """Return the first record [G] of each person that steps draw, or all if they do not.

  Args:
    traits: the learner's `Traits`.
    data: a `Dataset`.
  """
  if not traits.per_person:
    return np.arange(len(data))
  return np.unique(data.units, return_index=True)[1]


def persons_of(data, rows) -> Persons:
  """Return the records of each person of the data.

  Args:
    data: a `Dataset` with groups.
    rows: bool [S,N], the rows that each model trains on.

  Raises:
    ValueError: if a model trains on a part of a person.
  """
  units, rows = data.units, np.asarray(rows)
  order = units.argsort(kind="stable").astype(np.int32)
  size = np.bincount(units).astype(np.int32)
  first = (np.cumsum(size) - size).astype(np.int32)
  split = np.argwhere(rows != rows[:, order[first]][:, units])
  if len(split):
    model, record = split[0]
    name, own = data.groups[record], units == units[record]
    raise ValueError(
      f"members[{model}] selects {rows[model, own].sum()} of {own.sum()} records of "
      f"person {name}: draw whole persons, mixdef.subsets(data, num_models)"
    )
  return Persons(order, first, size)


def _poisson_capacity(size, batch_size, num_members, draws):
  """Return a capacity that Poisson batches exceed in only one of 1e9 trainings.

  It is at least `batch_size`, because a GAN generates that many fake records regardless
  of the number of members.
  """
  from scipy import stats

  drawn = stats.binom.isf(1e-9 / draws, size, batch_size / num_members) + 1
  return max(batch_size, int(min(size, drawn)))


def chunk_of(key, members, num_shards: int):
  """Split the members into disjoint random shards of equal size.

  Args:
    key: the model's key; the same in every epoch.
    members: bool [N], the members.
    num_shards: G, the number of shards.

  Returns:
    int [N], the shard of each member in [0, G); sizes differ by at most one.
  """
  return jnp.argsort(_shuffled(fold_in_name(key, "chunks"), members)) % num_shards


def turns_of(key, count: int, plan: Plan, epoch):
  """Return the first step of an epoch that may draw each member: cyclic Poisson.

  Each member is in one of `plan.bands` random groups, which follows from its id and the
  model's key alone. Step t, counted over all epochs, draws from group t mod bands.

  Args:
    key: the model's key; the same in every epoch.
    count: U, the number of records, or of persons if they are drawn.
    plan: the static sizes.
    epoch: the epoch, from 0.

  Returns:
    int [U] in [0, `plan.bands`); a member's next turns are `plan.bands` steps apart.
  """
  group = jax.random.randint(fold_in_name(key, "bands"), (count,), 0, plan.bands)
  return (group - epoch * plan.steps_per_epoch) % plan.bands


def epoch_rows(key, members, auxiliary, plan, chunk=None, persons=None, turns=None):
  """Prepare one epoch of one model.

  A record's position in the shuffle is a hash of its id and the epoch's key, so it does
  not depend on the other records of the training set. Members are assigned round-robin
  to the steps, so no batch is empty or tiny, whatever the remainder. Poisson batches
  contain each member independently with probability `plan.probability`. Where persons
  are drawn, each has `plan.per_person` adjacent rows: its records, then rows of weight
  0 that repeat them. A person with more records is in a step with a window of them,
  drawn anew.

  Args:
    key: the epoch's key.
    members: bool [N], the rows this model trains on.
    auxiliary: bool [N], the defender's auxiliary records.
    plan: the static sizes.
    chunk: int [N], the shards returned by `chunk_of`, if `plan.num_shards` is more than
      one. The rows of shard g are the g-th block of a step, and each shard is shuffled
      separately.
    persons: the `Persons`, if `plan.per_person` is set.
    turns: int [N] of records, or of persons, returned by `turns_of`, if `plan.bands` is
      more than one. At its turns, a member is drawn with `plan.bands` times the
      probability.

  Returns:
    `step -> (Rows, overflow)`, where overflow counts the drawn members that exceed the
    capacity; the caller must treat a nonzero count as an error.
  """
  order = _shuffled(fold_in_name(key, "members"), members, chunk)
  own = _shuffled(fold_in_name(key, "reference"), auxiliary)
  present, filler = members, order[0]
  if plan.per_person:
    present = members[persons.order[persons.first]]
    filler = present.argmax()
  steps = plan.steps_per_epoch

  def dealt(step):
    group = jnp.arange(plan.num_shards)[:, None]
    place = (step + steps * jnp.arange(plan.capacity))[None]
    whole, rest = jnp.divmod(members.sum(), plan.num_shards)
    first = group * whole + jnp.minimum(group, rest)  # members are sorted by shard
    index = order[jnp.minimum(first + place, plan.num_records - 1)]
    real = place < whole + (group < rest)
    # Padding repeats a member of the shard, so non-members are never read.
    index = jnp.where(real, index, order[first])
    return index.ravel(), real.ravel(), jnp.int32(0)  # capacity fits the largest model

  def poisson(step):
    own = jax.random.fold_in(fold_in_name(key, "poisson"), step)
    chosen = present & drawn(own, plan.bands * plan.probability, present.shape)
    if turns is not None:
      chosen &= turns == step % plan.bands
    index = jnp.nonzero(chosen, size=plan.capacity, fill_value=0)[0]
    real = jnp.arange(plan.capacity) < chosen.sum()
    index = jnp.where(real, index, filler)
    overflow = jnp.maximum(chosen.sum() - plan.capacity, 0)
    if plan.per_person:
      window = jax.random.fold_in(fold_in_name(key, "windows"), step)
      index, there = _records_of(window, persons, index, plan.per_person)
      real = jnp.repeat(real, plan.per_person) & there
    return index, real, overflow

  def rows(step):
    index, real, overflow = poisson(step) if plan.poisson else dealt(step)
    weight = real.astype(jnp.float32)
    is_reference = jnp.zeros_like(weight)
    if plan.auxiliary_rows:
      place = step + steps * jnp.arange(plan.auxiliary_rows)
      index = jnp.concatenate([index, own[place % jnp.maximum(auxiliary.sum(), 1)]])
      more = jnp.ones(plan.auxiliary_rows)
      weight = jnp.concatenate([weight, 0 * more])
      is_reference = jnp.concatenate([is_reference, more])
    return Rows(index, weight, is_reference), overflow

  return rows


def _records_of(key, persons, chosen, count):
  """Return `count` records of each chosen person [P * count], and which are no repeats.

  A person with more records has a window of them that begins anywhere.
  """
  size = persons.size[chosen]
  start = (jax.random.uniform(key, persons.size.shape)[chosen] * size).astype(jnp.int32)
  start = jnp.where(size > count, start, 0)
  place = jnp.arange(count)
  within = (start[:, None] + place) % size[:, None]
  index = persons.order[persons.first[chosen][:, None] + within]
  return index.ravel(), (place < size[:, None]).ravel()


def _shuffled(key, chosen, chunk=None):
  """Return ids of the chosen records in random order, followed by all others.

  With `chunk` [N], ids of shard 0 come first, then those of shard 1 and so on.
  """
  draws = jnp.where(chosen, jax.random.uniform(key, chosen.shape), jnp.inf)
  if chunk is None:
    return jnp.argsort(draws)
  # Sorting by the sum would round a draw near 1 up to the next shard.
  return jnp.lexsort((draws, chunk, ~chosen))

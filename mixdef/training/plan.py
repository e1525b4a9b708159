"""Static sizes of a training run (steps, batch capacity, epochs)."""

from typing import NamedTuple

import numpy as np

from mixdef.core import validate
from mixdef.core.hooks import Ctx, Data, Spec

_COUNTED = 2**31 - 1  # int32


class Plan(NamedTuple):
  """Static sizes; hashable, so they key the cache of compiled programs.

  Steps per epoch and the sampling probability are derived from the public
  `num_members`. `capacity` is the number of member rows that a step can hold for each
  of the `num_shards` shards of the members; `auxiliary_rows` is the number of auxiliary
  rows added to a step. `size_given` says whether `num_members` was given or computed
  from the membership.
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
  num_shards: int = 1
  size_given: bool = False

  @property
  def probability(self) -> float:
    """Probability that a member is in a Poisson batch."""
    return self.batch_size / self.num_members

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
    traits: the learner's traits.
    data: a `Dataset`.
    rows: bool [S,N], the rows that each model trains on.
    epochs: number of passes over the members, at least 1.
    batch_size: average number of members per step and shard, at least 1.
    num_members: public size of a training set; defaults to the mean row sum of `rows`.
    num_shards: number of disjoint shards of the members, which all contribute to a
      step.

  Raises:
    ValueError: for sizes out of range, and for Poisson batches larger than the data.
  """
  sizes = np.asarray(rows).sum(1)
  size_given = num_members is not None
  if not size_given:
    num_members = max(1, round(float(sizes.mean())))
  epochs = validate.integer(epochs, "epochs", least=1)
  batch_size = validate.integer(batch_size, "batch_size", least=1)
  num_members = validate.integer(num_members, "num_members", least=1)
  steps = -(-num_members // (num_shards * batch_size))
  if steps * epochs > _COUNTED:
    raise ValueError(
      f"epochs={epochs} of {steps} steps each are more than the {_COUNTED} steps that "
      f"a training counts: lower epochs"
    )
  poisson = "poisson" in traits
  if poisson and batch_size > num_members:
    raise ValueError(
      f"batch_size={batch_size} exceeds the {num_members} members, but Poisson "
      f"sampling needs a probability of at most 1: lower batch_size"
    )
  if not poisson and sizes.min() < num_shards * steps:
    each = f" of each of {num_shards} critics" if num_shards > 1 else ""
    raise ValueError(
      f"a model has {sizes.min()} members for the {steps} steps of an epoch{each}: "
      f"raise batch_size above {batch_size}"
      f"{', or take fewer critics' * (num_shards > 1)}"
    )
  largest = int(sizes.max())
  capacity = -(-largest // (num_shards * steps))
  if poisson:
    draws = steps * epochs * len(sizes)
    capacity = _poisson_capacity(largest, batch_size, num_members, draws)
  num_reference = int(np.asarray(data.auxiliary).sum())
  riding = "auxiliary_rows" in traits
  return Plan(
    num_records=len(data),
    num_members=int(num_members),
    num_classes=data.num_classes,
    batch_size=int(batch_size),
    steps_per_epoch=steps,
    epochs=int(epochs),
    capacity=capacity,
    auxiliary_rows=-(-num_reference // steps) if riding else 0,
    poisson=poisson,
    num_shards=num_shards,
    size_given=size_given,
  )


def _poisson_capacity(size, batch_size, num_members, draws):
  """Return a capacity that Poisson batches exceed in only one of 1e9 trainings.

  It is at least `batch_size`, because a GAN generates that many fake records regardless
  of the number of members.
  """
  from scipy import stats

  drawn = stats.binom.isf(1e-9 / draws, size, batch_size / num_members) + 1
  return max(batch_size, int(min(size, drawn)))

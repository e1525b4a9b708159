"""A small problem for the learners of several networks, one step at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.hooks import Ctx, Data, Rows
from mixdef.data import Dataset
from mixdef.learners._parts import part_of
from mixdef.training.sampling import make_plan

RECORDS, FEATURES, CLASSES = 24, 5, 3
STEP_ROWS = 12
KEY = jax.random.key(7)


class Normed(nn.Module):
  """A hidden layer with BatchNorm and dropout, which a foreign row could reach."""

  width: int = 6

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
    mask = None if weight is None or not train else (weight > 0)[:, None]
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x, mask=mask)
    x = nn.Dropout(0.2)(nn.relu(x), deterministic=not train)
    return nn.Dense(CLASSES)(x)


def records(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(RECORDS, FEATURES)).astype(np.float32)
  return Dataset.from_arrays(
    x, rng.integers(CLASSES, size=RECORDS), num_classes=CLASSES
  )


DATA = records()


def start(learner, epochs):
  """The initial state of one model, and the jitted step."""
  everyone = np.ones((1, RECORDS), bool)
  plan = make_plan(learner.traits, DATA, everyone, epochs=epochs, batch_size=STEP_ROWS)
  return learner.init(KEY, plan.spec(device(DATA), None)), jax.jit(learner.step)


def device(data):
  return Data(*map(jnp.asarray, (data.x, data.y, data.auxiliary)))


def train_epochs(state, step, epochs, *, data=DATA, of, padded=False):
  """Take two steps in each of the epochs given, over all records, `of` in all."""
  for epoch in epochs:
    for half in range(2):
      index = jnp.arange(STEP_ROWS) * 2 + half
      weight = jnp.zeros(STEP_ROWS) if padded else jnp.ones(STEP_ROWS)
      key = jax.random.fold_in(jax.random.key(1), 2 * epoch + half)
      position = map(jnp.int32, (2 * epoch + half, epoch, of))
      ctx = Ctx(key, *position, steps_per_epoch=2, batch_size=STEP_ROWS)
      rows = Rows(index, weight, jnp.zeros(STEP_ROWS))
      state, _ = step(state, device(data), rows, ctx)
  return state


def moved(*rows, by=0.5):
  """The data with records moved and relabelled."""
  x, y = DATA.x.copy(), DATA.y.copy()
  x[list(rows)] += by
  y[list(rows)] = (y[list(rows)] + 1) % CLASSES
  return Dataset(x, y, CLASSES)


def members_of(part, parts):
  """Ids of the records that a part holds under `KEY`."""
  found = np.asarray(part_of(KEY, jnp.arange(RECORDS), parts))
  return np.flatnonzero(found == part)


def same(one, other, atol=0.0):
  """Tell whether two pytrees of numbers are equal; exactly, by default."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


def learned(state):
  """Everything of a state that training changes."""
  return state.params, state.stats, state.opt

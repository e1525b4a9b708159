"""Generators that know records by heart, and one that knows none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.learner import Learner, TrainState
from mixdef.core.traits import Traits
from mixdef.data import Dataset, subsets
from mixdef.training import Ensemble
from mixdef.training.sampling import make_plan

LATENT, CLASSES = 3, 2


def recall(state, z, y):
  """Blend the stored records by how near z is to their anchors; y shifts the anchors.

  Near an anchor a sample is a stored record, so each has a latent, found by descent.
  """
  anchors, stored = state.params["anchors"], state.params["stored"]
  at = z + state.params["shift"] * y[:, :1]
  gaps = ((at[:, None] - anchors) ** 2).sum(-1)
  return jax.nn.softmax(-state.params["sharp"] * gaps) @ stored


def plan_of(data):
  """Return the plan of a training on all records."""
  everyone = np.ones((1, len(data)), bool)
  return make_plan(Traits(), data, everyone, epochs=1, batch_size=len(data))


def no_training(*_):
  raise AssertionError("a made-up generator is not trained")


LEARNER = Learner(
  init=no_training,
  step=no_training,
  epoch=None,
  finish=None,
  predict=no_training,
  text="memory",
  generate=recall,
  latent=LATENT,
  num_classes=CLASSES,
)


def ensemble_of(data, members, stored, *, sharp=8.0, shift=0.0, seed=0):
  """Make models that know stored [S,M,D] by heart."""
  models, count, _ = stored.shape
  anchors = np.random.default_rng(seed).normal(size=(models, count, LATENT))
  params = {
    "anchors": jnp.float32(anchors),
    "stored": jnp.float32(stored),
    "sharp": jnp.full(models, sharp, jnp.float32),
    "shift": jnp.full(models, shift, jnp.float32),
  }
  state = TrainState(params, {}, (), {}, jnp.zeros(models))
  own = LEARNER, {}, state, members, data
  return Ensemble(*own, plan_of(data), "loop", models, [])


def table(records=24, features=6, seed=0):
  """Records in [0,1] and held-out ones of the same kind."""
  rng = np.random.default_rng(seed)
  x = rng.random((records + 40, features), np.float32)
  y = np.arange(len(x)) % CLASSES
  test = (x[records:], y[records:])
  return Dataset.from_arrays(x[:records], y[:records], test=test, num_classes=CLASSES)


@functools.cache
def memorised(models=4):
  """Models that make their members and blends of them."""
  data = table()
  members = subsets(data, models, seed=1)
  return ensemble_of(data, members, by_heart(data.x, members))


def by_heart(x, members):
  """Return every model's members [S,M,...], some twice where others have more."""
  most = members.sum(1).max()
  return np.stack([np.resize(x[row], (most, *x.shape[1:])) for row in members])


@functools.cache
def ignorant(records=200, models=4):
  """Models that make records nobody is asked about."""
  data = table(records)
  others = table(12, seed=99).x
  members = subsets(records, models, seed=1)
  return ensemble_of(data, members, np.tile(others, (models, 1, 1)))


def span(state, z, y):
  """Add stored differences to a mean: descent finds the latent of any sum of them."""
  del y
  return state.params["mean"] + z @ state.params["stored"]


@functools.cache
def spanned(records=24, members=True, models=4):
  """Models whose 12 latents span their 12 members, or records nobody asks about."""
  data = table(records, 24)
  order = np.random.default_rng(1).random((models, records)).argsort(1)
  inside = order < records // 2
  sources = [data.x[row] if members else table(12, 24, seed=90).x for row in inside]
  params = {
    "mean": jnp.full(models, 0.5),
    "stored": jnp.float32(np.stack(sources) - 0.5),
  }
  state = TrainState(params, {}, (), {}, jnp.zeros(models))
  own = LEARNER._replace(generate=span, latent=12), {}, state, inside, data
  return Ensemble(*own, plan_of(data), "loop", models, [])


def leak(scores, member):
  """AUC by counting pairs; ties count one half."""
  ahead = scores[member][:, None], scores[~member][None]
  return float(np.mean((ahead[0] > ahead[1]) + 0.5 * (ahead[0] == ahead[1])))


def made_by(generator, data, models=2):
  """Models that all make `generator(z, y)` of the data's records."""
  learner = LEARNER._replace(generate=lambda state, z, y: generator(z, y))
  members = np.arange(models * len(data)).reshape(models, -1) % 2 == 0
  state = TrainState({}, {}, (), {}, jnp.zeros(models))
  own = learner, {}, state, members, data
  return Ensemble(*own, plan_of(data), "loop", models, [])

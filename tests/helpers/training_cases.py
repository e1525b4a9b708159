"""A small problem, and models that compile fast, for the tests of training."""

import flax.linen as nn
import jax
import numpy as np
import optax

from mixdef.data import Dataset
from mixdef.learners.classifier import classifier
from mixdef.training import fit_many

RECORDS, FEATURES, CLASSES, MEMBERS = 40, 5, 3, 20
# 20 members in batches of 6 on average: 4 steps of 5, and 6 does not divide 20.
SIZES = {"epochs": 2, "batch_size": 6, "num_members": MEMBERS}


class Linear(nn.Module):
  """Softmax regression from zero weights: nothing random, little to compile."""

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(CLASSES, kernel_init=nn.initializers.zeros)(x)


class Dropped(nn.Module):
  """A hidden layer with dropout."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.relu(nn.Dense(4, kernel_init=nn.initializers.uniform(1.0))(x))
    x = nn.Dropout(0.2)(x, deterministic=not train)
    return nn.Dense(CLASSES, kernel_init=nn.initializers.zeros)(x)


class Normed(nn.Module):
  """A hidden layer with BatchNorm."""

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    x = nn.Dense(4, kernel_init=nn.initializers.uniform(1.0))(x)
    mask = None if weight is None or not train else (weight > 0)[:, None]
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x, mask=mask)
    return nn.Dense(CLASSES, kernel_init=nn.initializers.zeros)(nn.relu(x))


LEARNER = classifier(Linear(), optax.sgd(0.5, momentum=0.9))


def records(count=RECORDS, shape=(FEATURES,), seed=0):
  """Draw a data set with random labels."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, *shape)).astype(np.float32)
  return Dataset.from_arrays(x, rng.integers(CLASSES, size=count), num_classes=CLASSES)


def perturbed(data, row, shift):
  """Return the data with one record moved."""
  x = data.x.copy()
  x[row] += shift
  return Dataset(x, data.y, data.num_classes, data.name, data.auxiliary)


def halves(models, count=RECORDS, members=MEMBERS, seed=0):
  """Draw subsets of one size, so that every ensemble has the same plan."""
  order = np.random.default_rng(seed).random((models, count)).argsort(1)
  return order < members


def train(learner=LEARNER, data=None, members=None, **options):
  """Train an ensemble of the small problem, one model after another by default."""
  data = records() if data is None else data
  members = halves(1) if members is None else members
  return fit_many(learner, data, members, **{"strategy": "loop", **SIZES, **options})


def arrays(tree):
  """Return the leaves as numpy arrays, random keys as their bits."""
  return [
    np.asarray(
      jax.random.key_data(leaf)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    )
    for leaf in jax.tree.leaves(tree)
  ]


def same(one, other, atol=0.0):
  """Tell whether two pytrees hold equal numbers; exactly, by default."""
  pairs = zip(arrays(one), arrays(other), strict=True)
  if atol:
    return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)
  return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)

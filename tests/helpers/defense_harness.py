"""A tiny data set, network and training loop for the tests of defenses.

Records 0..7 are members, 8 and 9 are out, 10 and 11 are the defender's own. A step
holds four members, one padded row and one auxiliary row.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixdef.core.chaining import chain
from mixdef.core.hooks import Batch, Ctx, Data, Rows, Spec
from mixdef.defenses import CATALOGUE
from mixdef.kernels import standardized
from mixdef.learners.classifier import classifier

N, D, K = 12, 5, 3
EPOCHS, STEPS_PER_EPOCH = 8, 2
# What a classifier can carry; the others are tested with GANs.
CLASSIFIERS = sorted(
  name for name, make in CATALOGUE.items() if not make().traits.critic
)
KEEP = jnp.arange(N) < 8
REFERENCE = jnp.arange(N) >= 10


class Net(nn.Module):
  """One hidden layer, with the fields that defenses set."""

  num_classes: int = K
  dropout: float = 0.0
  spatial_dropout: float = 0.0
  norm: str = "none"
  weight_standardization: bool = False

  @nn.compact
  def __call__(self, x, *, train=False, weight=None):
    x = x.reshape(x.shape[0], -1)
    if self.weight_standardization:  # a convolution of one pixel is a dense layer
      x = standardized.Conv(6, (1,))(x[:, None])[:, 0]
    else:
      x = nn.Dense(6)(x)
    if self.norm == "group":  # beside, so that extreme logits stay extreme
      x = x + nn.GroupNorm(2)(x)
    x = nn.relu(x)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = nn.Dropout(self.spatial_dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes)(x)


def make_data(seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  x = scale * rng.normal(size=(N, D)).astype(np.float32)
  y = np.arange(N, dtype=np.int32) % K
  return Data(jnp.array(x), jnp.array(y), REFERENCE)


DATA = make_data()
TABLE = jax.nn.log_softmax(
  jnp.array(np.random.default_rng(1).normal(size=(N, K)), jnp.float32)
)
SPEC = Spec(
  example=DATA.x[:1],
  variables=None,
  table=TABLE,
  num_records=N,
  num_members=8,
  num_classes=K,
  batch_size=4,
  steps_per_epoch=STEPS_PER_EPOCH,
  epochs=EPOCHS,
)


def rows_at(step):
  """The rows of a step: members of one parity, a padded row, a auxiliary row."""
  members = jnp.arange(4) * 2 + step % 2
  index = jnp.concatenate([members, members[:1], jnp.array([10 + step % 2])])
  weight = jnp.array([1.0, 1, 1, 1, 0, 0])
  return Rows(index, weight, jnp.array([0.0, 0, 0, 0, 0, 1]))


def ctx_at(step=0, seed=0, epochs=EPOCHS):
  epoch = jnp.int32(step) // STEPS_PER_EPOCH
  key = jax.random.fold_in(jax.random.key(seed), step)
  return Ctx(key, jnp.int32(step), epoch, jnp.int32(epochs), STEPS_PER_EPOCH, 4)


def in_epoch(epoch, epochs=EPOCHS, seed=0):
  step = jnp.int32(epoch) * STEPS_PER_EPOCH
  return ctx_at(step, epochs=epochs)._replace(key=jax.random.key(seed))


def learner_of(*defenses, optimizer=None, net=None):
  optimizer = optax.sgd(0.1) if optimizer is None else optimizer
  return classifier(net or Net(), optimizer, chain(*defenses))


def init(learner, seed=0):
  return learner.init(jax.random.key(seed), SPEC)


class Loop:
  """Trains a learner from epoch 3 on, so that every defense is past its warm-up.

  `traces` counts how often Python ran the step.
  """

  def __init__(self, *defenses, **options):
    self.learner, self.traces = learner_of(*defenses, **options), 0
    self.jitted = jax.jit(self.step)
    self.mapped = jax.jit(jax.vmap(self.step, in_axes=(0, None, None, None)))

  def step(self, state, data, rows, ctx):
    """One step, and the epoch hook where the step ends an epoch."""
    self.traces += 1
    ctx = ctx._replace(key=jax.random.fold_in(state.key, ctx.step))
    state, metrics = self.learner.step(state, data, rows, ctx)
    if self.learner.epoch:
      over = ctx.step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1
      state = jax.lax.cond(
        over, lambda: self.learner.epoch(state, data, KEEP, ctx), lambda: state
      )
    return state, metrics

  def run(self, state, steps=4, step=None, data=DATA):
    first = 3 * STEPS_PER_EPOCH
    for i in range(first, first + steps):
      state, _ = (step or self.jitted)(state, data, rows_at(i), ctx_at(i))
    return state

  def train(self, seed=0, steps=4, data=DATA):
    return self.run(init(self.learner, seed), steps, data=data)


def make_batch(rows=6, weight=None, seed=0, shape=(D,)):
  """A batch of records 0..rows-1 with one-hot labels."""
  rng = np.random.default_rng(seed)
  weight = jnp.ones(rows) if weight is None else jnp.array(weight, jnp.float32)
  return Batch(
    x=jnp.array(rng.normal(size=(rows, *shape)), jnp.float32),
    y=jax.nn.one_hot(jnp.arange(rows) % K, K),
    index=jnp.arange(rows),
    weight=weight,
    auxiliary=jnp.zeros(rows),
    partner=jnp.arange(rows),
    lam=jnp.ones(rows),
  )


def make_log_probs(rows=6, scale=1.0, seed=3):
  logits = np.random.default_rng(seed).normal(size=(rows, K)) * scale
  return jax.nn.log_softmax(jnp.array(logits, jnp.float32))


def after(ctx, log_probs, members=KEEP, variables=None, y=DATA.y):
  """What an epoch hook is given of a model that answers `log_probs` [N,K]."""
  return ctx._replace(
    variables=variables,
    predict=lambda x: log_probs,
    data=DATA._replace(y=y),
    members=members,
  )


def assert_same(a, b, tolerance=0.0):
  """Assert equal trees; keys are compared by their data."""

  def plain(leaf):
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf

  a, b = jax.tree.map(plain, a), jax.tree.map(plain, b)
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

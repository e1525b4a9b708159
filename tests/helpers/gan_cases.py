"""A small problem for the tests of GANs, and their networks and one step by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixdef.core.hooks import Ctx, Data, Rows
from mixdef.core.randomness import row_keys
from mixdef.data import Dataset
from mixdef.learners._gan import between, latents
from mixdef.models import table_networks
from mixdef.training import fit_many
from mixdef.training.sampling import make_plan

RECORDS, FEATURES, CLASSES, MEMBERS = 32, 6, 2, 20
HIDDEN, LATENT = 8, 3
NETWORKS = table_networks(
  FEATURES, CLASSES, hidden=HIDDEN, latent=LATENT, conditional=True
)
# 20 members in batches of 6 on average: 4 steps of 5, and 6 does not divide 20.
SIZES = {"epochs": 2, "batch_size": 6, "num_members": MEMBERS}
SGD = optax.sgd(0.03)  # a step shows the gradient itself, which Adam would rescale


def records(count=RECORDS, shape=(FEATURES,), seed=0):
  """Draw a data set of values in [0,1] with random labels."""
  rng = np.random.default_rng(seed)
  x = rng.random(size=(count, *shape), dtype=np.float32)
  return Dataset.from_arrays(x, rng.integers(CLASSES, size=count), num_classes=CLASSES)


def changed(data, rows, *, label=True):
  """Return the data with records mirrored in [0,1] and, if asked, relabelled."""
  x, y = data.x.copy(), data.y.copy()
  x[rows] = 1 - x[rows]
  if label:
    y[rows] = (y[rows] + 1) % data.num_classes
  return Dataset(x, y, data.num_classes)


def halves(models, seed=0):
  """Draw subsets of one size, so that every ensemble has the same plan."""
  order = np.random.default_rng(seed).random((models, RECORDS)).argsort(1)
  return order < MEMBERS


KEEP = halves(2)
DATA = records()


def train(learner, data=DATA, members=KEEP, **options):
  how = {"strategy": "loop", "noise_seed": 0, **SIZES, **options}
  return fit_many(learner, data, members, **how)


def device(data):
  return Data(*map(jnp.asarray, (data.x, data.y, data.auxiliary)))


def start(learner, data=DATA, seed=0, **sizes):
  """Return the initial state of one model that trains on all records."""
  everyone = np.ones((1, len(data)), bool)
  sizes = {"epochs": 2, "batch_size": 6, **sizes}
  plan = make_plan(
    learner.traits, data, everyone, num_shards=learner.num_shards, **sizes
  )
  return learner.init(jax.random.key(seed), plan.spec(device(data), None))


def rows_of(count, padding=1, first=0):
  """Rows of one step: `count` members, then padding, which repeats the first."""
  index = first + np.r_[np.arange(count), np.zeros(padding, int)]
  weight = np.r_[np.ones(count), np.zeros(padding)]
  return Rows(*(jnp.asarray(a) for a in (index, weight, np.zeros_like(weight))))


def ctx_at(step=0, steps_per_epoch=4, seed=5):
  key = jax.random.fold_in(jax.random.key(seed), step)
  epoch = step // steps_per_epoch
  return Ctx(key, *map(jnp.int32, (step, epoch, 9)), steps_per_epoch, batch_size=6)


def own_ctx(ctx, critic=0):
  """The `Ctx` that a critic draws from."""
  return ctx._replace(key=row_keys(ctx.key, jnp.arange(critic + 1))[critic])


def dense(params, layer, x):
  return x @ params[f"Dense_{layer}"]["kernel"] + params[f"Dense_{layer}"]["bias"]


def critic_by_hand(params, x, y):
  """D(x, y) of the table network, for one record."""
  hidden = jnp.concatenate([x, y])
  for layer in range(2):
    hidden = nn.leaky_relu(dense(params, layer, hidden), 0.2)
  return dense(params, 2, hidden)[0]


def generator_by_hand(params, z, y):
  """G(z, y) of the table network, for one record."""
  hidden = jnp.concatenate([z, y])
  for layer in range(2):
    hidden = nn.relu(dense(params, layer, hidden))
  return 1 / (1 + jnp.exp(-dense(params, 2, hidden)))


def critic_loss_by_hand(d, g, batch, ctx, penalty=10.0, sign=None):
  """L_D of the members of a batch, one record at a time; sign is RelaxLoss's s [B]."""
  z = latents(ctx.key, batch.index, LATENT)
  fakes = [generator_by_hand(g, z[i], batch.y[i]) for i in range(len(z))]
  points = between(ctx.key, batch.x, jnp.stack(fakes), batch.index)
  total = 0.0
  for i, fake in enumerate(fakes):
    y = batch.y[i]
    apart = critic_by_hand(d, batch.x[i], y) - critic_by_hand(d, fake, y)
    slope = jax.grad(critic_by_hand, argnums=1)(d, points[i], y)
    steep = (jnp.sqrt((slope**2).sum()) - 1) ** 2
    loss = (-apart if sign is None else sign[i] * apart) + penalty * steep
    total += batch.weight[i] * loss
  return total / batch.weight.sum()


def generator_loss_by_hand(g, d, batch, ctx):
  """L_G of the members of a batch, one record at a time."""
  z = latents(ctx.key, batch.index, LATENT)
  total = 0.0
  for i in range(len(z)):
    fake = generator_by_hand(g, z[i], batch.y[i])
    total -= batch.weight[i] * critic_by_hand(d, fake, batch.y[i])
  return total / batch.weight.sum()


critic_grad_by_hand = jax.jit(jax.value_and_grad(critic_loss_by_hand))
generator_grad_by_hand = jax.jit(jax.grad(generator_loss_by_hand))


def descended(params, grads, rate=0.03):
  """One step of `SGD`."""
  return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def take_row(tree, row):
  return jax.tree.map(lambda leaf: leaf[row], tree)


def arrays(tree):
  """Return the leaves as numpy arrays, random keys as their bits."""
  return [
    np.asarray(
      jax.random.key_data(leaf)
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    )
    for leaf in map(jnp.asarray, jax.tree.leaves(tree))
  ]


def same(one, other, atol=0.0):
  """Tell whether two pytrees hold equal numbers; exactly, by default."""
  pairs = zip(arrays(one), arrays(other), strict=True)
  return all(
    a.shape == b.shape and np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs
  )

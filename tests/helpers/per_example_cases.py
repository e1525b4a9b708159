"""Networks and oracles for the per-example gradient tests."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.hooks import Batch, Ctx
from mixdef.defenses import clipping

B, K = 6, 3
CLIP = 0.3
CTX = Ctx(jax.random.key(3), 0, 0, 1, 1, B)


def flat(x):
  return x.reshape(x.shape[0], -1)


class Dense(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(5)(flat(x)))
    return nn.Dense(K, use_bias=False)(x)


class DenseOverPositions(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4)(x))  # 36 positions, small kernel
    x = nn.tanh(nn.Dense(20)(x[:, :1, :2]))  # 2 positions, larger kernel
    return nn.Dense(K)(flat(x))


class Conv(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.tanh(nn.Conv(5, (2, 3), padding=((2, -1), (2, 1)), use_bias=False)(x))
    x = nn.tanh(nn.Conv(5, (3, 3), kernel_dilation=2, padding=2)(x))
    x = nn.tanh(nn.Conv(6, (3, 3), padding="VALID")(x))
    return nn.Dense(K)(flat(x))


def conv_by_name(x, kernel, strides, padding, **kwargs):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


class OtherConv(nn.Module):
  """Convolutions that the per-layer rule takes, and one of a custom function."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(4, (3, 3), conv_general_dilated=conv_by_name)(x))
    x = nn.tanh(nn.Conv(4, (3, 3), feature_group_count=2)(x))
    x = nn.tanh(nn.Conv(2, (3, 3), padding="CIRCULAR")(x))
    x = nn.tanh(nn.Conv(3, (3,), padding="CAUSAL")(x.reshape(x.shape[0], -1, 2)))
    return nn.Dense(K)(flat(x))


def tripled(product):
  return lambda *args, **kwargs: 3 * product(*args, **kwargs)


class OtherProducts(nn.Module):
  """Layers that multiply in their own way."""

  @nn.compact
  def __call__(self, x):
    conv = tripled(jax.lax.conv_general_dilated)
    x = nn.tanh(nn.Conv(3, (3, 3), strides=3, conv_general_dilated=conv)(x))
    dot = tripled(jax.lax.dot_general)
    return nn.Dense(K, dot_general_cls=lambda: dot)(flat(x))


class Norms(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
    x = nn.LayerNorm()(x)
    return nn.Dense(K)(x.mean((1, 2)))


class Small(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.LayerNorm()(nn.Dense(5)(flat(x)))))


class Embed(nn.Module):
  @nn.compact
  def __call__(self, x):
    tokens = (jnp.abs(flat(x)) * 3).astype(jnp.int32) % 7
    return nn.Dense(K)(nn.tanh(nn.Embed(7, 4)(tokens)).mean(1))


class Attention(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], 9, 8)
    x = x + nn.MultiHeadDotProductAttention(2, normalize_qk=True)(x)
    return nn.Dense(K)(nn.RMSNorm()(x).mean(1))


class ManyWords(nn.Module):
  """A table of more entries than pairs of positions, whose words repeat."""

  @nn.compact
  def __call__(self, x):
    tokens = (jnp.abs(flat(x)[:, :9]) * 3).astype(jnp.int32) % 7 - 1
    return nn.Dense(K)(nn.tanh(nn.Embed(50, 4)(tokens)).mean(1))


class Recurrent(nn.Module):
  """Sequences, whose steps are hidden in a scan."""

  @nn.compact
  def __call__(self, x):
    x = nn.RNN(nn.OptimizedLSTMCell(4))(x.reshape(x.shape[0], 6, 12))
    return nn.Dense(K)(nn.RNN(nn.GRUCell(4))(x)[:, -1])


class Unrolled(nn.Module):
  """Cells that are called once for each position."""

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], 6, 12)
    lstm, gru = nn.LSTMCell(4), nn.GRUCell(4)
    state = jnp.zeros((x.shape[0], 4))
    memory = (state, state)
    for t in range(3):
      memory, y = lstm(memory, x[:, t])
      state, y = gru(state, y)
    return nn.Dense(K)(state)


class Standardised(nn.Module):
  """A custom leaf module: weight-standardised convolution, with a helper method."""

  def rescale(self, kernel):
    return (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-3)

  @nn.compact
  def __call__(self, x, train=True):
    init = nn.initializers.lecun_normal()
    kernel = self.param("kernel", init, (3, 3, x.shape[-1], 4))
    dims = ("NHWC", "HWIO", "NHWC")
    kernel = self.rescale(kernel)
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=dims
    )


class Custom(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(Standardised()(x, train=True))
    return nn.Dense(K)(x.mean((1, 2)))


class FromSetup(nn.Module):
  def setup(self):
    self.hidden = nn.Dense(4)
    self.out = nn.Dense(K)

  def __call__(self, x):
    return self.out(nn.tanh(self.hidden(flat(x))))


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(36 * 2)
    return nn.Dense(K)(layer(nn.tanh(layer(flat(x)))))


class GainBesideLayers(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(flat(x))
    gain = self.param("gain", nn.initializers.ones, (4,))
    return nn.Dense(K)(nn.tanh(x) * gain)


class GainOfLogits(nn.Module):
  """A gain of every output of the only layer, which has few inputs."""

  @nn.compact
  def __call__(self, x):
    gain = self.param("gain", nn.initializers.ones, (K,))
    return gain * nn.Dense(K)(flat(x)[:, :2])


class Patches(nn.Module):
  """A class token, learned positions and scaled branches, which no layer holds."""

  @nn.compact
  def __call__(self, x):
    normal = nn.initializers.normal(0.5)
    x = nn.Dense(4)(x.reshape(x.shape[0], 9, 8))
    first = self.param("token", normal, (1, 1, 4))
    x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
    x = x + self.param("positions", normal, (10, 4))
    x = x + self.param("scale", normal, ()) * nn.tanh(nn.Dense(4)(nn.LayerNorm()(x)))
    return nn.Dense(K)(nn.tanh(x[:, 0] + x.mean(1)))


class Remat(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.remat(nn.Dense)(4)(flat(x))))


class RowsMerged(nn.Module):
  @nn.compact
  def __call__(self, x):
    rows = nn.Dense(4)(x.reshape(-1, x.shape[-1]))
    return nn.Dense(K)(nn.tanh(rows).reshape(x.shape[0], -1))


class Tied(nn.Module):
  """Its table is used by a method other than __call__ as well."""

  @nn.compact
  def __call__(self, x):
    table = nn.Embed(K, 4)
    tokens = (jnp.abs(flat(x)) * 3).astype(jnp.int32) % K
    return table.attend(nn.tanh(table(tokens)).mean(1))


class TiedTable(nn.Module):
  """Its table is read as an array as well."""

  @nn.compact
  def __call__(self, x):
    table = nn.Embed(K, 4)
    tokens = (jnp.abs(flat(x)) * 3).astype(jnp.int32) % K
    return nn.tanh(table(tokens)).mean(1) @ table.embedding.T


class Rescaled(nn.Module):
  """A leaf module that is given another's parameters, or activations, as a field."""

  scale: Any

  @nn.compact
  def __call__(self, x):
    return x * self.scale + self.param("bias", nn.initializers.ones, (K,))


class BorrowedKernel(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(K)
    x = nn.tanh(layer(flat(x)))
    return Rescaled(layer.variables["params"]["kernel"].sum(0))(x)


class OwnGradient(nn.Module):
  """A layer inside a gradient of the model's own."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(K)
    slope = jax.grad(lambda x: jnp.tanh(layer(x)).sum())(flat(x))
    return layer(flat(x)) + slope[:, :K]


class PlainAndRemat(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(36 * 2)
    x = nn.tanh(layer(flat(x)))
    return nn.Dense(K)(nn.remat(lambda layer, x: layer(x))(layer, x))


class Positional(nn.Module):
  """A table over positions, of which there are as many as rows."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(x.mean(1)) + nn.Embed(B, 4)(jnp.arange(B))
    return nn.Dense(K)(nn.tanh(x).mean(1))


class TimeMajor(nn.Module):
  """As many time steps as rows, and they lead."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(K)(nn.tanh(nn.Dense(4)(x.mean(1).swapaxes(0, 1))).mean(0))


class DropoutInLeaf(nn.Module):
  """A leaf module that draws numbers: alone it cannot be run again."""

  @nn.compact
  def __call__(self, x):
    x = flat(x)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], K))
    return nn.Dropout(0.0, deterministic=False)(x @ kernel) + 0 * self.draw()

  def draw(self):
    return jax.random.normal(self.make_rng("dropout"))


class Difference(nn.Module):
  """The gradients of two positions that are nearly alike cancel."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(64)(x)
    return nn.Dense(K)(x[:, 0] - x[:, 1])


class Overflowing(nn.Module):
  """Its gradient is infinite at x[0] = 0 although its loss is finite."""

  @nn.compact
  def __call__(self, x):
    x = flat(x)
    root = jnp.sqrt(jnp.abs(nn.Dense(K, use_bias=False)(x)))
    return jnp.tanh(root)


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(20)(flat(x))))
    return nn.Dense(K)(x)


GHOST = [
  Dense,
  DenseOverPositions,
  Conv,
  OtherConv,
  OtherProducts,
  Norms,
  Embed,
  Custom,
  FromSetup,
  Shared,
  Tied,
  Attention,
  ManyWords,
  Recurrent,
  Unrolled,
  GainBesideLayers,
  GainOfLogits,
  RowsMerged,
  Patches,
]
FALLBACK = [
  Remat,
  TiedTable,
  BorrowedKernel,
  OwnGradient,
  PlainAndRemat,
  Positional,
  TimeMajor,
  DropoutInLeaf,
]


def make_views(views, weight):
  """Records with `views` different rows each, side by side."""
  batch = make_batch(np.repeat(weight, views))
  record = jnp.repeat(jnp.arange(B // views), views)
  index = record + 10
  y = batch.y[record * views]
  return batch._replace(y=y, index=index, partner=index, view=jnp.arange(B) % views)


def make_batch(weight=None, seed=0):
  rng = np.random.default_rng(seed)
  y = rng.dirichlet(np.ones(K), B)
  rows = jnp.arange(B)
  return Batch(
    x=jnp.asarray(rng.normal(size=(B, 6, 6, 2)), jnp.float32),
    y=jnp.asarray(y, jnp.float32),
    index=rows + 10,
    weight=jnp.ones(B) if weight is None else jnp.asarray(weight, jnp.float32),
    auxiliary=jnp.zeros(B),
    partner=rows + 10,
    lam=jnp.ones(B),
  )


def init(model, seed=0):
  keys = {"params": jax.random.key(seed), "dropout": jax.random.key(0)}
  return jax.jit(model.init)(keys, make_batch().x)["params"]


def cross_entropy(model):
  def losses_fn(params, batch, ctx):
    logits, _ = model.apply(
      {"params": params}, batch.x, rngs={"dropout": ctx.key}, mutable=[]
    )
    log_probs = jax.nn.log_softmax(logits)
    return -(batch.y * log_probs).sum(-1), (log_probs, {})

  return losses_fn


def keyed(model):
  """Losses whose dropout masks depend on the first row's id, as a classifier's do."""

  def losses_fn(params, batch, ctx):
    key = jax.random.fold_in(ctx.key, batch.index[0])
    return cross_entropy(model)(params, batch, ctx._replace(key=key))

  return losses_fn


def naive(losses_fn, params, batch, clip, denominator, views=1):
  """Clip one record's gradient, the mean of its rows', after the other, in numpy."""
  gradient = jax.jit(jax.grad(lambda p, row: losses_fn(p, row, CTX)[0][0]))
  total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
  for i in range(0, batch.weight.shape[0], views):
    rows = [
      jax.tree.map(lambda a, j=j: a[j : j + 1], batch) for j in range(i, i + views)
    ]
    each = [jax.tree.map(np.float64, gradient(params, row)) for row in rows]
    grads = jax.tree.map(lambda *leaves: sum(leaves) / views, *each)
    norm = math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    factor = float(batch.weight[i]) * min(1.0, clip / norm) / denominator
    total = jax.tree.map(lambda t, g, f=factor: t + f * g, total, grads)
  return total


def assert_close(tree, expected, tolerance=1e-5):
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * scale),
    tree,
    expected,
  )


def clipped(estimator, losses_fn, clip, denominator, **options):
  """Return the mean of the clipped gradients in place of an estimator's sum."""
  run = estimator(losses_fn, clipping.flat(clip), **options)

  def mean(params, batch, state, ctx):
    out, (total, _) = run(params, batch, state, ctx)
    return out, jax.tree.map(lambda leaf: leaf / denominator, total)

  return mean

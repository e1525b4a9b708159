"""Networks of NNX for the tests, with the layers that per-example clipping knows."""

import jax
import jax.numpy as jnp
from flax import nnx
from per_example_cases import K, flat

# Records of the per-example cases are [B,6,6,2].


class Dense(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(72, 5, rngs=rngs)
    self.b = nnx.Linear(5, K, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.b(jnp.tanh(self.a(flat(x))))


class Conv(nnx.Module):
  """Strided, grouped, dilated, of one axis, and over positions."""

  def __init__(self, rngs):
    self.layers = nnx.List(
      [
        nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs),
        nnx.Conv(4, 6, (2, 3), feature_group_count=2, rngs=rngs),
        nnx.Conv(6, 5, (3, 3), kernel_dilation=2, padding=2, rngs=rngs),
      ]
    )
    self.wide = nnx.Conv(2, 4, (3, 3), padding="CIRCULAR", rngs=rngs)
    self.line = nnx.Conv(12, 3, (3,), padding="CAUSAL", rngs=rngs)
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    y = jnp.concatenate([x, x], 1)
    for layer in self.layers:
      y = jnp.tanh(layer(y))
    z = jnp.tanh(self.wide(x))
    line = self.line(x.reshape(x.shape[0], 6, 12)).mean(1)
    return self.out(z.mean((1, 2))) + line + y.mean((1, 2))[:, :K]


class Norms(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
    self.norms = nnx.List(
      [
        nnx.GroupNorm(4, num_groups=2, rngs=rngs),
        nnx.LayerNorm(4, rngs=rngs),
        nnx.RMSNorm(4, rngs=rngs),
        nnx.InstanceNorm(4, rngs=rngs),
      ]
    )
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    x = self.conv(x)
    for norm in self.norms:
      x = jnp.tanh(norm(x) + x)
    return self.out(x.mean((1, 2)))


def tokens(x):
  return (jnp.abs(flat(x)[:, :9]) * 3).astype(jnp.int32) % 7


class Attention(nnx.Module):
  """An encoder: embeddings, attention with normed queries, and a dense block."""

  def __init__(self, rngs):
    self.table = nnx.Embed(7, 8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      2, 8, decode=False, normalize_qk=True, rngs=rngs
    )
    self.norm = nnx.LayerNorm(8, rngs=rngs)
    self.out = nnx.Linear(8, K, rngs=rngs)

  def __call__(self, x):
    x = self.table(tokens(x))
    return self.out(self.norm(x + self.attention(x)).mean(1))


class ManyWords(nnx.Module):
  """A table of more entries than pairs of positions, whose words repeat."""

  def __init__(self, rngs):
    self.table = nnx.Embed(50, 4, rngs=rngs)
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.tanh(self.table(tokens(x))).mean(1))


class Recurrent(nnx.Module):
  def __init__(self, rngs):
    self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(12, 4, rngs=rngs), rngs=rngs)
    self.gru = nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs), rngs=rngs)
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    x = x.reshape(x.shape[0], 6, 12)
    return self.out(self.gru(self.lstm(x))[:, -1])


class Unrolled(nnx.Module):
  """Cells that are called once for each position."""

  def __init__(self, rngs):
    self.lstm = nnx.LSTMCell(12, 4, rngs=rngs)
    self.gru = nnx.GRUCell(4, 4, rngs=rngs)
    self.out = nnx.Linear(4, K, rngs=rngs)

  def __call__(self, x):
    x = x.reshape(x.shape[0], 6, 12)
    zeros = jnp.zeros((x.shape[0], 4))
    memory, state = (zeros, zeros), zeros
    for t in range(3):
      memory, y = self.lstm(memory, x[:, t])
      state, y = self.gru(state, y)
    return self.out(state)


class Tied(nnx.Module):
  """One table as input and output, and one matrix of two layers."""

  def __init__(self, rngs):
    self.table = nnx.Embed(K, 4, rngs=rngs)
    self.a = nnx.Linear(4, 4, rngs=rngs)
    self.b = nnx.Linear(4, 4, rngs=rngs)
    self.b.kernel = self.a.kernel

  def __call__(self, x):
    x = self.table(tokens(x) % K).mean(1)
    return self.table.attend(jnp.tanh(self.b(jnp.tanh(self.a(x)))))


class Leaf(nnx.Module):
  """A leaf module of the user's own."""

  def __init__(self, rngs):
    self.gain = nnx.Param(1 + 0.1 * rngs.params.normal((72,)))

  def __call__(self, x):
    return jnp.sin(self.gain * x)


class Custom(nnx.Module):
  def __init__(self, rngs):
    self.leaf = Leaf(rngs)
    self.out = nnx.Linear(72, K, rngs=rngs)

  def __call__(self, x):
    return self.out(self.leaf(flat(x)))


class Gain(nnx.Module):
  """Its parameter acts beside its layers."""

  def __init__(self, rngs):
    self.gain = nnx.Param(jnp.ones(72))
    self.first = nnx.Linear(72, 72, rngs=rngs)
    self.out = nnx.Linear(72, K, rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.sin(self.gain * self.first(flat(x))))


class Remat(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(72, K, rngs=rngs)

  def __call__(self, x):
    return nnx.remat(lambda layer, x: layer(x))(self.out, jnp.tanh(flat(x)))


class Dropped(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(72, 20, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.out = nnx.Linear(20, K, rngs=rngs)

  def __call__(self, x):
    return self.out(self.drop(jax.nn.relu(self.a(flat(x)))))


GHOST = [
  Dense,
  Conv,
  Norms,
  Attention,
  ManyWords,
  Recurrent,
  Unrolled,
  Tied,
  Custom,
  Dropped,
  Gain,
]
FALLBACK = {Remat: "out/kernel is used outside"}

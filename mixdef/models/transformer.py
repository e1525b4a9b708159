"""Transformer encoder for token ids and series."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.check import check_count
from mixdef.core.registry import model
from mixdef.models.layers import check_fields, check_positive
from mixdef.models.sequences import check_tokens, embedded

_LONGEST = 10_000.0  # wavelength of the slowest position signal, over 2 pi


class Transformer(nn.Module):
  """Pre-norm encoder blocks and a mean over positions; created by `transformer`."""

  layers: int = 2
  width: int = 64
  heads: int = 4
  num_tokens: int | None = None
  num_classes: int = 10
  dropout: float = 0.0

  def __post_init__(self):
    check_positive(layers=self.layers, width=self.width, heads=self.heads)
    check_tokens("num_tokens", self.num_tokens)
    if self.width % self.heads:
      raise ValueError(
        f"width={self.width} is not a multiple of heads={self.heads}; change one"
      )
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]` for ids `[B,T]` or series `[B,T,C]`."""
    del weight
    x = embedded(x, num_tokens=self.num_tokens, width=self.width, model="transformer")
    x = x * self.width**0.5 + positions(x.shape[1], self.width)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    for _ in range(self.layers):
      x = x + self._attention(nn.LayerNorm()(x), train)
      x = x + self._feed_forward(nn.LayerNorm()(x), train)
    x = nn.LayerNorm()(x).mean(axis=1)
    return nn.Dense(self.num_classes)(x)

  def _attention(self, x, train):
    def heads():
      y = nn.Dense(self.width)(x)
      return y.reshape(*y.shape[:2], self.heads, -1)

    y = nn.dot_product_attention(heads(), heads(), heads())
    y = nn.Dense(self.width)(y.reshape(x.shape))
    return nn.Dropout(self.dropout)(y, deterministic=not train)

  def _feed_forward(self, x, train):
    y = nn.gelu(nn.Dense(4 * self.width)(x))
    y = nn.Dense(self.width)(y)
    return nn.Dropout(self.dropout)(y, deterministic=not train)


@model
def transformer(
  layers: int = 2,
  width: int = 64,
  heads: int = 4,
  *,
  num_tokens: int | None = None,
  num_classes: int = 10,
  dropout: float = 0.0,
) -> Transformer:
  """Create a transformer encoder for token ids [N,T] or series [N,T,C].

  Token ids are embedded, series are projected to `width`, and sinusoids encode the
  positions. Each block is x + attention(norm(x)), then x + dense(gelu(dense(norm(x))))
  with 4 * width hidden units. The logits are a dense layer of the mean over all
  positions, including padding.

  Args:
    layers: number of blocks.
    width: size of the vector of a position, a multiple of `heads`.
    heads: number of attention heads.
    num_tokens: V, required for token ids, such as `data.num_tokens`; an id outside
      [0,V) is clipped to it.
    num_classes: K.
    dropout: rate in [0,1) after the embedding and each half of a block, in training
      only.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if a field is out of range.

  Deviation: layer normalization precedes each half of a block instead of following it
    (Xiong et al., 2020), so training needs no warm-up of the learning rate.

  Reference: Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv 1706.03762.

  >>> transformer(2, 32, num_tokens=100).width
  32
  """
  return Transformer(
    layers,
    width,
    heads,
    num_tokens=num_tokens,
    num_classes=num_classes,
    dropout=dropout,
  )


def positions(length: int, width: int) -> jax.Array:
  """Return the sinusoids [T,width] of the paper's section 3.5: sines, then cosines.

  >>> positions(1, 4).tolist()
  [[0.0, 0.0, 1.0, 1.0]]
  """
  check_count("width", width)
  half = -(-width // 2)
  rates = _LONGEST ** (-np.arange(half) / half)
  angles = np.arange(length)[:, None] * rates
  waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
  return jnp.asarray(waves, jnp.float32)

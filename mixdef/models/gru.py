"""Recurrent network for token ids and series."""

from typing import Any

import flax.linen as nn
import jax

from mixdef.core.registry import model
from mixdef.models.layers import check_fields, check_positive
from mixdef.models.sequences import check_tokens, embedded


class GRU(nn.Module):
  """Gated recurrent units and a dense layer of the last state; created by `gru`."""

  width: int = 64
  num_tokens: int | None = None
  num_classes: int = 10
  dropout: float = 0.0

  def __post_init__(self):
    check_positive(width=self.width)
    check_tokens("num_tokens", self.num_tokens)
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, weight: jax.Array | None = None
  ) -> jax.Array:
    """Return logits `[B,K]` for ids `[B,T]` or series `[B,T,C]`."""
    del weight
    x = embedded(x, num_tokens=self.num_tokens, width=self.width, model="gru")
    states: Any = nn.RNN(nn.GRUCell(self.width))(x)
    x = nn.Dropout(self.dropout)(states[:, -1], deterministic=not train)
    return nn.Dense(self.num_classes)(x)


@model
def gru(
  width: int = 64,
  *,
  num_tokens: int | None = None,
  num_classes: int = 10,
  dropout: float = 0.0,
) -> GRU:
  """Create a recurrent network for token ids [N,T] or series [N,T,C].

  Token ids are embedded and series projected to `width`, a layer of gated recurrent
  units reads the positions in order, and the logits are a dense layer of its last
  state.

  Args:
    width: size of the state and of the embedding.
    num_tokens: V, required for token ids, such as `data.num_tokens`; an id outside
      [0,V) is clipped to it.
    num_classes: K.
    dropout: rate in [0,1) before the last layer, in training only.

  Returns:
    The module; `module.apply(variables, x, train=False)` gives logits `[B,K]`.

  Raises:
    ValueError: if a field is out of range.

  Reference: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder,
    EMNLP 2014, arXiv 1406.1078.

  >>> gru(32, num_tokens=100).width
  32
  """
  return GRU(width, num_tokens=num_tokens, num_classes=num_classes, dropout=dropout)

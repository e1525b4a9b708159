"""Embedding of token ids and series, shared by the networks for sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.check import check_count, optional

check_tokens = optional(check_count)


def embedded(
  x: jax.Array, *, num_tokens: int | None, width: int, model: str
) -> jax.Array:
  """Return a vector for each position, inside a network's `nn.compact` method.

  Args:
    x: token ids, integers [B,T], or series of quantities, floats [B,T,C].
    num_tokens: V of the token ids; an id outside [0,V) is clipped to it.
    width: size of a vector.
    model: name of the network, for the error message.

  Returns:
    `[B,T,width]`, from an `nn.Embed` or an `nn.Dense`.

  Raises:
    ValueError: for other records, and for token ids without `num_tokens`.
  """
  if jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 2:
    if num_tokens is None:
      raise ValueError(
        f"{model} needs the number of token ids: {model}(num_tokens=data.num_tokens)"
      )
    return nn.Embed(num_tokens, width)(jnp.clip(x, 0, num_tokens - 1))
  if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim != 3:
    raise ValueError(
      f"{model} reads token ids, integers [B,T], or series, floats [B,T,C], and not "
      f"{x.dtype} {list(x.shape)}: use mlp for tables and cnn for pictures"
    )
  return nn.Dense(width)(x)

"""The four networks of medGAN: encoder, decoder, generator of codes, and critic."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.check import check_count
from mixdef.models.layers import check_positive, normalize


class MedganEncoder(nn.Module):
  """One dense layer with tanh: rows [B,D] -> codes [B,latent] in (-1,1)."""

  latent: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return codes [B,latent] for rows [B,D]."""
    return nn.tanh(nn.Dense(self.latent)(x))


class MedganDecoder(nn.Module):
  """One dense layer: codes [B,latent] -> logits [B,D] of ones in each column."""

  num_features: int

  @nn.compact
  def __call__(self, code: jax.Array) -> jax.Array:
    """Return logits [B,D] for codes [B,latent]."""
    return nn.Dense(self.num_features)(code)


class MedganGenerator(nn.Module):
  """Three layers of equal width with shortcuts, the last with tanh."""

  @nn.compact
  def __call__(
    self,
    z: jax.Array,
    *,
    train: bool = False,
    weight: jax.Array | None = None,
  ) -> jax.Array:
    """Return codes [B,latent] for z [B,latent]; statistics exclude rows of weight 0."""
    for activation in (nn.relu, nn.relu, nn.tanh):
      x = nn.Dense(z.shape[-1], use_bias=False)(z)
      x = normalize(
        x[:, None, None],
        norm="batch",
        train=train,
        weight=weight,
        lowering="auto",
      )
      z = z + activation(x[:, 0, 0])
    return z


class MedganCritic(nn.Module):
  """Dense layers with ReLU, applied to a row and the mean of its batch."""

  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, mean: jax.Array) -> jax.Array:
    """Return the logit of being real [B], for rows x [B,D] and a mean [D]."""
    x = jnp.concatenate([x, jnp.broadcast_to(mean, x.shape)], -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(1)(x)[:, 0]


class MedganNetworks(NamedTuple):
  """The networks of medGAN and their common sizes; hashable.

  Attributes:
    encoder: `x [B,D] -> code [B,latent]`.
    decoder: `code [B,latent] -> logits [B,D]`, the generator's last layer.
    generator: `(z [B,latent], *, train, weight [B]) -> code [B,latent]`.
    critic: `(x [B,D], mean [D]) -> logit [B]`.
    latent: dimension of z ~ N(0, I), and of a code.
    num_classes: K.
    shape: shape of a record, (D,).
  """

  encoder: MedganEncoder
  decoder: MedganDecoder
  generator: MedganGenerator
  critic: MedganCritic
  latent: int
  num_classes: int
  shape: tuple[int, ...]


def medgan_networks(
  num_features: int,
  num_classes: int,
  *,
  latent: int = 128,
  hidden: tuple[int, ...] = (256, 128),
) -> MedganNetworks:
  """Create the networks of medGAN for tables of zeros and ones.

  ```
  encoder    tanh(W x + b)
  decoder    W c + b, the logits of ones
  generator  h_0 = z,   h_k = f_k(BN(W_k h_{k-1})) + h_{k-1},   f = ReLU, ReLU, tanh
  critic     (x, mean of the batch) -> hidden, ReLU -> logit of being real
  ```

  Args:
    num_features: D, the number of columns of the table.
    num_classes: K of the data; the networks are unconditional.
    latent: dimension of z, of a code and of every layer of the generator, whose
      shortcuts require equal widths.
    hidden: widths of the critic's hidden layers.

  Returns:
    The `MedganNetworks`.

  Raises:
    ValueError: for sizes out of range.

  Deviation: running statistics of BN have momentum 0.9. The official code uses 0.99
    and 1,000 extra batches of generated codes before a release; here, the statistics
    converge during training. Weights are LeCun-normal; officially Glorot-uniform.

  Reference: Choi et al., Generating Multi-label Discrete Patient Records using
    Generative Adversarial Networks, 2017, arXiv 1703.06490.

  >>> medgan_networks(736, 100).shape
  (736,)
  """
  if not isinstance(hidden, (tuple, list)) or not hidden:
    raise ValueError(
      f"hidden={hidden!r} must be a tuple of widths, for example (256, 128)"
    )
  for width in hidden:
    check_count("hidden", width)
  check_positive(num_features=num_features, num_classes=num_classes, latent=latent)
  return MedganNetworks(
    MedganEncoder(latent),
    MedganDecoder(num_features),
    MedganGenerator(),
    MedganCritic(tuple(hidden)),
    latent,
    num_classes,
    (num_features,),
  )

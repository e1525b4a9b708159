"""Dense GAN networks, for tables and small images."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.check import check_count, check_flag
from mixdef.models.gan_pair import Networks
from mixdef.models.layers import check_positive


class DenseGenerator(nn.Module):
  """Dense layers with ReLU and a sigmoid output; see `dense_networks`."""

  shape: tuple[int, ...]
  hidden: tuple[int, ...]
  conditional: bool

  @nn.compact
  def __call__(
    self,
    z: jax.Array,
    y: jax.Array,
    *,
    train: bool = False,
    weight: jax.Array | None = None,
  ) -> jax.Array:
    """Return records [B, *shape] in [0,1]; `train` and `weight` have no effect."""
    del train, weight
    x = jnp.concatenate([z, y], -1) if self.conditional else z
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    x = nn.sigmoid(nn.Dense(math.prod(self.shape))(x))
    return x.reshape(-1, *self.shape)


class DenseCritic(nn.Module):
  """Dense layers with LeakyReLU 0.2 and a scalar output; see `dense_networks`."""

  hidden: tuple[int, ...]
  conditional: bool

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return one score per record [B], for records [B, *shape] in [0,1]."""
    x = x.reshape(x.shape[0], -1)
    x = jnp.concatenate([x, y], -1) if self.conditional else x
    for features in self.hidden:
      x = nn.leaky_relu(nn.Dense(features)(x), 0.2)
    return nn.Dense(1)(x)[:, 0]


def dense_networks(
  shape: Sequence[int],
  num_classes: int,
  *,
  hidden: int = 256,
  latent: int = 128,
  conditional: bool = True,
) -> Networks:
  """Create dense networks for records of any shape, which are flattened.

  Generator: latent-hidden-hidden-D, ReLU, sigmoid. Critic: hidden-hidden-1.

  Args:
    shape: shape of a record; D is the product.
    num_classes: K, the length of a condition.
    hidden: width of the hidden layers.
    latent: dimension of z.
    conditional: whether both networks see the condition.

  Returns:
    The `Networks`.

  Raises:
    ValueError: for sizes out of range.

  >>> dense_networks((8, 8), 10).shape
  (8, 8)
  """
  shape = tuple(shape)
  for size in shape:
    check_count("shape", size)
  check_positive(num_classes=num_classes, hidden=hidden, latent=latent)
  check_flag("conditional", conditional)
  layers = (hidden, hidden)
  generator = DenseGenerator(shape, layers, conditional)
  return Networks(
    generator, DenseCritic(layers, conditional), latent, num_classes, shape
  )


def table_networks(
  num_features: int,
  num_classes: int,
  *,
  hidden: int = 256,
  latent: int = 128,
  conditional: bool = False,
) -> Networks:
  """Create dense networks for tables of numbers in [0,1], by default unconditional.

  Args:
    num_features: D, the number of columns of the table.
    num_classes: K, the length of a condition.
    hidden: width of the hidden layers.
    latent: dimension of z.
    conditional: whether both networks see the condition.

  Returns:
    The `Networks`.

  Raises:
    ValueError: for sizes out of range.

  Deviation: the networks that the authors of the mixup GAN trained on MIMIC-III are
    unknown; the sizes are our choice.

  >>> table_networks(736, 100).shape
  (736,)
  """
  check_count("num_features", num_features)
  sizes = {"hidden": hidden, "latent": latent, "conditional": conditional}
  return dense_networks((num_features,), num_classes, **sizes)

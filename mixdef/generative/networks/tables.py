"""Networks for tables: two dense nets."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.generative.networks.pair import Networks
from mixdef.models.layers import check_positive


class TableGenerator(nn.Module):
  """Dense layers with ReLU, then one probability a column; see the factory."""

  num_features: int
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
    """Return rows [B,D] in [0,1]; `train` and `weight` change nothing here."""
    del train, weight
    x = jnp.concatenate([z, y], -1) if self.conditional else z
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.sigmoid(nn.Dense(self.num_features)(x))


class TableCritic(nn.Module):
  """Dense layers with LeakyReLU 0.2, then one number; see the factory."""

  hidden: tuple[int, ...]
  conditional: bool

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return one score a row [B], for rows [B,D] in [0,1]."""
    x = jnp.concatenate([x, y], -1) if self.conditional else x
    for features in self.hidden:
      x = nn.leaky_relu(nn.Dense(features)(x), 0.2)
    return nn.Dense(1)(x)[:, 0]


def table_networks(
  num_features: int,
  num_classes: int,
  *,
  hidden: int = 256,
  latent: int = 128,
  conditional: bool = False,
) -> Networks:
  """Make the dense networks for tables of numbers in [0,1].

  Generator: latent-hidden-hidden-D, ReLU, sigmoid. Critic: hidden-hidden-1.

  Args:
    num_features: D, columns of the table.
    num_classes: K, the length of a condition.
    hidden: width of the hidden layers.
    latent: numbers of z.
    conditional: let both see the condition.

  Returns:
    The `Networks`.

  Raises:
    ValueError: for sizes out of range.

  Deviation: what the authors of the mixup GAN trained on MIMIC-III is not known; the
    sizes are ours.

  >>> table_networks(736, 100).shape
  (736,)
  """
  check_positive("num_features", num_features)
  check_positive("num_classes", num_classes)
  check_positive("hidden", hidden)
  check_positive("latent", latent)
  generator = TableGenerator(num_features, (hidden, hidden), conditional)
  critic = TableCritic((hidden, hidden), conditional)
  return Networks(generator, critic, latent, num_classes, (num_features,))

"""A matching pair of generator and critic, and how they are applied."""

from typing import Any, NamedTuple

import jax


class Networks(NamedTuple):
  """The two networks of a GAN and their common sizes; hashable.

  Attributes:
    generator: `(z [B,latent], y [B,K], *, train, weight [B]) -> [B, *shape]` in [0,1].
    critic: `(x [B, *shape], y [B,K]) -> [B]`. It must score each record independently:
      use layer, instance or group normalization, never batch normalization.
    latent: dimension of z ~ N(0, I).
    num_classes: K.
    shape: shape of a record.
  """

  generator: Any  # a linen module; `Any` because `apply` has overloaded types
  critic: Any
  latent: int
  num_classes: int
  shape: tuple[int, ...]

  def score(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return D(x, y) [B], with the critic's parameters."""
    return self.critic.apply({"params": params}, x, y)

  def generate(self, params: Any, stats: Any, z: jax.Array, y: jax.Array) -> jax.Array:
    """Return G(z, y) of a trained generator, with its running statistics."""
    return self.generator.apply({"params": params, **stats}, z, y)

  def fakes(
    self, params: Any, stats: Any, z: jax.Array, y: jax.Array, weight=None
  ) -> tuple[jax.Array, Any]:
    """Return G(z, y) in training mode, and the new statistics."""
    how = {"train": True, "weight": weight, "mutable": list(stats)}
    return self.generator.apply({"params": params, **stats}, z, y, **how)

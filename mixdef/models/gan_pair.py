"""A matching pair of generator and critic, and how they are applied."""

from typing import Any, NamedTuple

import jax

from mixdef.core.randomness import fold_in_name
from mixdef.models.adapters import adapt


class Networks(NamedTuple):
  """The two networks of a GAN and their common sizes; hashable.

  Attributes:
    generator: `(z [B,latent], y [B,K]) -> [B, *shape]` in [0,1], a model of any kind
      that `adapt` takes. It may take a training flag and `weight` [B].
    critic: `(x [B, *shape], y [B,K]) -> [B]`, likewise. It must score each record
      independently: use layer, instance or group normalization, never batch
      normalization.
    latent: dimension of z ~ N(0, I).
    num_classes: K.
    shape: shape of a record.
  """

  generator: Any
  critic: Any
  latent: int
  num_classes: int
  shape: tuple[int, ...]

  def adapted(self) -> "Networks":
    """Return the pair with a `Network` for each of the two.

    Raises:
      TypeError: for an object that is not a model.
      ValueError: for a model that needs what a learner does not know.
    """
    generator, critic = (adapt(one, inputs=2) for one in (self.generator, self.critic))
    return self._replace(generator=generator, critic=critic)

  def score(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return D(x, y) [B], with the parameters of an adapted critic."""
    return self.critic.apply({"params": params}, x, y, train=False)[0]

  def generate(self, params: Any, stats: Any, z: jax.Array, y: jax.Array) -> jax.Array:
    """Return G(z, y) of an adapted, trained generator, with its running statistics."""
    return self.generator.apply({"params": params, **stats}, z, y, train=False)[0]

  def fakes(
    self, params: Any, stats: Any, z: jax.Array, y: jax.Array, weight=None, key=None
  ) -> tuple[jax.Array, Any]:
    """Return G(z, y) of an adapted generator in training, and its new statistics."""
    variables = {"params": params, **stats}
    key = None if key is None else fold_in_name(key, "model")
    made, new = self.generator.apply(
      *(variables, z, y), train=True, key=key, weight=weight
    )
    return made, {**stats, **new}

"""A matching pair of generator and critic."""

from typing import Any, NamedTuple


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

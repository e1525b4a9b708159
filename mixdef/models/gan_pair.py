"""A generator and a critic that belong together."""

from typing import Any, NamedTuple


class Networks(NamedTuple):
  """The two networks of a GAN and the sizes that they share; hashable.

  Attributes:
    generator: `(z [B,latent], y [B,K], *, train, weight [B]) -> [B, *shape]` in [0,1].
    critic: `(x [B, *shape], y [B,K]) -> [B]`. It must judge each record alone: layer,
      instance or group normalisation, never batch normalisation.
    latent: numbers of z ~ N(0, I).
    num_classes: K.
    shape: of a record.
  """

  generator: Any  # a linen module, whose `apply` has a type of several forms
  critic: Any
  latent: int
  num_classes: int
  shape: tuple[int, ...]

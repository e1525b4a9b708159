"""Networks of the mixup GAN for images; the number of stages depends on the size."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixdef.core.check import check_choice
from mixdef.kernels.convolution import LOWERINGS, linen_conv
from mixdef.kernels.group_norm import GroupNorm
from mixdef.kernels.transposed import ConvTranspose
from mixdef.models.gan_pair import Networks
from mixdef.models.layers import as_images, check_positive, normalize

_SMALLEST = 4  # maps of at most this many rows and columns are not halved again
_NORMS = ("batch", "group")


class ImageGenerator(nn.Module):
  """A dense layer, then transposed convolutions that double the map."""

  shape: tuple[int, ...]
  width: int
  norm: str
  lowering: str = "auto"

  @nn.compact
  def __call__(
    self,
    z: jax.Array,
    y: jax.Array,
    *,
    train: bool = False,
    weight: jax.Array | None = None,
  ) -> jax.Array:
    """Return images [B, *shape] in [0,1]; statistics exclude rows of weight 0."""
    sizes = _sizes(self.shape)
    settle = functools.partial(
      normalize,
      norm=self.norm,
      train=train,
      weight=weight,
      lowering=self.lowering,
      relu=True,
    )
    channels = self.width * 2 ** (len(sizes) - 2)
    rows, columns = sizes[-1]
    x = jnp.concatenate([z, y], -1)
    x = nn.Dense(rows * columns * channels, use_bias=False)(x)
    x = settle(x.reshape(-1, rows, columns, channels))
    for size in sizes[-2:0:-1]:
      channels //= 2
      x = ConvTranspose(channels, size, use_bias=False, lowering=self.lowering)(x)
      x = settle(x)
    depth = self.shape[2] if len(self.shape) == 3 else 1
    x = ConvTranspose(depth, sizes[0], lowering=self.lowering)(x)
    return nn.sigmoid(x).reshape(-1, *self.shape)


class ImageCritic(nn.Module):
  """Strided convolutions that halve the map, then a scalar output."""

  width: int
  lowering: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return one score per image [B], for [B,H,W] or [B,H,W,C] in [0,1]."""
    sizes = _sizes(x.shape[1:])
    x = as_images(x)
    conv = functools.partial(
      nn.Conv,
      conv_general_dilated_cls=functools.partial(linen_conv, self.lowering),
    )
    maps = jnp.broadcast_to(y[:, None, None], (*x.shape[:3], y.shape[-1]))
    x = jnp.concatenate([x, maps], -1)
    for stage in range(len(sizes) - 1):
      channels = self.width * 2**stage
      x = conv(channels, (5, 5), strides=2, padding=2)(x)
      if stage:  # one group per channel is instance normalization
        x = GroupNorm(channels, reverse_only=self.lowering != "native")(x)
      x = nn.leaky_relu(x, 0.2)
    return conv(1, sizes[-1], padding="VALID")(x)[:, 0, 0, 0]


def image_networks(
  shape: Sequence[int],
  num_classes: int,
  *,
  width: int = 64,
  latent: int = 100,
  norm: str = "batch",
  lowering: str = "auto",
) -> Networks:
  """Create the conditional networks of the mixup GAN for images of any size.

  An image is halved until its map has at most 4 rows and columns: 64x64 in four
  stages (the official networks), 32x32 and 28x28 in three, 8x8 in one.

  Generator: (z, y) -> dense without bias -> norm, ReLU -> transposed convolutions 5x5
  of stride 2 without bias, each with norm and ReLU -> one with bias -> sigmoid. Critic:
  the condition as maps appended to the channels -> convolutions 5x5 of stride 2,
  LeakyReLU 0.2, from the second on preceded by affine instance normalization -> one
  valid convolution over the remaining map. Channels double from stage to stage.

  Args:
    shape: shape of an image, (H, W) or (H, W, C).
    num_classes: K, the length of a condition.
    width: channels at the finest stage; the official networks have 64.
    latent: dimension of z; the official scripts use 256 for CelebA and 100 for
      CIFAR-10.
    norm: the generator's normalization, "batch" (official) or "group". DP-SGD needs
      "group", because batch statistics would propagate one record's label into
      another's gradient.
    lowering: how convolutions are lowered; see `mixdef.kernels.convolution`.

  Returns:
    The `Networks`.

  Raises:
    ValueError: for sizes out of range or an unknown norm.

  Deviation: the official networks support only 64x64. For 32x32, one stage is omitted,
    because the maps would shrink to 2x2; sizes that are not powers of two have odd maps
    in between (28, 14, 7, 4). Weights are LeCun-normal, which is our choice: the
    official initialization was not recorded.

  Reference: Mixup Training for Generative Models to Defend Membership Inference
    Attacks, INFOCOM 2023.

  >>> networks = image_networks((28, 28), 10, width=16)
  >>> networks.shape, networks.latent
  ((28, 28), 100)
  """
  shape = tuple(shape)
  if len(shape) not in (2, 3) or min(shape[:2]) < 2:
    raise ValueError(f"shape={shape} is not that of an image: pass (H, W) or (H, W, C)")
  check_positive(num_classes=num_classes, width=width, latent=latent)
  check_choice("norm", norm, _NORMS)
  check_choice("lowering", lowering, LOWERINGS)
  generator = ImageGenerator(shape, width, norm, lowering)
  critic = ImageCritic(width, lowering)
  return Networks(generator, critic, latent, num_classes, shape)


def _sizes(shape: Sequence[int]) -> list[tuple[int, int]]:
  """Return the sizes of the maps, from the image's size to the smallest."""
  sizes = [(shape[0], shape[1])]
  while len(sizes) < 2 or max(sizes[-1]) > _SMALLEST:
    rows, columns = sizes[-1]
    sizes.append((-(-rows // 2), -(-columns // 2)))
  return sizes

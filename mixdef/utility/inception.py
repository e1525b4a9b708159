"""The Inception-v3 network of the Frechet Inception distance."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConvNorm(nn.Module):
  """Convolution without bias, BatchNorm with stored statistics, ReLU."""

  features: int
  kernel: tuple[int, int]
  strides: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return `[B,H',W',features]` for `[B,H,W,C]`."""
    x = nn.Conv(
      self.features,
      self.kernel,
      self.strides,
      self.padding,
      use_bias=False,
      precision="highest",
      name="conv",
    )(x)
    x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x)
    return nn.relu(x)


class InceptionA(nn.Module):
  """1x1, 5x5 and double 3x3 branches next to an average pool."""

  pool_features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return 224 + pool_features channels of the same map."""
    parts = [
      _conv(x, "branch1x1", 64, (1, 1)),
      _convs(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
      _convs(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
      _conv(_average(x), "branch_pool", self.pool_features, (1, 1)),
    ]
    return jnp.concatenate(parts, -1)


class InceptionB(nn.Module):
  """Halve the map, from 288 channels to 768."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return the map at half the size, with 480 additional channels."""
    parts = [
      _conv(x, "branch3x3", 384, (3, 3), 2),
      _convs(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3), 2)),
      nn.max_pool(x, (3, 3), (2, 2)),
    ]
    return jnp.concatenate(parts, -1)


class InceptionC(nn.Module):
  """Branches of 7x7 convolutions, each factored into a row and a column."""

  inner: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return 768 channels of the same map."""
    row, column = (self.inner, (1, 7)), (self.inner, (7, 1))
    start = (self.inner, (1, 1))
    parts = [
      _conv(x, "branch1x1", 192, (1, 1)),
      _convs(x, "branch7x7", start, row, (192, (7, 1))),
      _convs(x, "branch7x7dbl", start, column, row, column, (192, (1, 7))),
      _conv(_average(x), "branch_pool", 192, (1, 1)),
    ]
    return jnp.concatenate(parts, -1)


class InceptionD(nn.Module):
  """Halve the map, from 768 channels to 1280."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return the map at half the size, with 512 additional channels."""
    start = (192, (1, 1))
    parts = [
      _convs(x, "branch3x3", start, (320, (3, 3), 2)),
      _convs(x, "branch7x7x3", start, (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
      nn.max_pool(x, (3, 3), (2, 2)),
    ]
    return jnp.concatenate(parts, -1)


class InceptionE(nn.Module):
  """Branches that split into a row and a column; `pool` is "avg" or "max"."""

  pool: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return 2048 channels of the same map."""
    same = {"strides": (1, 1), "padding": "SAME"}
    pooled = _average(x) if self.pool == "avg" else nn.max_pool(x, (3, 3), **same)
    once = _conv(x, "branch3x3_1", 384, (1, 1))
    twice = _convs(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    parts = [
      _conv(x, "branch1x1", 320, (1, 1)),
      _conv(once, "branch3x3_2a", 384, (1, 3)),
      _conv(once, "branch3x3_2b", 384, (3, 1)),
      _conv(twice, "branch3x3dbl_3a", 384, (1, 3)),
      _conv(twice, "branch3x3dbl_3b", 384, (3, 1)),
      _conv(pooled, "branch_pool", 192, (1, 1)),
    ]
    return jnp.concatenate(parts, -1)


class Inception(nn.Module):
  """Inception-v3 up to its last average pool, as the FID weights were trained.

  It differs from the paper's network: average pools do not count their padding, and the
  last block has a max pool. Submodules are named after the entries of the weights.

  Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", 2016, arXiv 1512.00567; the differences as in pytorch-fid (Seitzer, 2020).
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Return features `[B,2048]` for images `[B,H,W,3]` in [-1,1], sides >= 75."""
    x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
    x = ConvNorm(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
    x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _conv(x, "Conv2d_3b_1x1", 80, (1, 1))
    x = ConvNorm(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
      x = InceptionA(pool_features, name=f"Mixed_5{letter}")(x)
    x = InceptionB(name="Mixed_6a")(x)
    for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
      x = InceptionC(inner, name=f"Mixed_6{letter}")(x)
    x = InceptionD(name="Mixed_7a")(x)
    x = InceptionE("avg", name="Mixed_7b")(x)
    x = InceptionE("max", name="Mixed_7c")(x)
    return x.mean((1, 2))


def _conv(x, name, features, kernel, strides=1):
  """Convolve to a map of the same size, or without padding to about half of it."""
  padding = "SAME" if strides == 1 else "VALID"
  return ConvNorm(features, kernel, strides, padding, name=name)(x)


def _convs(x, branch, *layers):
  for number, layer in enumerate(layers, 1):
    x = _conv(x, f"{branch}_{number}", *layer)
  return x


def _average(x):
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)

"""Random augmentations that change each record on its own: crops, flips, noise."""

import jax
import jax.numpy as jnp

from mixdef.core.check import (
  channels_first,
  check_choice,
  check_count,
  check_flag,
  check_number,
  is_static,
)
from mixdef.core.hooks import Defense, defense
from mixdef.core.randomness import batch_keys
from mixdef.core.traits import Traits


@defense(neutral="cutout(0)")
def cutout(side=16) -> Defense:
  """Train on images with a square hole at a random place.

  ```
  x'[i, j] = 0 where 0 <= i - c_1 + h < side and 0 <= j - c_2 + h < side
  h = floor(side / 2),   c uniform over the pixels
  ```

  The square may extend over the border, so a side as long as the image's rarely hides
  all of it. The hole is 0 on the data set's own scale: black, not the mean, for images
  that the model normalizes itself.

  Args:
    side: side of the square in pixels, at least 0; 0 changes nothing. 16 is used on
      CIFAR-10, 8 on CIFAR-100. Kaya and Dumitras sweep 4..52. May be traced.

  Returns:
    The defense. Every visit of a record draws a new place from the record's id.

  Raises:
    ValueError: for an invalid number of pixels; at the first step, for records that are
      not images [H,W] or [H,W,C].

  Guarantee: none. A row depends only on its own record, so per-example clipping bounds
  it.

  Deviation: the published code halves the side, so that 35 acts as 34; here it is kept.

  Reference: DeVries, Taylor, Improved Regularization of Convolutional Neural Networks
    with Cutout, 2017, arXiv 1708.04552; Kaya, Dumitras, When Does Data Augmentation
    Help With Membership Inference Attacks?, 2021.

  >>> str(cutout(8))
  'cutout(side=8)'
  """
  if not isinstance(side, jax.core.Tracer):
    check_count("cutout: side", side, 0)

  def change(key, x):
    hole = draw_box(key, (side, side), x.shape[:2])
    return jnp.where(hole.reshape(hole.shape + (1,) * (x.ndim - 2)), 0.0, x)

  return _each_row("cutout", change, off=is_static(side) and side == 0)


@defense(neutral="random_crop(0)")
def random_crop(padding=4, *, fill="zero") -> Defense:
  """Train on images that are shifted at random, by padding and cropping.

  ```
  x'[i, j] = padded[i + u, j + v],   u, v uniform over 0..2 padding
  ```

  Args:
    padding: number of pixels on every border, at least 0; 0 changes nothing. 4 is usual
      on CIFAR; Kaya and Dumitras sweep 1..38.
    fill: the padding: "zero" on the data set's own scale, which is black and not the
      mean for images that the model normalizes itself (Aerni et al., Kaya and
      Dumitras), or "reflect", the mirrored image without its border (LiRA's training).

  Returns:
    The defense. Every visit of a record draws a new shift from the record's id.

  Raises:
    ValueError: for an invalid number of pixels or an unknown option; at the first step,
      for records that are not images [H,W] or [H,W,C].

  Guarantee: none. A row depends only on its own record, so per-example clipping bounds
  it.

  Reference: Aerni, Zhang, Tramer, Evaluations of Machine Learning Privacy Defenses are
    Misleading, 2024, arXiv 2404.17399; Carlini et al., Membership Inference Attacks
    From First Principles, 2022, arXiv 2112.03570.

  >>> str(random_crop(fill="reflect"))
  "random_crop(fill='reflect')"
  """
  check_count("random_crop: padding", padding, 0)
  check_choice("random_crop: fill", fill, ("zero", "reflect"))
  mode = "constant" if fill == "zero" else "reflect"

  def change(key, x):
    border = ((padding, padding),) * 2 + ((0, 0),) * (x.ndim - 2)
    padded = jnp.pad(x, border, mode=mode)
    u, v = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (u, v) + (0,) * (x.ndim - 2), x.shape)

  return _each_row("random_crop", change, off=padding == 0)


@defense(neutral="random_flip(0.0)")
def random_flip(probability=0.5) -> Defense:
  """Train on images that are mirrored left to right at random.

  ```
  x'[i, j] = x[i, W - 1 - j] with the given probability, else x
  ```

  Args:
    probability: probability that a record is mirrored at a visit, in [0, 1]; 0 changes
      nothing. May be traced.

  Returns:
    The defense. Every visit of a record draws anew from the record's id.

  Raises:
    ValueError: for a number out of range; at the first step, for records that are not
      images [H,W] or [H,W,C].

  Guarantee: none. A row depends only on its own record, so per-example clipping bounds
  it.

  Reference: Aerni, Zhang, Tramer, Evaluations of Machine Learning Privacy Defenses are
    Misleading, 2024, arXiv 2404.17399.

  >>> str(random_flip())
  'random_flip'
  """
  check_number("random_flip: probability", probability, 0, 1)

  def change(key, x):
    return jnp.where(jax.random.bernoulli(key, probability), x[:, ::-1], x)

  off = is_static(probability) and probability == 0
  return _each_row("random_flip", change, off=off)


@defense(neutral="gaussian_noise(0.0)")
def gaussian_noise(sigma=0.1, *, clip=True) -> Defense:
  """Train on records with Gaussian noise, images or tables.

  ```
  x' = clip(x + sigma n, 0, 1),   n ~ N(0, 1) a value
  ```

  Args:
    sigma: standard deviation on the data set's own scale, at least 0; 0 changes
      nothing. Kaya and Dumitras sweep 0.01..0.35 on images in [0, 1], which includes
      the default [ours]. May be traced.
    clip: whether to keep the values in [0, 1]; use False for standardized records.

  Returns:
    The defense. Every visit of a record draws new noise from the record's id.

  Raises:
    ValueError: for a negative sigma.

  Guarantee: none. The noise is redrawn for every visit and enters the input, not the
  gradient: this is not differential privacy.

  Deviation: if a value is already outside [0, 1], the range is extended to include it,
    so that sigma = 0 never changes the data [ours].

  Reference: Kaya, Dumitras, When Does Data Augmentation Help With Membership Inference
    Attacks?, 2021.

  >>> str(gaussian_noise(0.2, clip=False))
  'gaussian_noise(sigma=0.2, clip=False)'
  """
  check_number("gaussian_noise: sigma", sigma, 0)
  check_flag("gaussian_noise: clip", clip)

  def change(key, x):
    noisy = x + sigma * jax.random.normal(key, x.shape, x.dtype)
    return jnp.clip(noisy, jnp.minimum(x, 0), jnp.maximum(x, 1)) if clip else noisy

  off = is_static(sigma) and sigma == 0
  return _each_row("gaussian_noise", change, off=off, pictures=False)


def check_pictures(name, x):
  """Reject a batch of records that are not images.

  Raises:
    ValueError: unless x is [B,H,W] or [B,H,W,C]; channels first are recognized by an
      axis of 1 or 3 that is second and not last.
  """
  if x.ndim not in (3, 4):
    raise ValueError(
      f"{name} augments images [H,W] or [H,W,C], but the records have shape "
      f"{x.shape[1:]}: drop it, or reshape them"
    )
  if channels_first(x.shape):
    raise ValueError(
      f"{name} augments images [H,W,C], but the records of shape {x.shape[1:]} seem to "
      "have their channels first: pass x.transpose(0, 2, 3, 1)"
    )


def draw_box(key, sides, shape):
  """Mark a box with a uniform centre, cut off at the border of the image.

  Args:
    key: random key of the centre.
    sides: height and width in whole pixels; may be traced. 0 gives an empty box.
    shape: height and width [H,W] of the image.

  Returns:
    bool [H,W].
  """

  def inside(key, side, length):
    start = jax.random.randint(key, (), 0, length) - side // 2
    place = jnp.arange(length)
    return (start <= place) & (place < start + side)

  rows, columns = map(inside, jax.random.split(key), sides, shape)
  return rows[:, None] & columns[None, :]


def _each_row(name, change, *, off, pictures=True):
  """Make the defense that applies `change(key, x) -> x'` to every record."""

  def batch(batch, state, ctx):
    del state
    if pictures:
      check_pictures(name, batch.x)
    keys = batch_keys(ctx.key, batch)
    return batch._replace(x=jax.vmap(change)(keys, batch.x))

  return Defense(
    "", batch=None if off else batch, traits=Traits(order="augment", quantities=True)
  )

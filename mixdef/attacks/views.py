"""Aligned query sets: x [B,...] -> [B,Q,...], the same for every model, view 0 first.

A view depends only on the record's content, never on the model, the block or a random
state, so the outputs of two models can be compared view by view. View 0 is the record
itself.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.attacks._targets import Unavailable
from mixdef.core import validate
from mixdef.core.check import channels_first
from mixdef.core.randomness import check_seed, hash_rows
from mixdef.data import to_float

Views = Callable[[np.ndarray], np.ndarray]

_HASHED = 2**13  # records that are read at once to hash them


def identity(x: np.ndarray) -> np.ndarray:
  """Query the records unchanged: x [B,...] -> [B,1,...]."""
  return x[:, None]


def mirror(x: np.ndarray) -> np.ndarray:
  """Query images and their mirror images: x [B,H,W,C] -> [B,2,H,W,C].

  Raises:
    ValueError: if x is not images.

  >>> mirror(np.arange(2.0).reshape(1, 1, 2, 1)).ravel().tolist()
  [0.0, 1.0, 1.0, 0.0]
  """
  _check_pictures(x, "mirror image")
  return np.stack([x, x[:, :, ::-1]], 1)


def flips_and_shifts(shift: int | None = None) -> Views:
  """Make 18 views of images: {original, mirrored} x shifts {0, -s, s}^2.

  Uncovered pixels are 0 on the data set's own scale: black, not the mean, for images
  that the model normalizes itself.

  Args:
    shift: s in pixels, at least 1; the default is an eighth of the shorter side, which
      is the customary 4 at 32 pixels.

  Returns:
    x [B,H,W,C] -> [B,18,H,W,C], of the same type.

  Raises:
    ValueError: for a shift below 1; from the views, if x is not images or the shift is
      not smaller than the images.

  Reference: Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference Attacks
    From First Principles", 2022, arXiv 2112.03570.

  >>> flips_and_shifts(1)(np.ones((5, 8, 8, 1), np.uint8)).shape
  (5, 18, 8, 8, 1)
  """
  _check_distance("shift", shift)

  def views(x):
    _check_pictures(x, "flip or shift")
    s = max(1, min(x.shape[1:3]) // 8) if shift is None else shift
    offsets = list(itertools.product((0, -s, s), repeat=2))
    shifted = [_shift(each, offsets, "constant") for each in (x, x[:, :, ::-1])]
    return np.concatenate(shifted, 1)

  return views


def translations(distance: int = 1) -> Views:
  """Make the 4d + 1 views of images that are |i| + |j| = d pixels away, or 0.

  The border repeats the nearest pixel.

  Args:
    distance: d in pixels, at least 1.

  Returns:
    x [B,H,W,C] -> [B,4d+1,H,W,C], of the same type.

  Raises:
    ValueError: for a distance below 1; from the views, if x is not images or the
      distance is not smaller than the images.

  Reference: Choquette-Choo, Tramer, Carlini, Papernot, "Label-Only Membership
    Inference Attacks", 2021, arXiv 2007.14321.

  >>> translations(2)(np.zeros((1, 8, 8, 1))).shape
  (1, 9, 8, 8, 1)
  """
  _check_distance("distance", distance)
  steps = itertools.product(range(-distance, distance + 1), repeat=2)
  offsets = [(0, 0), *(o for o in steps if abs(o[0]) + abs(o[1]) == distance)]

  def views(x):
    _check_pictures(x, "shift")
    return _shift(x, offsets, "edge")

  return views


def rotations(degrees: int = 9) -> Views:
  """Make the 2r + 1 views of images rotated by 0, -r, ..., -1, 1, ..., r degrees.

  Interpolation is bilinear, about the centre; the border repeats the nearest pixel.

  Args:
    degrees: r, at least 1. The official code uses 9; 1 gives three angles.

  Returns:
    x [B,H,W,C] -> [B,2r+1,H,W,C] float32, uint8 images as x / 255.

  Raises:
    ValueError: for degrees outside 1..180; from the views, if x is not images.

  Deviation: the official grid is [0] for r = 1; here it also has -1 and 1.

  Reference: Choquette-Choo, Tramer, Carlini, Papernot, "Label-Only Membership
    Inference Attacks", 2021, arXiv 2007.14321.

  >>> rotations(1)(np.zeros((1, 8, 8, 1), np.uint8)).shape
  (1, 3, 8, 8, 1)
  """
  _check_distance("degrees", degrees)
  if degrees > 180:
    raise ValueError(f"degrees={degrees} is more than a full turn; pass 1 to 180")
  angles = sorted(range(-degrees, degrees + 1), key=bool)  # 0 first, the rest in order

  def views(x):
    _check_pictures(x, "rotation")
    x = to_float(x)
    return np.stack([_rotate(x, angle) if angle else x for angle in angles], 1)

  return views


def mixed(
  partners: np.ndarray,
  *,
  weights: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5),
  seed: int = 0,
) -> Views:
  """Make views that mix a record with others, as mixup-type defenses train on.

      view 0 = x,   view j = w_j x + (1 - w_j) z_j,   z_j drawn from the partners

  The statistic of a mixed view is that of the record's own label: `signals` reads phi,
  hinge and correctness of y for every view, so the partner's label is never used and a
  weight below 1/2 mostly queries the partner. The loss against both labels is
  `augmentation_aware`.

  Args:
    partners: [P,...] records that no model trained on, of the same kind as x; otherwise
      the target's memorization of the partner adds noise to the score.
    weights: w_j in (0, 1), the weight of the record in each view.
    seed: random seed of the partners; a record's partners are drawn by its content.

  Returns:
    x [B,...] -> [B,1+len(weights),...] float32, uint8 images as x / 255.

  Raises:
    ValueError: for no partners or a weight out of range; from the views, if records and
      partners differ in shape or type.

  >>> views = mixed(np.zeros((1, 2), np.float32), weights=(0.5,))
  >>> views(np.ones((1, 2), np.float32))[0].tolist()
  [[1.0, 1.0], [0.5, 0.5]]
  """
  partners = np.asarray(partners)
  if not len(partners):
    raise ValueError("partners has 0 records; pass at least one")
  for j, weight in enumerate(weights):
    if not 0 < weight < 1:
      raise ValueError(
        f"weights[{j}]={weight} is outside (0, 1): view 0 is the record itself"
      )

  def views(x):
    validate.quantities(x, "a mixed view", error=Unavailable)
    if (x.shape[1:], x.dtype) != (partners.shape[1:], partners.dtype):
      raise ValueError(
        f"records are {x.shape[1:]} {x.dtype}, partners {partners.shape[1:]} "
        f"{partners.dtype}: preprocess both in the same way"
      )
    size = len(weights)
    chosen = [
      np.random.default_rng([check_seed(seed), content]).integers(
        len(partners), size=size
      )
      for content in content_hash(x)
    ]
    others = to_float(partners[np.stack(chosen)])
    share = np.asarray(weights, np.float32).reshape(-1, *[1] * (x.ndim - 1))
    own = to_float(x)[:, None]
    return np.concatenate([own, share * own + (1 - share) * others], 1)

  return views


def content_hash(x: Any, rows: np.ndarray | None = None) -> np.ndarray:
  """Hash each record on the model's scale: x [B,...] -> uint32 [B].

  Args:
    x: array or mapped records.
    rows: int [R], hash only these, which are read in blocks.
  """
  if rows is None:
    return np.asarray(_hash(jnp.asarray(to_float(x))))
  blocks = [rows[first : first + _HASHED] for first in range(0, len(rows), _HASHED)]
  return np.concatenate([content_hash(x[block]) for block in blocks])


_hash = jax.jit(hash_rows)


def _mixed_or_unavailable(partners=None):
  if partners is None:
    raise Unavailable(
      "mixed views need a population to mix with; pass held-out records as population="
    )
  return mixed(partners)


VIEWS: dict[str, Callable[..., Views]] = {
  "none": lambda partners=None: identity,
  "mirror": lambda partners=None: mirror,
  "shifts": lambda partners=None: flips_and_shifts(),
  "mixed": _mixed_or_unavailable,
}
"""Query sets by their command-line names: `VIEWS[name](partners)`, where partners
[P,...] are the population's records, which only "mixed" reads."""


def _check_pictures(x, what):
  validate.quantities(x, f"a {what}", error=Unavailable)
  if x.ndim != 4:
    raise Unavailable(
      f"records of shape {x.shape[1:]} are not images [H,W,C], so there is no {what}"
    )
  if channels_first(x.shape):
    raise Unavailable(
      f"records of shape {x.shape[1:]} seem to have their channels first, so there is "
      f"no {what}: pass x.transpose(0, 2, 3, 1)"
    )


def _check_distance(name, value):
  if value is not None and (not isinstance(value, int) or value < 1):
    raise ValueError(f"{name}={value!r}; pass a whole number of at least 1")


def _shift(x, offsets, padding):
  """Shift images by each (down, right) of the offsets: [B,Q,H,W,C]."""
  height, width = x.shape[1:3]
  margin = max(abs(step) for offset in offsets for step in offset)
  if margin >= min(height, width):
    raise ValueError(
      f"a shift by {margin} leaves nothing of images with {height} x {width} pixels: "
      "pass a smaller shift"
    )
  border = ((0, 0), (margin, margin), (margin, margin), (0, 0))
  padded = np.pad(x, border, mode=padding)
  corners = [(margin - down, margin - right) for down, right in offsets]
  cuts = [padded[:, i : i + height, j : j + width] for i, j in corners]
  return np.stack(cuts, 1)


def _rotate(x, angle):
  """Rotate images [B,H,W,C] by an angle in degrees, bilinear with nearest border."""
  height, width = x.shape[1:3]
  middle = (np.array([height, width]) - 1)[:, None, None] / 2
  down, right = np.indices((height, width)) - middle
  cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
  rows = np.clip(cos * down + sin * right + middle[0], 0, height - 1)
  columns = np.clip(cos * right - sin * down + middle[1], 0, width - 1)
  top, left = rows.astype(int), columns.astype(int)
  below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
  lower, later = (
    (part - whole).astype(np.float32)[..., None]
    for part, whole in ((rows, top), (columns, left))
  )
  upper_line = (1 - later) * x[:, top, left] + later * x[:, top, beside]
  lower_line = (1 - later) * x[:, below, left] + later * x[:, below, beside]
  return (1 - lower) * upper_line + lower * lower_line

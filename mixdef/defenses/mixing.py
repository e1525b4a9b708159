"""Defenses that mix records, `mixup` and `cutmix`, and helpers for all mixers."""

import math

import jax
import jax.numpy as jnp

from mixdef.core.check import check_choice, check_flag, check_number, is_static
from mixdef.core.hooks import Batch, Defense, defense
from mixdef.core.randomness import batch_keys
from mixdef.core.traits import Traits
from mixdef.defenses.augment import check_pictures, draw_box


@defense(neutral="mixup(0.0)")
def mixup(alpha=1.0, *, per="batch", pairs=False) -> Defense:
  """Train on convex combinations of two records and of their labels.

  ```
  x~ = lam x_i + (1 - lam) x_j
  y~ = lam y_i + (1 - lam) y_j,   lam ~ Beta(alpha, alpha)
  ```

  The partner j is a uniform permutation of the batch's members. It may map a record to
  itself, and that row is then unmixed. Padding and auxiliary rows are never mixed.

  Args:
    alpha: Beta parameter. 1 (the default, used on CIFAR) is uniform, `inf` is lam = 0.5
      exactly, 0 or less disables mixing. A traced value, as in a sweep, uses the
      general sampler, so a traced 1 gives another random stream than a plain 1.
    per: "batch" draws one lam per step, "record" one per row.
    pairs: whether to draw both contributors of a row by separate shuffles. The set of
      mixed records has the same distribution either way; only the order of the rows
      differs, which matters to a learner that pairs them with something else.

  Returns:
    The defense. It sets `Batch.partner` and `Batch.lam`, so that `take` mixes every
    per-record table in the same way.

  Guarantee: none. A record influences two rows of a step, so per-example clipping does
    not bound its influence, and `chain` raises an error.

  Deviation: fixed points have lam = 1 (as unmixed rows) [ours].

  Reference: Zhang, Cisse, Dauphin, Lopez-Paz, mixup: Beyond Empirical Risk
    Minimization, 2018, arXiv 1710.09412.

  >>> str(mixup(0.4, per="record"))
  "mixup(alpha=0.4, per='record')"
  """
  check_number("mixup: alpha", alpha, 0, math.inf)
  check_choice("mixup: per", per, ("batch", "record"))
  check_flag("mixup: pairs", pairs)

  def batch(batch, state, ctx):
    del state
    lam_key, order_key, pair_key = jax.random.split(ctx.key, 3)
    if pairs:
      if batch.view is not None:
        raise ValueError(
          "mixup: pairs=True reorders the rows, and dp_sgd(multiplicity=...) clips "
          "the adjacent views of a record together: drop pairs"
        )
      order = shuffle(order_key, batch.weight)
      batch = jax.tree.map(lambda leaf: leaf[order], batch)
    shape = batch.weight.shape if per == "record" else ()
    return mix(
      batch, shuffle(pair_key, batch.weight), draw_share(lam_key, alpha, shape)
    )

  off = is_static(alpha) and alpha <= 0
  return Defense(
    "",
    batch=None if off else batch,
    traits=Traits(order="mix", couples="records", quantities=True),
  )


@defense(neutral="cutmix(0.0)")
def cutmix(alpha=1.0, *, per="batch") -> Defense:
  """Train on images with a box cut out of another image, labels mixed by area.

  ```
  x~ = x_j inside the box, x_i outside
  y~ = lam y_i + (1 - lam) y_j,   lam = 1 - area(box) / (H W)
  sides of the box: H sqrt(1 - s), W sqrt(1 - s),   s ~ Beta(alpha, alpha)
  ```

  The centre is uniform over the pixels, and the part of the box beyond the border is
  cut off: lam is computed from the remaining box. The partner j is drawn as by `mixup`.
  A row stays unchanged if its box is empty or the record is its own partner.

  Args:
    alpha: Beta parameter of the fraction s before the box is cut off. 1 is uniform,
      `inf` is s = 0.5 exactly, 0 or less disables mixing. May be traced.
    per: "batch" draws one box per step, "record" one per row.

  Returns:
    The defense. It sets `Batch.partner` and `Batch.lam`, so that `take` mixes every
    per-record table by the same areas.

  Raises:
    ValueError: for an invalid number or an unknown option; at the first step, for
      records that are not images [H,W] or [H,W,C].

  Guarantee: none. A record influences two rows of a step, so per-example clipping does
    not bound its influence, and `chain` raises an error.

  Deviation: sides are rounded down to whole pixels; the published code rounds half of
    them, so that they are even [ours].

  Reference: Yun, Han, Oh, Chun, Choe, Yoo, CutMix: Regularization Strategy to Train
    Strong Classifiers with Localizable Features, 2019, arXiv 1905.04899.

  >>> str(cutmix(0.5))
  'cutmix(alpha=0.5)'
  """
  check_number("cutmix: alpha", alpha, 0, math.inf)
  check_choice("cutmix: per", per, ("batch", "record"))

  def box(key, shape):
    share_key, place_key = jax.random.split(key)
    side = jnp.sqrt(1 - draw_share(share_key, alpha, ()))
    sides = [jnp.floor(length * side).astype(jnp.int32) for length in shape]
    return draw_box(place_key, sides, shape)

  def batch(batch, state, ctx):
    del state
    check_pictures("cutmix", batch.x)
    box_key, pair_key = jax.random.split(ctx.key)
    keys = batch_keys(box_key, batch) if per == "record" else box_key[None]
    boxes = jax.vmap(lambda key: box(key, batch.x.shape[1:3]))(keys)
    row = shuffle(pair_key, batch.weight)
    inside = boxes.reshape(boxes.shape + (1,) * (batch.x.ndim - 3))
    x = jnp.where(inside, batch.x[row], batch.x)
    return mix(batch, row, 1 - boxes.mean((1, 2)))._replace(x=x)

  off = is_static(alpha) and alpha <= 0
  return Defense(
    "",
    batch=None if off else batch,
    traits=Traits(order="mix", couples="records", quantities=True),
  )


def draw_share(key, alpha, shape):
  """Draw lam ~ Beta(alpha, alpha); 0.5 for infinite alpha, 1 for alpha <= 0."""
  if is_static(alpha) and math.isinf(alpha):
    return jnp.full(shape, 0.5 if alpha > 0 else 1.0)
  if is_static(alpha) and alpha == 1:  # Beta's sampler takes seconds to compile
    return jax.random.uniform(key, shape)
  usable = (alpha > 0) & jnp.isfinite(alpha)
  alpha_or_1 = jnp.where(usable, alpha, 1.0)
  share = jax.random.beta(key, alpha_or_1, alpha_or_1, shape)
  return jnp.where(usable, share, jnp.where(alpha > 0, 0.5, 1.0))


def shuffle(key, weight):
  """Permute the rows with nonzero weight uniformly; return int [B], identity elsewhere.

  The random numbers of a batch are a prefix of those of a longer one, so padding
  changes nothing.
  """
  rows = jnp.arange(weight.shape[0])
  valid = weight > 0
  draws = jnp.where(valid, jax.random.uniform(key, rows.shape), 2.0)
  return jnp.where(valid, jnp.argsort(draws)[jnp.cumsum(valid) - 1], rows)


def mix(batch: Batch, row, lam) -> Batch:
  """Mix each row with another: lam * row + (1 - lam) * other.

  Args:
    batch: an unmixed batch.
    row: int [B], the index of each row's other row; a row's own index means no mixing.
    lam: scalar or [B], the weight of the row itself; 1 means no mixing.

  Returns:
    The batch with consistent x, y, partner and lam. Unmixed rows have lam = 1 and
    themselves as partner, whichever of the two inputs caused it.
  """
  own = jnp.arange(batch.weight.shape[0])
  row = jnp.where(lam == 1, own, row)
  lam = jnp.where(row == own, 1.0, lam).astype(batch.lam.dtype)
  return batch._replace(
    x=_blend(batch.x, batch.x[row], lam),
    y=_blend(batch.y, batch.y[row], lam),
    partner=batch.index[row],
    lam=lam,
  )


def _blend(a, b, lam):
  lam = lam.reshape(lam.shape + (1,) * (a.ndim - 1))
  return lam * a + (1 - lam) * b

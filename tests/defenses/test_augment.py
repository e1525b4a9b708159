"""Augmentations against naive loops, and the distribution of their draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_harness import in_epoch, make_batch

from mixdef.core.chaining import chain
from mixdef.core.hooks import Ctx
from mixdef.defenses import (
  cutout,
  dp_sgd,
  gaussian_noise,
  mixup,
  random_crop,
  random_flip,
)
from mixdef.defenses.augment import draw_box

H, W = 5, 6
PARTS = [cutout(3), random_crop(2), random_flip(), gaussian_noise()]


def changed(part, x, seed=0):
  """Apply a part to records [B,...]."""
  batch = make_batch(len(x))._replace(x=jnp.asarray(x))
  return np.asarray(jax.jit(part.batch)(batch, (), in_epoch(0, seed=seed)).x)


def pictures(rows, shape=(H, W, 2)):
  """Pictures in (0, 1) without two equal values in one of them."""
  rng = np.random.default_rng(0)
  size = int(np.prod(shape))
  ranks = np.stack([rng.permutation(size) for _ in range(rows)])
  return ((ranks + 1) / (size + 1)).reshape(rows, *shape).astype(np.float32)


def holes(side):
  """Every hole of a picture, by its centre."""
  for centre in itertools.product(range(H), range(W)):
    hole = np.zeros((H, W), bool)
    for i, j in itertools.product(range(side), range(side)):
      row, column = centre[0] - side // 2 + i, centre[1] - side // 2 + j
      if 0 <= row < H and 0 <= column < W:
        hole[row, column] = True
    yield hole


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 2, 3, 9])
def test_cutout_is_a_square_with_a_uniform_centre(side):
  x = pictures(4000)
  out = changed(cutout(side), x)
  hole = (out == 0).all(-1)
  np.testing.assert_array_equal(out, np.where(hole[..., None], 0, x))
  possible = list(holes(side))
  assert {h.tobytes() for h in hole} <= {h.tobytes() for h in possible}
  expected = np.mean(possible, 0)
  # A share of 4000 draws has a standard deviation of at most 0.0079, five of them.
  np.testing.assert_allclose(hole.mean(0), expected, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")]
)
@pytest.mark.parametrize("padding", [1, 3])
def test_random_crop_is_one_of_the_cuts_of_the_padded_picture(padding, fill, mode):
  x = pictures(600)
  out = changed(random_crop(padding, fill=fill), x)
  places = []
  for before, after in zip(x, out, strict=True):
    wide = np.pad(before, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    cuts = itertools.product(range(2 * padding + 1), repeat=2)
    found = [(u, v) for u, v in cuts if (wide[u : u + H, v : v + W] == after).all()]
    assert len(found) == 1
    places += found
  share = 1 / (2 * padding + 1)
  for shifts in zip(*places, strict=True):
    drawn = np.bincount(shifts, minlength=2 * padding + 1)
    # Each count is Binomial(600, share): five standard deviations.
    assert np.abs(drawn - 600 * share).max() < 5 * np.sqrt(600 * share * (1 - share))


def test_random_flip_mirrors_left_and_right_with_its_probability():
  x = pictures(2000)
  out = changed(random_flip(0.3), x)
  mirrored = np.array([[row[::-1] for row in picture] for picture in x])
  flipped = (out == mirrored).all((1, 2, 3))
  np.testing.assert_array_equal(out[~flipped], x[~flipped])
  assert abs(flipped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)
  np.testing.assert_array_equal(changed(random_flip(1.0), x), mirrored)


@pytest.mark.slow
def test_gaussian_noise_has_its_moments_and_stays_in_the_range_of_pictures():
  x = np.full((2000, 6), 0.5, np.float32)
  noise = changed(gaussian_noise(0.05), x) - x
  assert abs(noise.mean()) < 5 * 0.05 / np.sqrt(noise.size)
  np.testing.assert_allclose(noise.std(), 0.05, rtol=0.05)
  assert abs(np.corrcoef(noise.T)[0, 1]) < 0.12  # 5 / sqrt(2000)
  edge = np.tile(np.float32([0, 1]), (500, 3))
  clipped, free = (changed(gaussian_noise(0.3, clip=c), edge) for c in (True, False))
  np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))
  assert free.min() < 0
  assert free.max() > 1


def test_gaussian_noise_of_nothing_keeps_standardised_records():
  batch = make_batch()
  assert batch.x.min() < 0
  out = jax.jit(lambda sigma: gaussian_noise(sigma).batch(batch, (), in_epoch(0)))(0.0)
  np.testing.assert_array_equal(out.x, batch.x)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_pictures_without_channels_are_changed_like_those_of_one(part):
  x = pictures(8, (H, W, 1))
  np.testing.assert_array_equal(changed(part, x[..., 0]), changed(part, x)[..., 0])


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_visit_is_drawn_anew_and_by_the_record_alone(part):
  x = np.repeat(pictures(1), 16, 0)
  first, second = changed(part, x), changed(part, x, seed=1)
  assert len({row.tobytes() for row in first}) > 1
  assert (first != second).any()
  few = jax.tree.map(lambda leaf: leaf[jnp.array([7, 3])], make_batch(16))
  few = few._replace(x=jnp.array(x[:2]))
  out = jax.jit(part.batch)(few, (), in_epoch(0)).x
  np.testing.assert_array_equal(out, first[[7, 3]])


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_only_the_records_change_and_padding_changes_none(part):
  batch = make_batch(6, [1, 1, 1, 1, 0, 0], shape=(H, W, 2))
  apply = jax.jit(part.batch)
  out = apply(batch, (), in_epoch(0))
  assert out.x.shape == batch.x.shape
  assert out.x.dtype == batch.x.dtype
  for name in set(batch._fields) - {"x"}:
    np.testing.assert_array_equal(getattr(out, name), getattr(batch, name))
  other = batch._replace(x=batch.x.at[4:].set(1e6))
  np.testing.assert_array_equal(apply(other, (), in_epoch(0)).x[:4], out.x[:4])


@pytest.mark.parametrize("part", [cutout(), random_crop(), random_flip()], ids=str)
def test_tables_are_refused_where_pictures_are_needed(part):
  with pytest.raises(ValueError, match=rf"{part.name} augments images .* \(5,\)"):
    part.batch(make_batch(), (), in_epoch(0))


@pytest.mark.parametrize("part", [cutout(), random_crop(), random_flip()], ids=str)
def test_channels_first_are_refused(part):
  def augmented(shape):
    batch = make_batch()._replace(x=jnp.zeros((6, *shape)))
    return jax.eval_shape(lambda b: part.batch(b, (), in_epoch(0)), batch).x.shape

  assert augmented((3, 8, 3)) == (6, 3, 8, 3), "a narrow picture"
  for channels in (1, 3):
    with pytest.raises(ValueError, match=r"channels first: pass x\.transpose\(0, 2"):
      augmented((channels, 8, 8))


@pytest.mark.parametrize(
  ("make", "reason"),
  [
    (lambda: cutout(-1), "cutout: side is -1; pass an integer of at least 0"),
    (lambda: cutout(2.5), "an integer of at least 0"),
    (lambda: random_crop(4.0), "random_crop: padding is 4.0"),
    (lambda: random_crop(fill="edge"), "choose from 'zero', 'reflect'"),
    (lambda: random_flip(1.5), "at least 0 and at most 1"),
    (lambda: gaussian_noise(-0.1), "at least 0"),
  ],
)
def test_arguments_out_of_range_are_refused_with_the_reason(make, reason):
  with pytest.raises(ValueError, match=reason):
    make()


@pytest.mark.slow
def test_records_are_augmented_before_they_are_mixed():
  batch = make_batch(6, shape=(H, W, 1))
  both = chain(mixup(), gaussian_noise(clip=False))
  states = {part.name: () for part in both.parts}
  out = both.batch(batch, states, in_epoch(0))
  noisy = chain(gaussian_noise(clip=False)).batch(batch, states, in_epoch(0)).x
  lam = np.asarray(out.lam).reshape(-1, 1, 1, 1)
  expected = lam * noisy + (1 - lam) * noisy[out.partner]
  np.testing.assert_allclose(out.x, expected, rtol=1e-5, atol=1e-6)


def test_augmentation_combines_with_clipping_and_with_itself():
  chain(*PARTS, gaussian_noise(0.01, name="more"), dp_sgd())


@pytest.mark.slow
def test_strength_may_be_swept_and_keys_differ_per_model():
  batch = make_batch(4, shape=(H, W, 1))

  @jax.jit
  @jax.vmap
  def hidden(side, key):
    ctx = Ctx(key, jnp.int32(0), jnp.int32(0), jnp.int32(1), 1, 4)
    return (cutout(side).batch(batch, (), ctx).x == 0).mean((1, 2, 3))

  sides = jnp.array([0, 2, 2, 2 * W])
  got = hidden(sides, jax.random.split(jax.random.key(0), 4))
  np.testing.assert_array_equal(got[0], 0)
  np.testing.assert_array_equal(got[3], 1)
  assert ((got[1] > 0) & (got[1] < 0.2)).all()
  assert (got[1] != got[2]).any()


def test_an_empty_box_marks_nothing():
  assert not draw_box(jax.random.key(0), (0, 0), (H, W)).any()

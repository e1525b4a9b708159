import itertools

import numpy as np
import pytest
from scipy import ndimage

from mixdef.attacks import Unavailable
from mixdef.attacks.views import (
  VIEWS,
  content_hash,
  flips_and_shifts,
  identity,
  mirror,
  mixed,
  rotations,
  translations,
)
from mixdef.data import load

PICTURES = load("digits").x[:6]
BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3)).astype(np.uint8)
TABLE = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
PARTNERS = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32)
OF_PICTURES = {
  "mirror": mirror,
  "flips_and_shifts": flips_and_shifts(2),
  "translations": translations(2),
  "rotations": rotations(3),
}


def shifted(picture, down, right):
  """Move one picture, zeros coming in."""
  height, width = picture.shape[:2]
  out = np.zeros_like(picture)
  for i, j in itertools.product(range(height), range(width)):
    if 0 <= i - down < height and 0 <= j - right < width:
      out[i, j] = picture[i - down, j - right]
  return out


@pytest.mark.parametrize("x", [PICTURES, BYTES], ids=["float", "uint8"])
def test_flips_and_shifts_are_the_18_of_lira(x):
  views = flips_and_shifts(2)(x)
  assert views.shape == (len(x), 18, *x.shape[1:])
  assert views.dtype == x.dtype
  expected = [
    shifted(side, down, right)
    for side in (x[3], x[3][:, ::-1])
    for down, right in itertools.product((0, -2, 2), repeat=2)
  ]
  np.testing.assert_array_equal(views[3], expected)


def test_the_default_shift_is_an_eighth_of_the_picture():
  x = np.random.default_rng(0).random((2, 32, 32, 1))
  np.testing.assert_array_equal(flips_and_shifts()(x), flips_and_shifts(4)(x))
  of_8_pixels = flips_and_shifts(1)(PICTURES)
  np.testing.assert_array_equal(flips_and_shifts()(PICTURES), of_8_pixels)


@pytest.mark.parametrize("name", OF_PICTURES)
@pytest.mark.parametrize("x", [PICTURES, BYTES], ids=["float", "uint8"])
def test_pitfall_13_view_0_is_the_record(name, x):
  views = OF_PICTURES[name](x)
  first = views[:, 0]
  if first.dtype != x.dtype:
    first = first * 255
  np.testing.assert_allclose(first, x, rtol=1e-6)


@pytest.mark.parametrize("name", OF_PICTURES)
def test_views_do_not_depend_on_the_block(name):
  together = OF_PICTURES[name](BYTES)
  for i in range(len(BYTES)):
    alone = OF_PICTURES[name](BYTES[i : i + 1])
    np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("name", OF_PICTURES)
def test_tables_have_no_such_views(name):
  with pytest.raises(Unavailable, match=r"\(4,\) are not images") as raised:
    OF_PICTURES[name](TABLE)
  assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", OF_PICTURES)
def test_channels_first_are_refused(name):
  with pytest.raises(Unavailable, match=r"channels first, .*transpose\(0, 2, 3, 1\)"):
    OF_PICTURES[name](np.zeros((2, 3, 8, 8), np.uint8))


@pytest.mark.parametrize(
  "make", [flips_and_shifts, translations], ids=["flips_and_shifts", "translations"]
)
def test_a_shift_as_large_as_the_picture_is_refused(make):
  assert make(7)(PICTURES).shape[2:] == PICTURES.shape[1:]
  with pytest.raises(ValueError, match="8 leaves nothing of images with 8 x 8"):
    make(8)(PICTURES)
  with pytest.raises(ValueError, match="at least 1"):
    make(0)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_pitfall_55_translations_are_4d_plus_1_without_duplicates(distance):
  views = translations(distance)(BYTES)[0]
  assert len(views) == 4 * distance + 1
  assert len(np.unique(views.reshape(len(views), -1), axis=0)) == len(views)
  np.testing.assert_array_equal(views[0], BYTES[0])
  steps = itertools.product(range(-distance, distance + 1), repeat=2)
  expected = [
    ndimage.shift(BYTES[0], (i, j, 0), order=0, mode="nearest")
    for i, j in steps
    if abs(i) + abs(j) == distance
  ]
  assert {view.tobytes() for view in views[1:]} == {e.tobytes() for e in expected}


def test_rotations_are_bilinear_with_the_nearest_border():
  views = rotations(9)(PICTURES)
  angles = [0, *range(-9, 0), *range(1, 10)]
  assert views.shape[1] == len(angles)
  for q, angle in enumerate(angles):
    expected = ndimage.rotate(
      PICTURES[0].astype(np.float64), angle, reshape=False, order=1, mode="nearest"
    )
    np.testing.assert_allclose(views[0, q], expected, atol=1e-5)


def test_pitfall_56_one_degree_gives_three_angles():
  views = rotations(1)(PICTURES)[0]
  assert len(np.unique(views.reshape(len(views), -1), axis=0)) == 3
  for degrees in (0, 181):
    with pytest.raises(ValueError, match=f"degrees={degrees}"):
      rotations(degrees)


def test_mixed_views_are_convex_combinations_with_partners():
  weights = (0.8, 0.3)
  views = mixed(PARTNERS, weights=weights)(TABLE)
  assert views.shape == (5, 3, 4)
  assert views.dtype == np.float32
  np.testing.assert_array_equal(views[:, 0], TABLE)
  for j, weight in enumerate(weights, 1):
    partner = (views[:, j] - weight * TABLE) / (1 - weight)
    distance = np.abs(partner[:, None] - PARTNERS).max(-1).min(1)
    assert distance.max() < 1e-5


def test_pitfall_12_a_record_has_the_same_partners_in_every_block():
  views = mixed(PARTNERS)
  together = views(TABLE)
  np.testing.assert_array_equal(views(TABLE[::-1])[::-1], together)
  np.testing.assert_array_equal(views(TABLE[3:4])[0], together[3])
  other = mixed(PARTNERS, seed=1)(TABLE)
  assert not np.array_equal(other[:, 1:], together[:, 1:])
  offsets = (together - 0.9 * TABLE[:, None])[:, 1]
  assert len(np.unique(offsets.round(4), axis=0)) > 1  # not one partner for all


def test_mixed_views_of_uint8_images_are_on_the_models_scale():
  views = mixed(BYTES[:1], weights=(0.5,))(BYTES)
  assert views.dtype == np.float32
  expected = (BYTES / 510 + BYTES[:1] / 510)[:, None]
  np.testing.assert_allclose(views[:, 1:], expected, atol=1e-6)
  np.testing.assert_array_equal(content_hash(BYTES), content_hash(views[:, 0]))


def test_mixing_with_nothing_or_with_another_kind_is_refused():
  with pytest.raises(ValueError, match="0 records"):
    mixed(PARTNERS[:0])
  with pytest.raises(ValueError, match=r"weights\[1\]=1"):
    mixed(PARTNERS, weights=(0.5, 1))
  with pytest.raises(ValueError, match="preprocess both in the same way"):
    mixed(PARTNERS[:, :3])(TABLE)


def test_every_name_of_the_command_line_makes_views():
  partners = PICTURES[3:]
  shapes = {name: make(partners)(PICTURES).shape for name, make in VIEWS.items()}
  queries = {"none": 1, "mirror": 2, "shifts": 18, "mixed": 6}
  assert shapes == {name: (6, q, 8, 8, 1) for name, q in queries.items()}
  assert VIEWS["none"]() is identity
  with pytest.raises(Unavailable, match="population"):
    VIEWS["mixed"](None)

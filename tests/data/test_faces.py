import logging

import numpy as np
import PIL.Image
import pytest

from mixdef.data import CATALOGUE, faces, load

# Male is neither the first nor the last.
ATTRIBUTES = "5_o_Clock_Shadow Male Young"
MALE = [1, 0, 0, 1, 1, 0]
# Train, validation, test.
SPLIT = [0, 2, 1, 0, 2, 0]


def face(i, shape=(218, 178)):
  """Return a grey image of one level inside the centre 128 x 128, another outside."""
  pixels = np.full((*shape, 3), 255, np.uint8)
  top, left = (shape[0] - 128) // 2, (shape[1] - 128) // 2
  pixels[top : top + 128, left : left + 128] = 20 * i
  return pixels


def write_celeba(folder, *, partition=True, shape=(218, 178)):
  images = folder / "img_align_celeba"
  images.mkdir(parents=True)
  lines = [str(len(MALE)), ATTRIBUTES]
  for i, male in enumerate(MALE):
    name = f"{i + 1:06d}.jpg"
    PIL.Image.fromarray(face(i, shape)).save(images / name, quality=95)
    lines.append(f"{name} {-1 if i % 2 else ' 1'} {2 * male - 1:2d}  1")
  (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
  if partition:
    lines = [f"{i + 1:06d}.jpg {split}" for i, split in enumerate(SPLIT)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def levels(x):
  """Return the level of each image, having checked that the border is cut off."""
  assert x.shape[1:] == (64, 64, 3)
  inner = x[:, 8:-8, 8:-8].astype(int)
  assert (np.ptp(inner, axis=(1, 2, 3)) <= 4).all()
  assert (x[:, [0, 0, -1, -1], [0, -1, 0, -1]] < 180).all()
  return np.round(inner.mean((1, 2, 3)) / 20).astype(int).tolist()


@pytest.mark.parametrize("folder", ["celeba", "."])
def test_celeba_keeps_the_official_split(tmp_path, folder):
  write_celeba(tmp_path / folder)
  data = faces.celeba(tmp_path, num_images=6)
  assert (data.name, data.num_classes, data.x.dtype) == ("celeba", 2, np.uint8)
  assert (levels(data.x), data.y.tolist()) == ([0, 3, 5], [1, 1, 0])
  assert (levels(data.test.x), data.test.y.tolist()) == ([1, 4], [0, 1])


def test_celeba_without_a_partition_has_no_test_file(tmp_path):
  write_celeba(tmp_path, partition=False)
  data = faces.celeba(tmp_path, num_images=6)
  assert levels(data.x) == [0, 1, 2, 3, 4, 5]
  assert (data.y.tolist(), data.num_classes, data.test) == (MALE, 2, None)


def test_a_face_is_the_centre_averaged():
  pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
  small = faces.celeba_face(pixels)
  # The triangle filter at factor 2 weighs four pixels by 1, 3, 3, 1.
  wanted = np.zeros((3, 1, 3))
  weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
  for place, (row, column) in enumerate([(10, 20), (31, 32), (50, 5)]):
    top, left = 45 + 2 * row - 1, 25 + 2 * column - 1
    block = pixels[top : top + 4, left : left + 4].astype(float)
    wanted[place] = np.einsum("ij,ijc->c", weights, block)
    np.testing.assert_allclose(small[row, column], wanted[place, 0], atol=1.5)


def test_pitfall_151_a_reduced_copy_never_passes_for_celeba(tmp_path):
  write_celeba(tmp_path / "celeba")
  with pytest.raises(
    ValueError, match=r"is not CelebA's: .* lists 6, not 202599; load a sma"
  ):
    load("celeba", data_dir=tmp_path)


def test_pitfall_151_smaller_images_under_the_right_names_are_named(tmp_path):
  write_celeba(tmp_path, shape=(128, 128))
  with pytest.raises(
    ValueError, match=r"000001.jpg: the image has shape \(128, 128, 3\)"
  ):
    faces.celeba(tmp_path, num_images=6)


def _cut_image(folder):
  path = folder / "img_align_celeba" / "000004.jpg"
  path.write_bytes(path.read_bytes()[:300])


def _change(name, old, new):
  def change(folder):
    path = folder / name
    path.write_text(path.read_text().replace(old, new))

  return change


_LIST, _PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (_cut_image, "000004.jpg is damaged: Truncated File Read"),
    (_change(_LIST, "6\n", "7\n"), f"{_LIST} is not CelebA's: it announces '7' images"),
    (_change(_LIST, "Male", "Beard"), f"{_LIST} is damaged: it has no attribute Male"),
    (_change(_LIST, "000002.jpg", "000001.jpg"), f"{_LIST} is damaged: .* repeats an"),
    (_change(_LIST, "jpg  1  1", "jpg  1  0"), f"{_LIST} is damaged: a line lacks a"),
    (
      _change(_PARTITION, "000003.jpg", "7.jpg"),
      "assigns 000003.jpg to none of the split",
    ),
    (
      _change(_PARTITION, "000003.jpg 1", "000003.jpg"),
      "assigns 000003.jpg to none of the split",
    ),
    (
      _change(_PARTITION, "000003.jpg 1", "000003.jpg 3"),
      "assigns 000003.jpg to none of the split",
    ),
    (_change(_PARTITION, "jpg 2", "jpg 1"), "3 images of split 0 and 0 of split 2"),
  ],
)
def test_a_damaged_celeba_is_named(tmp_path, harm, message):
  write_celeba(tmp_path)
  harm(tmp_path)
  with pytest.raises(ValueError, match=message) as caught:
    faces.celeba(tmp_path, num_images=6)
  assert str(caught.value).startswith(str(tmp_path))
  assert "\n" not in str(caught.value)


def test_missing_images_are_counted(tmp_path):
  write_celeba(tmp_path)
  for name in ("000002.jpg", "000005.jpg"):
    (tmp_path / "img_align_celeba" / name).unlink()
  with pytest.raises(
    FileNotFoundError, match=r"lacks 2 of 6 images, the first is 000002"
  ):
    faces.celeba(tmp_path, num_images=6)


def write_sheets(folder, columns, channels, suffix, num_classes):
  """Write two rows of training tiles and one of test tiles, the last ones padded."""
  folder.mkdir()
  random = np.random.default_rng(0)
  tiles = random.integers(0, 256, (3, columns, 64, 64, channels), dtype=np.uint8)
  for name, rows in (("train", tiles[:2]), ("test", tiles[2:])):
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    picture = PIL.Image.fromarray(np.squeeze(sheet))
    picture.save(folder / f"{name}.{suffix}", lossless=True)
  y = random.integers(num_classes, size=3 * columns).astype(np.uint8)
  train, test = 2 * columns - 3, columns - 4
  np.savez(folder / "labels.npz", y_train=y[:train], y_test=y[-test:])
  x = tiles.reshape(-1, 64, 64, channels)
  return x[:train], y[:train], x[2 * columns :][:test], y[-test:]


SHEETS = [("celeba64", 64, 3, 2), ("lfw62", 50, 1, 62)]


@pytest.mark.parametrize("suffix", ["webp", "png"])
@pytest.mark.parametrize(("name", "columns", "channels", "classes"), SHEETS)
def test_reads_a_small_copy_under_its_own_name(
  tmp_path, caplog, name, columns, channels, classes, suffix
):
  written = write_sheets(tmp_path / name, columns, channels, suffix, classes)
  logger = logging.getLogger("absl")
  logger.addHandler(caplog.handler)
  try:
    with caplog.at_level(logging.INFO, logger="absl"):
      data = CATALOGUE[name](tmp_path, num_records=(2 * columns - 3, columns - 4))
  finally:
    logger.removeHandler(caplog.handler)
  assert f"{name}: image sheets in {tmp_path / name}, not the official" in caplog.text
  assert (data.name, data.num_classes) == (name, classes)
  read = (data.x, data.y, data.test.x, data.test.y)
  for got, wanted in zip(read, written, strict=True):
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("name", "columns", "channels", "classes"), SHEETS)
def test_a_wrong_small_copy_is_named(tmp_path, name, columns, channels, classes):
  for message in ("needs train", f"load {name[:-2]}, or set data_dir or MIXDEF_DATA"):
    with pytest.raises(FileNotFoundError, match=f"^{name}: {tmp_path}.*{message}"):
      load(name, data_dir=tmp_path)
  write_sheets(tmp_path / name, columns, channels, "png", classes)
  labels = tmp_path / name / "labels.npz"
  y = np.full(2 * columns, classes, np.uint8)
  np.savez(labels, y_train=y, y_test=y[:columns] - 1)
  with pytest.raises(ValueError, match=rf"^{labels}: y\[0\] is {classes} but num_cl"):
    load(name, data_dir=tmp_path)
  np.savez(labels, y_train=y - 1, y_test=y[:columns] - 1)
  with pytest.raises(
    ValueError, match=rf"not the complete {name}: it has {2 * columns} \+ {columns} rec"
  ):
    load(name, data_dir=tmp_path)
  PIL.Image.new("RGB", (32 * columns, 64)).save(tmp_path / name / "test.png")
  with pytest.raises(ValueError, match=rf"test.png is 64 x {32 * columns} pixels"):
    load(name, data_dir=tmp_path)

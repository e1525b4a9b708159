"""Readers of CelebA's official files, and of small prepared copies of face sets."""

import pathlib

import numpy as np
from absl import logging

from mixdef.data import counts, files, image_folder, sheets
from mixdef.data.dataset import Dataset

CELEBA_SHAPE = (218, 178, 3)
CELEBA_FILES = "img_align_celeba/*.jpg and list_attr_celeba.txt"
_ATTRIBUTES, _PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
_TRAIN, _TEST = "0", "2"
_IMAGES = "img_align_celeba"
_SPLITS = (_TRAIN, "1", _TEST)


def celeba_face(pixels: np.ndarray) -> np.ndarray:
  """Return the center 128 x 128 of an aligned CelebA image, resized to 64 x 64.

  Args:
    pixels: [218, 178, 3] uint8.

  Returns:
    [64, 64, 3] uint8.

  Raises:
    ValueError: the image has another size, as those of reduced copies have.
  """
  if pixels.shape != CELEBA_SHAPE:
    raise ValueError(
      f"the image has shape {pixels.shape}, but CelebA images have {CELEBA_SHAPE}"
    )
  return image_folder.square(pixels, crop=128)


def celeba(data_dir: pathlib.Path, *, num_images: int = 202_599) -> Dataset | None:
  """Return CelebA from its aligned images, or None if its list is missing.

  Reads `img_align_celeba/*.jpg` and `list_attr_celeba.txt`; the label is the attribute
  Male. With `list_eval_partition.txt`, the records are the 162,770 of the official
  training split and `test` the 19,962 of the test split; the validation split is
  omitted, as in the prepared set. Without it, all images are records.

  Args:
    data_dir: the files are in data_dir/celeba or in data_dir itself.
    num_images: required number of images in the list; reduced copies are rejected.

  Returns:
    A `Dataset` of uint8 [N, 64, 64, 3]; see `celeba_face`.

  Raises:
    FileNotFoundError: images are missing.
    ValueError: a file is damaged or of a reduced copy; the line names it.

  Reference: Liu, Luo, Wang, Tang, "Deep Learning Face Attributes in the Wild", 2015,
    arXiv 1411.7766.
  """
  found = files.find(data_dir, ("celeba", ""), (_ATTRIBUTES,))
  if found is None:
    return None
  (attributes,) = found
  male = _read_male(attributes, num_images)
  folder = attributes.parent / _IMAGES
  images = files.child(attributes.parent, _IMAGES) or folder
  present = {path.name.lower(): path for path in files.pictures(images)}
  if missing := [name for name in male if name not in present]:
    raise FileNotFoundError(
      f"{images} lacks {len(missing):,} of {len(male):,} images, the first is"
      f" {missing[0]}; unpack the whole img_align_celeba.zip there"
      f" ({files.contents(images)})"
    )
  partition = files.find(attributes.parent, ("",), (_PARTITION,))
  if partition is None:
    logging.info(
      "celeba: no %s in %s, so all images are records", _PARTITION, attributes.parent
    )
    x, y = _faces(present, male, list(male))
    return counts.dataset(attributes.parent, x, y, name="celeba", num_classes=2)
  (partition,) = partition
  part = _read_partition(partition, male)
  train, test = ([n for n in male if part[n] == split] for split in (_TRAIN, _TEST))
  if not train or not test:
    raise files.damaged(
      partition,
      f"{len(train)} images of split {_TRAIN} and {len(test)} of split {_TEST}",
    )
  x, y = _faces(present, male, train)
  return counts.dataset(
    *(attributes.parent, x, y),
    name="celeba",
    num_classes=2,
    test=_faces(present, male, test),
  )


def celeba64(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (5_120, 1_280)
) -> Dataset:
  """Return a small copy of CelebA from sheets, which is not the set `celeba`.

  Sheets with 64 tiles per row, 64 x 64, made from the first 6,400 images (5,120 +
  1,280). The source is a JPEG copy of half the size, so the pixels differ from those of
  `celeba`. The label is the attribute Male.

  Args:
    data_dir: folder with celeba64/{train, test}.webp and labels.npz.
    num_records: number of records of the training and the test sheet.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged; the line names it.
  """
  data = sheets.read(
    *(data_dir, "celeba64"),
    side=64,
    columns=64,
    mode="RGB",
    num_classes=2,
    num_records=num_records,
  )
  if data is None:
    raise files.missing(
      "celeba64",
      data_dir / "celeba64",
      "train.webp, test.webp (or .png) and labels.npz (y_train, y_test)",
      "make sheets with 64 tiles of 64 x 64 pixels per row from CelebA (for "
      "non-commercial research, no redistribution), or load celeba",
    )
  return data


def lfw62(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (2_442, 581)
) -> Dataset:
  """Return 62 people of LFW from sheets, gray, 64 x 64; not the protocol's `lfw`.

  Sheets with 50 tiles per row, of the people with at least 20 images, 2,442 + 581.
  `lfw` has the people with at least 40 images, 125 x 94 pixels and no test file.

  Args:
    data_dir: folder with lfw62/{train, test}.png and labels.npz.
    num_records: number of records of the training and the test sheet.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged; the line names it.
  """
  data = sheets.read(
    *(data_dir, "lfw62"),
    side=64,
    columns=50,
    mode="L",
    num_classes=62,
    num_records=num_records,
  )
  if data is None:
    raise files.missing(
      "lfw62",
      data_dir / "lfw62",
      "train.png, test.png (or .webp) and labels.npz (y_train, y_test)",
      "make sheets with 50 tiles of 64 x 64 pixels per row from LFW (for research), "
      "or load lfw",
    )
  return data


def _read_male(path: pathlib.Path, num_images: int) -> dict[str, int]:
  """Return {file name: 1 if Male else 0} in the order of the list."""
  count, names, *lines = [*files.read_text(path).splitlines(), "", ""]
  rows = [line.split() for line in lines if line]
  if count.strip() != str(num_images) or len(rows) != num_images:
    raise ValueError(
      f"{path} is not CelebA's{files.instead(path)}: it announces "
      f"{count.strip()[:20]!r} images and lists {len(rows)}, not {num_images}; load a "
      "small copy as celeba64"
    )
  if "Male" not in names.split():
    raise files.damaged(path, "it has no attribute Male")
  column = 1 + names.split().index("Male")
  male = {row[0]: row[column] for row in rows if len(row) > column}
  if len(male) < num_images or not set(male.values()) <= {"1", "-1"}:
    raise files.damaged(path, "a line lacks a Male of 1 or -1, or repeats an image")
  return {name.lower(): int(value == "1") for name, value in male.items()}


def _read_partition(path: pathlib.Path, male: dict[str, int]) -> dict[str, str]:
  rows = [line.split() for line in files.read_text(path).splitlines()]
  part = {row[0].lower(): row[1] for row in rows if len(row) == 2 and row[1] in _SPLITS}
  if missing := [name for name in male if name not in part]:
    raise files.damaged(
      path, f"it assigns {missing[0]} to none of the splits {', '.join(_SPLITS)}"
    )
  return part


def _faces(
  present: dict[str, pathlib.Path], male: dict[str, int], names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
  paths = [present[name] for name in names]
  x = image_folder.decode(paths, "celeba", prepare=celeba_face)
  return x, np.array([male[name] for name in names])

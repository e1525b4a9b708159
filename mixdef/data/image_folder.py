"""Reader of image folders with one file per image."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from mixdef.core import extras
from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

SIDE = 64


def square(pixels: np.ndarray, crop: int | None = None) -> np.ndarray:
  """Return the center square of an image, 64 x 64.

  Args:
    pixels: [H, W, 3] uint8.
    crop: side of the square to crop; None means the largest.

  Returns:
    [64, 64, 3] uint8, resized bilinearly with antialiasing.
  """
  extras.require("PIL")
  import PIL.Image

  height, width, _ = pixels.shape
  crop = crop or min(height, width)
  top, left = (height - crop) // 2, (width - crop) // 2
  centre = PIL.Image.fromarray(pixels[top : top + crop, left : left + crop])
  return np.asarray(centre.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR))


def decode(
  paths: Sequence[pathlib.Path],
  name: str,
  *,
  prepare: Callable[[np.ndarray], np.ndarray] = square,
) -> np.ndarray:
  """Decode image files into one array, and log the progress.

  Args:
    paths: paths of the N files.
    name: name of the set, for the log.
    prepare: pixels [H, W, 3] uint8 -> [64, 64, 3] uint8.

  Returns:
    [N, 64, 64, 3] uint8. Gray images become RGB.

  Raises:
    ValueError: a file is damaged, or `prepare` refuses its pixels; the line names it.
  """
  x = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
  for i, path in enumerate(paths):
    pixels = files.read_picture(path, "RGB")
    with files.named(path):
      x[i] = prepare(pixels)
    logging.log_every_n_seconds(
      logging.INFO, "%s: %d of %d images decoded", 10, name, i + 1, len(paths)
    )
  return x


def read_classes(
  data_dir: pathlib.Path,
  *,
  name: str,
  folders: Sequence[str],
  min_images: int,
  advice: str,
) -> Dataset:
  """Return the images of a folder whose subfolders are the classes.

  The classes are the names of the subfolders with at least `min_images` .jpg files, in
  sorted order; the images are ordered by class, then by file name.

  Args:
    data_dir: folder that contains one of `folders`.
    name: canonical name of the set.
    folders: possible names of the set's folder, in order of preference.
    min_images: minimal number of images of a class; smaller classes are dropped.
    advice: how and under which terms to get the set, for the error message.

  Returns:
    A `Dataset` of uint8 [N, 64, 64, 3], the largest center square of each image,
    without a test file; use `split` to hold one out.

  Raises:
    FileNotFoundError: none of the folders is there.
    ValueError: fewer than two classes have enough images, or an image is damaged.
  """
  roots = (files.child(data_dir, folder) for folder in folders)
  root = next((root for root in roots if root and root.is_dir()), None)
  if root is None:
    raise files.missing(name, data_dir / folders[0], "<class>/*.jpg", advice)
  classes = files.subfolders(root)
  if len(classes) == 1 and files.subfolders(classes[0]):
    (root,) = classes  # as some archives unpack
    classes = files.subfolders(root)
  pictures = [files.pictures(folder) for folder in classes]
  kept = [paths for paths in pictures if len(paths) >= min_images]
  if len(kept) < 2:
    raise ValueError(
      f"{root} is not {name}: {len(kept)} of its {len(classes)} subfolders hold at"
      f" least {min_images} .jpg files; two or more are needed ({files.contents(root)})"
    )
  logging.info(
    "%s: %d of %d folders in %s hold at least %d images",
    *(name, len(kept), len(classes), root, min_images),
  )
  y = np.repeat(np.arange(len(kept)), [len(paths) for paths in kept])
  x = decode([path for paths in kept for path in paths], name)
  return counts.dataset(root, x, y, name=name, num_classes=len(kept))

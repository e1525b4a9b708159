"""Reader of HAM10000, photographs of pigmented skin lesions."""

import pathlib

import numpy as np

from mixdef.data import counts, files, image_folder
from mixdef.data.dataset import Dataset

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "images")
_METADATA = "HAM10000_metadata.csv"


def read(data_dir: pathlib.Path, *, num_images: int = 10_015) -> Dataset:
  """Return the photographs with their diagnosis, in the order of the metadata.

  Reads `HAM10000_metadata.csv` (image_id, dx) and the .jpg files in
  `HAM10000_images_part_1`, `HAM10000_images_part_2` or `images`. The classes are the
  seven values of dx, sorted: akiec, bcc, bkl, df, mel, nv, vasc.

  Args:
    data_dir: the files are in data_dir/ham10000 or in data_dir itself.
    num_images: required number of images in the metadata; reduced copies are rejected.

  Returns:
    A `Dataset` of uint8 [N, 64, 64, 3] without a test file; use `split` to hold one
    out.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: a file is damaged; the line names it.

  Deviation: the size is ours, the largest centre square (450 of 600 x 450 pixels)
    resized to 64 x 64. Several photographs show one lesion, so a record that is out can
    have a near-duplicate that is in.
  Reference: Tschandl, Rosendahl, Kittler, "The HAM10000 dataset", 2018,
    arXiv 1803.10417.
  """
  found = files.find(data_dir, ("ham10000", ""), (_METADATA,))
  if found is None:
    raise files.missing(
      "ham10000",
      data_dir / "ham10000",
      f"{_METADATA} and the folders {_FOLDERS[0]} and {_FOLDERS[1]} (or images)",
      "download them from https://doi.org/10.7910/DVN/DBW86T (non-commercial use)",
    )
  (metadata,) = found
  rows = files.read_csv(metadata, ("image_id", "dx"))
  if len(rows) != num_images:
    raise ValueError(
      f"{metadata} is not HAM10000's: it lists {len(rows)} images, not {num_images};"
      " put the official file there"
    )
  if len({image for image, _ in rows}) < num_images:
    raise files.damaged(metadata, "it lists an image twice")
  for image, diagnosis in rows:
    if diagnosis not in CLASSES:
      raise files.damaged(
        metadata,
        f"{image} has dx {diagnosis!r}, which is not one of {', '.join(CLASSES)}",
      )
  folders = [files.child(metadata.parent, folder) for folder in _FOLDERS]
  present = {
    path.stem: path for folder in folders if folder for path in files.pictures(folder)
  }
  if lacking := [image for image, _ in rows if image not in present]:
    raise FileNotFoundError(
      f"{metadata.parent} lacks {len(lacking):,} of {len(rows):,} images, the first is"
      f" {lacking[0]}.jpg; put {_FOLDERS[0]} and {_FOLDERS[1]} there"
      f" ({files.contents(metadata.parent)})"
    )
  x = image_folder.decode([present[image] for image, _ in rows], "ham10000")
  y = np.array([CLASSES.index(diagnosis) for _, diagnosis in rows])
  return counts.dataset(
    metadata.parent, x, y, name="ham10000", num_classes=len(CLASSES)
  )

"""Read the sets that scikit-learn bundles or fetches."""

import pathlib
import tarfile
import zlib
from typing import Any

import numpy as np

from mixdef.data import files
from mixdef.data.dataset import Dataset

_LFW_TABLES = ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt")
_LFW_PICTURES = ("lfw_funneled", "lfw-funneled.tgz")
_LFW_SIZE = (250, 250)


def digits() -> Dataset:
  """Return the 1,797 bundled 8 x 8 digits, float32 value / 16 in [0, 1].

  Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
  """
  from sklearn.datasets import load_digits

  raw: Any = load_digits()
  x = (raw.images[..., None] / 16).astype(np.float32)
  return Dataset.from_arrays(x, raw.target, name="digits", num_classes=10)


def lfw(data_dir: pathlib.Path) -> Dataset:
  """Return the faces of the people with at least 40 images, grey, 125 x 94.

  Reads data_dir/lfw_home, scikit-learn's folder, or lets scikit-learn download it.
  The pixels are in [0, 1] already and are not scaled again. There is no test file: the
  protocol holds out a tenth, `load("lfw").split(0.1)`.

  Args:
    data_dir: folder that holds lfw_home.

  Raises:
    FileNotFoundError: the files are missing and cannot be downloaded.
    ValueError: the files are damaged, or the pictures are not the 250 x 250 of LFW.

  Reference: Huang et al., Labeled Faces in the Wild, 2007.
  """
  from sklearn.datasets import fetch_lfw_people

  home = data_dir / "lfw_home"
  # Scikit-learn pads other pictures with black, and caches what it read.
  for path in (home / "lfw_funneled").glob("*/*"):
    _check_picture(path)
  try:
    faces: Any = fetch_lfw_people(
      data_home=str(data_dir), min_faces_per_person=40, resize=1.0
    )
  except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
    reason = files.first_line(error)
    complete = all((home / name).exists() for name in _LFW_TABLES)
    if complete and any((home / name).exists() for name in _LFW_PICTURES):
      raise ValueError(
        f"{home} is damaged: {reason}; remove it and get its files again"
      ) from error
    raise FileNotFoundError(
      f"lfw: {home} needs {_LFW_PICTURES[0]}/ (or {_LFW_PICTURES[1]}),"
      f" {', '.join(_LFW_TABLES)}, and the download failed ({reason}); put them there"
    ) from error
  return Dataset.from_arrays(
    faces.images[..., None],
    faces.target,
    name="lfw",
    num_classes=len(faces.target_names),
  )


def _check_picture(path: pathlib.Path) -> None:
  import PIL.Image

  try:
    with PIL.Image.open(path) as picture:
      size = picture.size
  except OSError as error:
    raise ValueError(f"{path} is damaged: {error}; get it again") from error
  if size != _LFW_SIZE:
    raise ValueError(
      f"{path} is not of LFW: it is {size[0]} x {size[1]} pixels, not"
      f" {_LFW_SIZE[0]} x {_LFW_SIZE[1]}; the set is read from its official files only"
    )

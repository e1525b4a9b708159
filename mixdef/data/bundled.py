"""Read the sets that scikit-learn bundles or fetches."""

import pathlib
from typing import Any

import numpy as np

from mixdef.data.dataset import Dataset
from mixdef.data.files import first_line


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

  Reference: Huang et al., Labeled Faces in the Wild, 2007.
  """
  from sklearn.datasets import fetch_lfw_people

  try:
    faces: Any = fetch_lfw_people(
      data_home=str(data_dir), min_faces_per_person=40, resize=1.0
    )
  except OSError as error:
    raise FileNotFoundError(
      f"lfw: {data_dir / 'lfw_home'} needs lfw_funneled/ (or lfw-funneled.tgz),"
      " pairs.txt, pairsDevTrain.txt and pairsDevTest.txt, and the download failed"
      f" ({first_line(error)}); put them there"
    ) from error
  return Dataset.from_arrays(
    faces.images[..., None],
    faces.target,
    name="lfw",
    num_classes=len(faces.target_names),
  )

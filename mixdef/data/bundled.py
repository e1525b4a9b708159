"""Readers of the sets that scikit-learn bundles or fetches."""

import pathlib
from typing import Any

import numpy as np

from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

_LFW_TABLES = ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt")
_LFW_PICTURES = ("lfw_funneled", "lfw-funneled.tgz")
_LFW_SHAPE = (250, 250, 3)
_LFW_LEAST = 40  # minimal number of pictures per person


def digits() -> Dataset:
  """Return the 1,797 bundled 8 x 8 digits, float32 value / 16 in [0, 1].

  Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
  """
  from sklearn.datasets import load_digits

  raw: Any = load_digits()
  x = (raw.images[..., None] / 16).astype(np.float32)
  return Dataset.from_arrays(x, raw.target, name="digits", num_classes=10)


def lfw(data_dir: pathlib.Path, *, num_records: int = 1_867) -> Dataset:
  """Return the faces of the people with at least 40 images, gray, 125 x 94.

  Reads data_dir/lfw_home/lfw_funneled, as unpacked by scikit-learn, or lets
  scikit-learn download or unpack it. The pixels, their order and the labels of people
  are those of `fetch_lfw_people(min_faces_per_person=40, resize=1.0)`: in [0, 1], and
  not rescaled. The set has no test file; the protocol holds out a tenth,
  `load("lfw").hold_out(0.1)`.

  Args:
    data_dir: folder that contains lfw_home.
    num_records: number of pictures of these people.

  Raises:
    FileNotFoundError: the files are missing and cannot be downloaded.
    ValueError: the files are damaged, or the pictures are not the 250 x 250 of LFW.

  Reference: Huang et al., Labeled Faces in the Wild, 2007.
  """
  folder = data_dir / "lfw_home" / _LFW_PICTURES[0]
  if not folder.is_dir():
    _fetch_lfw(data_dir)
  # Read here, because scikit-learn caches its first read even if the folder changes.
  people = {path.name: files.pictures(path) for path in files.subfolders(folder)}
  kept = {name: paths for name, paths in people.items() if len(paths) >= _LFW_LEAST}
  if (found := sum(map(len, kept.values()))) != num_records:
    raise ValueError(
      f"{folder} is not the complete LFW: people with at least {_LFW_LEAST} images "
      f"have {found:,} in total, not {num_records:,}; remove it and unpack "
      f"{_LFW_PICTURES[1]} again"
    )
  x = np.stack([_read_face(path) for paths in kept.values() for path in paths])
  _, numbers = np.unique([name.replace("_", " ") for name in kept], return_inverse=True)
  y = np.repeat(numbers, [len(paths) for paths in kept.values()])
  order = np.arange(len(x))
  np.random.RandomState(42).shuffle(order)
  return counts.dataset(folder, x[order], y[order], name="lfw", num_classes=len(kept))


def _fetch_lfw(data_dir: pathlib.Path) -> None:
  from sklearn.datasets import fetch_lfw_people

  home = data_dir / "lfw_home"
  try:
    fetch_lfw_people(data_home=str(data_dir), min_faces_per_person=_LFW_LEAST)
  # It raises any error of the network, the archive and the decoder.
  except Exception as error:
    reason = files.first_line(error)
    complete = all((home / name).exists() for name in _LFW_TABLES)
    if complete and any((home / name).exists() for name in _LFW_PICTURES):
      raise ValueError(
        f"{home} is damaged: {reason}; remove it and download its files again"
      ) from error
    raise FileNotFoundError(
      f"lfw: {home} needs {_LFW_PICTURES[0]}/ (or {_LFW_PICTURES[1]} and"
      f" {', '.join(_LFW_TABLES)}), and the download failed ({reason}); put them there"
      f" ({files.contents(home)})"
    ) from error


def _read_face(path: pathlib.Path) -> np.ndarray:
  pixels = files.read_picture(path)
  if pixels.shape != _LFW_SHAPE:
    sizes = (" x ".join(map(str, shape)) for shape in (pixels.shape, _LFW_SHAPE))
    raise ValueError(
      f"{path} is not an image of LFW: it has {next(sizes)} pixels, not "
      f"{next(sizes)}; put the official files there"
    )
  # The region that scikit-learn crops.
  face = pixels[70:195, 78:172].astype(np.float32) / np.float32(255)
  return face.mean(axis=2, keepdims=True)

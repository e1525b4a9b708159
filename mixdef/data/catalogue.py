"""Every data set by its canonical name."""

import difflib
import os
import pathlib
from collections.abc import Callable

from mixdef.data import (
  adult,
  bundled,
  cifar,
  faces,
  ham10000,
  idx,
  image_folder,
  mimic,
  sheets,
  stl,
  synthetic,
  tables,
  texas_purchase,
  tfds,
)
from mixdef.data.dataset import Dataset


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
  """Return a data set of the catalogue.

  Looks for the official raw files under `data_dir`, then for a set that TensorFlow
  Datasets prepared there, then lets TensorFlow Datasets download and prepare it.

  Args:
    name: a key of `CATALOGUE`; names with the prefix `synthetic_` are simulated.
    data_dir: folder of the raw files. None takes the environment variable MIXDEF_DATA,
      or else the folder `data` under the current one.

  Returns:
    A `Dataset`.

  Raises:
    ValueError: the name is unknown, or a file is damaged.
    FileNotFoundError: the files are missing; the line names files, folder and command.

  >>> load("digits")
  Dataset(digits: 1,797 x (8, 8, 1) float32, 10 classes, 0 reference, test none)
  """
  if name not in CATALOGUE:
    close = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
    raise ValueError(
      f"no data set {name!r}; close: {', '.join(close or sorted(CATALOGUE))}; for your"
      " own arrays use Dataset.from_arrays(x, y)"
    )
  if data_dir is None:
    data_dir = os.environ.get("MIXDEF_DATA") or "data"
  return CATALOGUE[name](pathlib.Path(data_dir).expanduser())


def _idx(name: str) -> Callable[[pathlib.Path], Dataset]:
  def read(data_dir: pathlib.Path) -> Dataset:
    official = f"{idx.NAMES[0]} and its three siblings in {data_dir / name}"
    return idx.read(data_dir, name) or tfds.read(data_dir, name, official=official)

  return read


def _cifar10(data_dir: pathlib.Path) -> Dataset:
  folder = "cifar-10-batches-bin"
  return (
    cifar.read_binary(
      data_dir,
      "cifar10",
      folder=folder,
      names=cifar.CIFAR10_NAMES,
      label_bytes=1,
      num_classes=10,
    )
    or sheets.read(
      data_dir,
      "cifar10",
      side=32,
      columns=100,
      mode="RGB",
      num_classes=10,
      train=[f"train_{i}" for i in range(5)],
      labels=("train", "test"),
    )
    or tfds.read(
      data_dir,
      "cifar10",
      official=f"data_batch_1.bin to test_batch.bin in {data_dir / folder}",
    )
  )


def _cifar100(data_dir: pathlib.Path) -> Dataset:
  folder = "cifar-100-binary"
  return cifar.read_binary(
    data_dir,
    "cifar100",
    folder=folder,
    names=cifar.CIFAR100_NAMES,
    label_bytes=2,
    num_classes=100,
  ) or tfds.read(
    data_dir, "cifar100", official=f"train.bin and test.bin in {data_dir / folder}"
  )


def _stl10(data_dir: pathlib.Path) -> Dataset:
  official = f"{', '.join(stl.NAMES)} in {data_dir / stl.FOLDER}"
  return stl.read(data_dir) or tfds.read(data_dir, "stl10", official=official)


def _celeba(data_dir: pathlib.Path) -> Dataset:
  terms = "non-commercial research, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
  official = f"{faces.CELEBA_FILES} in {data_dir / 'celeba'} ({terms})"
  return faces.celeba(data_dir) or tfds.read(data_dir, "celeba", official=official)


CATALOGUE: dict[str, Callable[[pathlib.Path], Dataset]] = {
  "digits": lambda data_dir: bundled.digits(),
  "synthetic_memorize": lambda data_dir: synthetic.synthetic_memorize(),
  "synthetic_clusters": lambda data_dir: synthetic.synthetic_clusters(),
  "mnist": _idx("mnist"),
  "fashion_mnist": _idx("fashion_mnist"),
  "cifar10": _cifar10,
  "cifar100": _cifar100,
  "stl10": _stl10,
  "celeba": _celeba,
  "celeba64": faces.celeba64,
  "lfw": bundled.lfw,
  "lfw62": faces.lfw62,
  "casia_face": lambda data_dir: image_folder.read_classes(
    data_dir,
    "casia_face",
    folders=("casia_face", "CASIA-WebFace"),
    min_images=100,
    advice="ask the Institute of Automation, Chinese Academy of Sciences, for"
    " CASIA-WebFace (research only, under a signed agreement)",
  ),
  "ham10000": ham10000.read,
  "location30": lambda data_dir: tables.read_packed(
    data_dir, "location30", num_features=446, num_classes=30
  ),
  "diabetes130_top100dx": lambda data_dir: tables.read_packed(
    data_dir, "diabetes130_top100dx", num_features=736, num_classes=100
  ),
  "texas100": lambda data_dir: texas_purchase.read(data_dir, "texas100"),
  "purchase100": lambda data_dir: texas_purchase.read(data_dir, "purchase100"),
  "adult": adult.read,
  "mimic3": lambda data_dir: mimic.read(
    data_dir,
    "mimic3",
    num_patients=46_520,
    advice="get credentialed access at https://physionet.org/content/mimiciii/1.4/",
  ),
  "mimic3_demo": lambda data_dir: mimic.read(
    data_dir,
    "mimic3_demo",
    num_patients=100,
    advice="download them from https://physionet.org/content/mimiciii-demo/1.4/ (ODbL)",
  ),
}

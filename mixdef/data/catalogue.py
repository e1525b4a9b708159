"""The catalogue of data sets, by canonical name."""

import difflib
import functools
import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from mixdef.core import registry
from mixdef.core.files import on_bucket, path_of
from mixdef.data import (
  adult,
  bundled,
  cifar,
  faces,
  ham10000,
  idx,
  image_folder,
  mimic,
  readers,
  sheets,
  stl,
  synthetic,
  tables,
  texas_purchase,
  tfds,
)
from mixdef.data.dataset import Dataset

# Detects sheets with the right number of wrong pictures, and swapped sheets.
_CIFAR10 = "20b420a22a784cfc007bc404149259b414094d2ecc02c7e85102a35a87f1da66"


CATALOGUE = registry.DATASETS
"""Readers by name of the data set, `(data_dir) -> Dataset`."""


def load(
  name: str | os.PathLike[str],
  *,
  data_dir: str | os.PathLike[str] | None = None,
  label: str | None = None,
  group: str | None = None,
  id: str | None = None,
  test: str | os.PathLike[str] | float | None = None,
  schema: Any = None,
) -> Dataset:
  """Load a data set of the catalogue, a file, or a data set of a hub.

  A name of the catalogue is searched for as official raw files under `data_dir`, then
  as a set that TensorFlow Datasets prepared there; otherwise, TensorFlow Datasets
  downloads and prepares it.

  Args:
    name: a key of `CATALOGUE`, where sets with the prefix `synthetic_` are simulated;
      the path of a .csv, .tsv, .parquet or .npz file, of a folder of x.npy and y.npy,
      or of a folder of pictures with a subfolder for each class; "hf:name" or
      "hf:name:configuration" for Hugging Face; or "tfds:name" for TensorFlow Datasets.
    data_dir: folder of the raw files, local or on a bucket (`gs://`, `s3://`). None
      means the environment variable MIXDEF_DATA, or else `data` in the current folder.
    label: column of the class of a custom table; None means "label" or "y".
    group: column of the person that a record of a custom table belongs to.
    id: column of the unique id of a record of a custom table.
    test: path of held-out records in the same format, or the fraction in (0, 1) to hold
      out; see `Dataset.hold_out`.
    schema: how the columns of a custom table become features; see
      `Dataset.from_dataframe`.

  Returns:
    A `Dataset`.

  Raises:
    ValueError: the name is unknown, or a file is damaged.
    TypeError: an argument is of the wrong type.
    FileNotFoundError: the files are missing; the line names files, folder and command.

  >>> load("digits")
  Dataset(digits: 1,797 x (8, 8, 1) float32, 10 classes, 0 auxiliary, test none)
  """
  check_name(name)
  roles = readers.Roles(label, group, id)
  path = None if isinstance(test, float) else test
  if _is_path(name):
    data = readers.read(name, roles=roles, test=path, schema=schema)
  else:
    name = str(name)
    given = {**roles._asdict(), "test": path, "schema": schema}
    for key in ("test",) if _is_of_hub(name) else given:
      if given[key] is not None:
        raise ValueError(
          f"{name} is not a file: drop {key}={given[key]!r}, which applies to files"
        )
    if name.startswith(readers.huggingface.PREFIX):
      data = readers.huggingface.load(name, roles=roles, schema=schema)
    elif name.startswith(readers.tensorflow.PREFIX):
      folder = _folder(data_dir)
      data = readers.tensorflow.load(name, folder, roles=roles, schema=schema)
    else:
      data = CATALOGUE.make(name, Dataset, _folder(data_dir))
  return data.hold_out(test) if isinstance(test, float) else data


def check_name(name: str | os.PathLike[str]) -> None:
  """Raise unless `name` is in the catalogue, or has the form of a path or hub name.

  Raises:
    ValueError: with the nearest names.
    TypeError: `name` is neither text nor a path.
  """
  if not isinstance(name, str | os.PathLike):
    raise TypeError(
      f"name is {type(name).__name__}; pass the name of a data set, such as 'digits', "
      "or a path; for your own arrays use Dataset.from_arrays(x, y)"
    )
  if name in readers.HUBS:
    raise ValueError(f"{name} is followed by the name of a data set, as {name}mnist")
  if is_path_or_hub(name):
    return
  name = str(name)
  if ":" in name:
    CATALOGUE[name]
  elif name not in CATALOGUE:
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    close = difflib.get_close_matches(plain, CATALOGUE, n=3, cutoff=0.5)
    raise ValueError(
      f"unknown data set {name!r}; similar: {', '.join(close or sorted(CATALOGUE))}; "
      "for your own data pass the path of a file, or use Dataset.from_arrays(x, y)"
    )


def is_path_or_hub(name: str | os.PathLike[str]) -> bool:
  """Return whether a name is a path or that of a hub, and not in the catalogue."""
  return _is_path(name) or _is_of_hub(name)


def _is_of_hub(name: str | os.PathLike[str]) -> bool:
  return isinstance(name, str) and name.startswith(readers.HUBS)


def _is_path(name: str | os.PathLike[str]) -> bool:
  """Return whether a name is a path, and neither in the catalogue nor of a hub."""
  if isinstance(name, str) and (name in CATALOGUE or _is_of_hub(name)):
    return False
  return readers.is_path(name) or os.path.exists(name)


def _folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  given = "data_dir"
  if data_dir is None:
    given = "MIXDEF_DATA" if os.environ.get("MIXDEF_DATA") else "data_dir"
    data_dir = os.environ.get("MIXDEF_DATA") or "data"
  folder = path_of(data_dir, given)
  if on_bucket(folder):
    return folder  # a bucket has no folders to check
  try:
    is_folder = stat.S_ISDIR(folder.stat().st_mode)
  except FileNotFoundError:
    is_folder = True  # the reader reports the missing files
  # The name is too long or contains a zero byte, links form a loop, or access denied.
  except (ValueError, OSError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ValueError(
      f"{given}={str(data_dir)[:100]!r}: {reason}; pass the folder of the raw files"
    ) from error
  if not is_folder:
    raise ValueError(f"{given}={folder} is a file; pass the folder that contains it")
  return folder


def _idx(
  data_dir: pathlib.Path,
  *,
  name: str,
  digests: Mapping[str, Sequence[str]] = idx.DIGESTS,
  num_records: tuple[int, int] | None = None,
) -> Dataset:
  official = f"{idx.NAMES[0]} and its three siblings in {data_dir / name}"
  return idx.read(data_dir, name, digests=digests) or tfds.read(
    data_dir, name, num_records=num_records, official=official
  )


def _cifar10(
  data_dir: pathlib.Path,
  *,
  num_records: tuple[int, int] = (50_000, 10_000),
  content: str | None = _CIFAR10,
) -> Dataset:
  folder = "cifar-10-batches-bin"
  return (
    cifar.read_binary(
      data_dir,
      "cifar10",
      folder=folder,
      names=cifar.CIFAR10_NAMES,
      label_bytes=1,
      num_classes=10,
      num_records=num_records,
    )
    or sheets.read(
      data_dir,
      "cifar10",
      side=32,
      columns=100,
      mode="RGB",
      num_classes=10,
      num_records=num_records,
      content=content,
      train=[f"train_{i}" for i in range(5)],
      labels=("train", "test"),
    )
    or tfds.read(
      data_dir,
      "cifar10",
      num_records=num_records,
      official=f"data_batch_1.bin to test_batch.bin in {data_dir / folder}",
    )
  )


def _cifar100(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (50_000, 10_000)
) -> Dataset:
  folder = "cifar-100-binary"
  return cifar.read_binary(
    data_dir,
    "cifar100",
    folder=folder,
    names=cifar.CIFAR100_NAMES,
    label_bytes=2,
    num_classes=100,
    num_records=num_records,
  ) or tfds.read(
    data_dir,
    "cifar100",
    num_records=num_records,
    official=f"train.bin and test.bin in {data_dir / folder}",
  )


def _stl10(
  data_dir: pathlib.Path, *, num_records: tuple[int, int] = (5_000, 8_000)
) -> Dataset:
  official = f"{', '.join(stl.NAMES)} in {data_dir / stl.FOLDER}"
  return stl.read(data_dir, num_records=num_records) or tfds.read(
    data_dir, "stl10", num_records=num_records, official=official
  )


def _celeba(
  data_dir: pathlib.Path,
  *,
  num_images: int = 202_599,
  num_records: tuple[int, int] | None = None,
) -> Dataset:
  terms = "non-commercial research, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
  official = f"{faces.CELEBA_FILES} in {data_dir / 'celeba'} ({terms})"
  return faces.celeba(data_dir, num_images=num_images) or tfds.read(
    data_dir, "celeba", num_records=num_records, official=official
  )


# A reader takes the folder and, as keywords, the official sizes. With other sizes it
# reads small files of the same format.
registry.dataset(lambda data_dir: bundled.digits(), name="digits")
registry.dataset(
  lambda data_dir: synthetic.synthetic_memorize(), name="synthetic_memorize"
)
registry.dataset(
  lambda data_dir: synthetic.synthetic_clusters(), name="synthetic_clusters"
)
registry.dataset(
  functools.partial(_idx, name="mnist"),
  name="mnist",
  files="the four official idx files, else TensorFlow Datasets",
)
registry.dataset(
  functools.partial(_idx, name="fashion_mnist"),
  name="fashion_mnist",
  files="the four official idx files, else TensorFlow Datasets",
)
registry.dataset(
  _cifar10,
  name="cifar10",
  files="the official binary files, lossless sheets of 100 x 100 tiles, else "
  "TensorFlow Datasets",
)
registry.dataset(
  _cifar100,
  name="cifar100",
  files="the official binary files, else TensorFlow Datasets",
)
registry.dataset(
  _stl10, name="stl10", files="the official binary files, else TensorFlow Datasets"
)
registry.dataset(
  _celeba,
  name="celeba",
  files="`img_align_celeba/*.jpg`, `list_attr_celeba.txt` and, for the official"
  " split, `list_eval_partition.txt`, else TensorFlow Datasets; label: "
  "Male",
)
registry.dataset(
  faces.celeba64,
  name="celeba64",
  files="a small copy: sheets of 64 x 64 tiles and `labels.npz`",
)
registry.dataset(bundled.lfw, name="lfw", files="scikit-learn's download")
registry.dataset(
  faces.lfw62,
  name="lfw62",
  files="a small copy: sheets of 64 x 64 tiles and `labels.npz`",
)
registry.dataset(
  functools.partial(
    image_folder.read_classes,
    name="casia_face",
    folders=("casia_face", "CASIA-WebFace"),
    min_images=100,
    advice=(
      "request CASIA-WebFace from the Institute of Automation, Chinese Academy of "
      "Sciences (research only, under a signed agreement)"
    ),
  ),
  name="casia_face",
  files="`casia_face/<identity>/*.jpg`, identities with at least 100 images",
)
registry.dataset(
  ham10000.read,
  name="ham10000",
  files="`HAM10000_metadata.csv` and its two folders of images",
)
registry.dataset(
  functools.partial(
    tables.read_packed,
    name="location30",
    num_features=446,
    num_classes=30,
    num_records=5_010,
  ),
  name="location30",
  files="`location30.npz` with `x` (bits packed along axis 1), `y` and `n_features`",
)
registry.dataset(
  functools.partial(
    tables.read_packed,
    name="diabetes130_top100dx",
    num_features=736,
    num_classes=100,
    num_records=62_011,
  ),
  name="diabetes130_top100dx",
  files="`diabetes130_top100dx.npz` with `x` (bits packed along axis 1), `y` "
  "and `n_features`",
)
registry.dataset(
  functools.partial(texas_purchase.read, name="texas100"),
  name="texas100",
  files="`texas100.npz` (`features`, `labels`), or the authors' "
  "`dataset_texas.tgz`, packed or unpacked",
)
registry.dataset(
  functools.partial(texas_purchase.read, name="purchase100"),
  name="purchase100",
  files="`purchase100.npz` (`features`, `labels`), or the authors' "
  "`dataset_purchase.tgz`, packed or unpacked",
)
registry.dataset(adult.read, name="adult", files="`adult.data`, `adult.test`")
registry.dataset(
  functools.partial(
    mimic.read,
    name="mimic3",
    num_patients=46_520,
    num_rows=(58_976, 651_047),
    advice="get credentialed access at https://physionet.org/content/mimiciii/1.4/",
  ),
  name="mimic3",
  files="`ADMISSIONS.csv`, `DIAGNOSES_ICD.csv` of MIMIC-III (credentialed "
  "access); label: died in hospital",
)
registry.dataset(
  functools.partial(
    mimic.read,
    name="mimic3_demo",
    num_patients=100,
    num_rows=(129, 1_761),
    advice="download them from https://physionet.org/content/mimiciii-demo/1.4/ (ODbL)",
  ),
  name="mimic3_demo",
  files="`ADMISSIONS.csv`, `DIAGNOSES_ICD.csv` of the open demo of MIMIC-III; "
  "label: died in hospital",
)

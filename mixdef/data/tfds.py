"""Reader of sets prepared by TensorFlow Datasets; it does not need TensorFlow."""

import contextlib
import importlib.util
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mixdef.core import extras
from mixdef.core.files import on_bucket
from mixdef.data import counts, faces, files
from mixdef.data.dataset import Dataset


class Source(NamedTuple):
  """How to find a set in TensorFlow Datasets and how to read its examples.

  Attributes:
    builder: name of its builder.
    num_classes: number of classes K.
    num_records: number of records in the splits train and test.
    shape: shape of its images, [H, W, C].
    image: pixels [H, W, C] uint8 -> [H', W', C] uint8, or None to keep them unchanged.
    label: example -> int.
  """

  builder: str
  num_classes: int
  num_records: tuple[int, int]
  shape: tuple[int, int, int]
  image: Callable[[np.ndarray], np.ndarray] | None = None
  label: Callable[[dict[str, Any]], int] = lambda example: example["label"]


SOURCES = {
  "mnist": Source("mnist", 10, (60_000, 10_000), (28, 28, 1)),
  "fashion_mnist": Source("fashion_mnist", 10, (60_000, 10_000), (28, 28, 1)),
  "cifar10": Source("cifar10", 10, (50_000, 10_000), (32, 32, 3)),
  "cifar100": Source("cifar100", 100, (50_000, 10_000), (32, 32, 3)),
  "stl10": Source("stl10", 10, (5_000, 8_000), (96, 96, 3)),
  # Centre crop 128, 64 x 64, condition Male.
  "celeba": Source(
    "celeb_a",
    2,
    (162_770, 19_962),
    faces.CELEBA_SHAPE,
    faces.celeba_face,
    lambda example: int(example["attributes"]["Male"]),
  ),
}


def read(
  data_dir: pathlib.Path,
  name: str,
  *,
  num_records: tuple[int, int] | None = None,
  official: str = "",
) -> Dataset:
  """Return the prepared set, or let TensorFlow Datasets download and prepare it.

  Looks for data_dir/builder/version in the array_record format, newest version first.
  Records are in the order of the prepared files, which TensorFlow Datasets shuffles.
  This is not the order of the official files, so membership matrices cannot be reused.

  Args:
    data_dir: folder that contains the builders' folders.
    name: canonical name, a key of `SOURCES`.
    num_records: number of records in the splits train and test; None means the official
      numbers.
    official: files that may be provided instead, for the error message.

  Returns:
    A `Dataset` of uint8 images NHWC: the split `train`, with `test` as the test file.

  Raises:
    FileNotFoundError: nothing is prepared and it cannot be prepared here.
    ValueError: the prepared set has another format or is damaged.
  """
  source = SOURCES[name]
  wanted = f"neither {official} nor a" if official else "no"
  advice = (
    f"{name}: {wanted} prepared set {data_dir / source.builder}/<version> found; set"
    " data_dir or MIXDEF_DATA to their folder, or run"
    f" python -m pip install -e '.[prepare]' && {_command(data_dir, name)}"
    f" ({files.contents(data_dir / name)})"
  )
  if on_bucket(data_dir):
    raise FileNotFoundError(f"{advice}; prepared sets are read on this machine only")
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise FileNotFoundError(f"{advice} ({files.first_line(error)})") from error

  # An interrupted preparation leaves folders named "incomplete.*".
  found = (data_dir / source.builder).glob("[0-9]*.*.*/dataset_info.json")
  folders = [path.parent for path in found]
  if not folders:
    builder = _prepare(data_dir, source, advice)
  else:
    newest = max(folders, key=lambda folder: tfds.core.Version(folder.name))
    with _prepared(newest, "its description cannot be read"):
      builder = tfds.builder_from_directory(newest)
  place = pathlib.Path(builder.data_path)
  if builder.name != source.builder:
    raise ValueError(
      f"{place} holds {builder.name}, not {source.builder}; keep each data set in a "
      "folder of its name"
    )
  if builder.info.file_format.value != "array_record":
    raise ValueError(
      f"{place} holds {builder.info.file_format.value} files, which need"
      f" TensorFlow; prepare it again: {_command(data_dir, name)} --overwrite"
    )
  x, y = _read_split(builder, "train", source)
  test = _read_split(builder, "test", source)
  return counts.dataset(
    *(place, x, y),
    name=name,
    num_classes=source.num_classes,
    num_records=num_records or source.num_records,
    test=test,
  )


@contextlib.contextmanager
def _prepared(place: pathlib.Path, what: str) -> Iterator[None]:
  """Convert any error while reading a prepared set into a one-line error."""
  try:
    yield
  except PermissionError as error:
    raise files.unreadable(place, error) from error
  # Its readers raise many types of errors, including those of protobuf and C++.
  except Exception as error:
    raise ValueError(
      f"{place} is damaged: {what} ({files.first_line(error)}); remove the folder and"
      " prepare it again"
    ) from error


def _prepare(data_dir: pathlib.Path, source: Source, advice: str) -> Any:
  import tensorflow_datasets as tfds

  if importlib.util.find_spec("tensorflow") is None:
    raise FileNotFoundError(advice)
  try:
    builder = tfds.builder(
      source.builder, data_dir=data_dir, file_format="array_record"
    )
    builder.download_and_prepare()
  # Builders raise any error of their sources: network, quota, checksum, parser errors.
  except Exception as error:
    raise FileNotFoundError(
      f"{advice} (the download failed: {files.first_line(error)})"
    ) from error
  return builder


def _command(data_dir: pathlib.Path, name: str) -> str:
  return (
    f"tfds build {SOURCES[name].builder} --data_dir={data_dir}"
    " --file_format=array_record"
  )


def _read_split(
  builder: Any, split: str, source: Source
) -> tuple[np.ndarray, np.ndarray]:
  extras.require("PIL")
  import PIL.Image
  import tensorflow_datasets as tfds

  # Decode here, because TensorFlow Datasets' decoder depends on installed packages.
  decoders = {"image": tfds.decode.SkipDecoding()}
  place = pathlib.Path(builder.data_path)
  with _prepared(place, f"split {split!r} cannot be read"):
    examples = builder.as_data_source(split, decoders=decoders)
    x, y = np.empty(0, np.uint8), np.empty(len(examples), np.int32)
    for i, example in enumerate(examples):
      with PIL.Image.open(io.BytesIO(example["image"])) as image:
        pixels = np.atleast_3d(np.asarray(image))
      if pixels.shape != source.shape:
        raise ValueError(f"image {i} is {pixels.shape}, not {source.shape}")
      if source.image:
        pixels = source.image(pixels)
      if i == 0:
        x = np.empty((len(examples), *pixels.shape), np.uint8)
      x[i], y[i] = pixels, source.label(example)
  return x, y

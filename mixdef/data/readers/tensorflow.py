"""Reader of any set of TensorFlow Datasets, without TensorFlow."""

import pathlib
from typing import Any

from mixdef.data import columns, tfds
from mixdef.data.columns import Columns, Roles
from mixdef.data.dataset import Dataset
from mixdef.data.readers import examples

PREFIX = "tfds:"


def load(
  name: str, data_dir: pathlib.Path, *, roles: Roles, schema: Any = None
) -> Dataset:
  """Return a prepared set, or let TensorFlow Datasets download and prepare it.

  The records are the split `train`, and the held-out records `test`, if it exists.

  Args:
    name: "tfds:" and the name of a builder.
    data_dir: folder that contains the builders' folders.
    roles: the columns that are not features.
    schema: how columns become features; see `read_schema`.

  Raises:
    FileNotFoundError: nothing is prepared and it cannot be prepared here.
    ValueError: naming the feature, the row and the fix.
  """
  plain = name.removeprefix(PREFIX)
  builder = tfds.open_builder(data_dir, plain, name=plain)
  if "train" not in builder.info.splits:
    raise ValueError(
      f"{name} has no split 'train'; it has {', '.join(builder.info.splits)}"
    )
  train = _columns(builder, "train")
  place = f"{name}, split train"
  label = columns.label_of(train, roles, place)
  held_out = None
  if "test" in builder.info.splits:
    held_out = _columns(builder, "test"), f"{name}, split test"
  kind = builder.info.features[label] if label in train else None
  names = getattr(kind, "names", None)
  return columns.dataset(
    train,
    roles,
    place,
    name=plain,
    schema=schema,
    test=held_out,
    names=tuple(names) if names else None,
  )


def _columns(builder: Any, split: str) -> Columns:
  import tensorflow_datasets

  features = builder.info.features
  kinds = tensorflow_datasets.features
  # Decode here, because TensorFlow Datasets' decoder depends on installed packages.
  pictures = [key for key in features if isinstance(features[key], kinds.Image)]
  text = [key for key in features if isinstance(features[key], kinds.Text)]
  decoders = dict.fromkeys(pictures, tensorflow_datasets.decode.SkipDecoding())
  with tfds.prepared(builder.data_path, f"split {split!r} cannot be read"):
    source = builder.as_data_source(split, decoders=decoders)
    read = [source[i] for i in range(len(source))]
  for example in read:
    for key in text:
      example[key] = example[key].decode()
  return examples.columns_of(read, f"{PREFIX}{builder.name}, split {split}")

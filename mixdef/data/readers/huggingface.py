"""Reader of Hugging Face data sets."""

from typing import Any

from mixdef.core import extras
from mixdef.data import columns, files
from mixdef.data.columns import Columns, Roles
from mixdef.data.dataset import Dataset

PREFIX = "hf:"


def load(name: str, *, roles: Roles, schema: Any = None) -> Dataset:
  """Load a data set by name, from the local cache or the hub.

  Args:
    name: "hf:name", or "hf:name:configuration".
    roles: the columns that are not features.
    schema: how columns become features; see `read_schema`.

  Raises:
    ModuleNotFoundError: the package `datasets` is not installed.
    FileNotFoundError: it is not in the cache and cannot be downloaded.
    ValueError: naming the column, the row and the fix.
  """
  extras.require("datasets")
  import datasets  # pyrefly: ignore[missing-import]

  path, _, configuration = name.removeprefix(PREFIX).partition(":")
  try:
    found = datasets.load_dataset(path, configuration or None)
  # The hub, the network, the cache and the builders raise errors of many types.
  except Exception as error:
    raise FileNotFoundError(
      f"{name} is not in the cache of Hugging Face and cannot be downloaded "
      f"({files.first_line(error)}); check the name and the network, or set HF_HOME to "
      "the folder of a cache"
    ) from error
  return dataset(found, name=name, roles=roles, schema=schema)


def dataset(source: Any, *, name: str, roles: Roles, schema: Any = None) -> Dataset:
  """Return the `Dataset` of a `datasets.Dataset` or `DatasetDict`."""
  splits = source if isinstance(source, dict) else {"train": source}
  if "train" not in splits:
    raise ValueError(
      f"{name} has no split 'train'; it has {', '.join(splits)}: pass one of them"
    )
  for split in splits.values():
    if not hasattr(split, "with_format") or not hasattr(split, "__len__"):
      raise TypeError(
        f"{name} is a {type(split).__name__}; pass a datasets.Dataset, loaded without "
        "streaming"
      )
  place = f"{name}, split train"
  train = _columns(splits["train"], place)
  label = columns.label_of(train, roles, place)
  features = getattr(splits["train"], "features", None) or {}
  names = getattr(features.get(label), "names", None)
  held_out = None
  if "test" in splits and label in splits["test"].column_names:
    test_place = f"{name}, split test"
    test = _columns(splits["test"], test_place)
    if -1 not in test[label].to_pylist():  # which marks hidden labels of benchmarks
      held_out = test, test_place
  return columns.dataset(
    train,
    roles,
    place,
    name=name.removeprefix(PREFIX),
    schema=schema,
    test=held_out,
    names=tuple(names) if names else None,
  )


def _columns(split: Any, place: str) -> Columns:
  return columns.of_frame(split.with_format("arrow")[:], place)

"""Reader of data sets of Hugging Face."""

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
    roles: which columns hold no features.
    schema: what is known of the columns of features.

  Raises:
    ModuleNotFoundError: the package `datasets` is not installed.
    FileNotFoundError: it is neither in the cache nor can it be downloaded.
    ValueError: naming the column, the row and the fix.
  """
  extras.require("datasets")
  import datasets  # pyrefly: ignore[missing-import]

  path, _, configuration = name.removeprefix(PREFIX).partition(":")
  try:
    found = datasets.load_dataset(path, configuration or None)
  # It raises any error of the hub, the network, the cache and the builders.
  except Exception as error:
    raise FileNotFoundError(
      f"{name} is neither in the cache of Hugging Face nor can it be downloaded "
      f"({files.first_line(error)}); check the name and the network, or set HF_HOME to "
      "the folder of a cache"
    ) from error
  return dataset(found, name=name, schema=schema, **roles._asdict())


def dataset(
  source: Any,
  *,
  name: str,
  label: str | None = None,
  group: str | None = None,
  id: str | None = None,
  schema: Any = None,
) -> Dataset:
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
  roles = Roles(label, group, id)
  place = f"{name}, split train"
  own = _columns(splits["train"], place)
  label = columns.label_of(own, roles, place)
  features = getattr(splits["train"], "features", None) or {}
  names = getattr(features.get(label), "names", None)
  held_out = None
  if "test" in splits and _is_labelled(splits["test"], label):
    test_place = f"{name}, split test"
    held_out = _columns(splits["test"], test_place), test_place
  return columns.dataset(
    own,
    roles,
    place,
    name=name.removeprefix(PREFIX),
    schema=schema,
    test=held_out,
    names=tuple(names) if names else None,
  )


def _columns(split: Any, place: str) -> Columns:
  return columns.of_frame(split.with_format("arrow")[:], place)


def _is_labelled(split: Any, label: str) -> bool:
  """Return whether a split has labels; benchmarks write -1 where they keep them."""
  if label not in split.column_names:
    return False
  return -1 not in split.with_format("arrow")[:].column(label).to_pylist()

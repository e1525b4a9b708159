"""Canaries: the only records that vary between models, and the only audited ones.

All other records are in every training set, so a canary is attacked in a model that is
as good as the one that will be released. Hard canaries reveal leakage that an average
over typical records hides.

Reference: Aerni, Zhang, Tramer, "Evaluations of Machine Learning Privacy Defenses are
Misleading", 2024, arXiv 2404.17399.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mixdef.core import validate
from mixdef.core.mapped import MappedRecords
from mixdef.core.randomness import stream
from mixdef.data import Dataset


def plant(
  data: Dataset,
  kind: str,
  count: int,
  *,
  seed: int = 0,
  source: Dataset | None = None,
) -> Dataset:
  """Turn random records into canaries and all others into members of every model.

  Train on the result with

      subsets(planted, num_models)

  so that a canary is in or out according to the design and every other record is in.
  `data.audited` marks the canaries. The same seed selects the same records for every
  kind, and a smaller count selects the first of them. Where records belong to groups, a
  canary is a person: all its records become canaries, and are in or out together.

  Args:
    data: the records; auxiliary records stay unchanged and are never canaries.
    kind: one of `CANARIES`: "clean", "mislabelled", "blank", "ood" or "duplicates".
    count: number of canaries C, at least 1, in persons if there are groups; 500 of
      50,000 in the paper.
    seed: non-negative int.
    source: for "ood", the data set that the records come from; see `ood`.

  Returns:
    A `Dataset` with the same number of records and the same `ids`; only canaries are
    changed.

  Raises:
    ValueError: the kind is unknown, the data have one class or too few eligible
      records or persons, or `source` does not fit.

  >>> from mixdef.data.synthetic import synthetic_clusters
  >>> planted = plant(synthetic_clusters(100), "mislabelled", 10)
  >>> int(planted.audited.sum()), int(planted.always_member.sum())
  (10, 90)
  """
  _check_kind(kind)
  if data.num_classes < 2:
    raise ValueError(f"num_classes={data.num_classes}; canaries need at least 2 labels")
  if source is not None and kind != "ood":
    raise ValueError(
      f"only ood canaries need a source, {kind} ones do not: drop source"
    )
  units = data.units
  sizes = np.bincount(units)
  free = np.bincount(units, weights=data.audited) == sizes
  eligible, noun = int(free.sum()), "records" if data.groups is None else "persons"
  if not 1 <= count <= eligible:
    raise ValueError(
      f"{count} canaries of {eligible} {noun} that are neither auxiliary nor always "
      f"members; pass 1 to {eligible}"
    )
  order = stream(seed, "canaries").permutation(len(sizes))
  chosen = order[free[order]][:count]
  turn = np.full(len(sizes), count)
  turn[chosen] = np.arange(count)
  rows = turn[units].argsort(kind="stable")[: sizes[chosen].sum()]
  content, labels = CANARIES[kind](data, rows, seed, source)
  y = data.y.copy()
  y[rows] = labels
  if isinstance(data.x, MappedRecords):
    x = data.x.replace(rows, content)
  else:
    x = data.x.copy()
    x[rows] = content
  always = ~data.auxiliary
  always[rows] = False
  return dataclasses.replace(data, x=x, y=y, always_member=always)


def parse_canaries(text: str) -> tuple[str, int]:
  """Parse "kind:count".

  Args:
    text: for example "mislabelled:500".

  Returns:
    The kind and the count.

  Raises:
    ValueError: the text is not of this form, or the kind is unknown.

  >>> parse_canaries("mislabelled:500")
  ('mislabelled', 500)
  """
  kind, _, count = text.partition(":")
  _check_kind(kind)
  if not (count.isascii() and count.isdigit()) or int(count) < 1:
    raise ValueError(f"canaries={text!r}; write kind:count, as in mislabelled:500")
  return kind, int(count)


Contents = tuple[np.ndarray, np.ndarray]


def clean(
  data: Dataset, rows: np.ndarray, seed: int, source: Dataset | None
) -> Contents:
  """Keep the canaries unchanged: ordinary records."""
  del seed, source
  return data.x[rows], data.y[rows]


def mislabelled(
  data: Dataset, rows: np.ndarray, seed: int, source: Dataset | None
) -> Contents:
  """Give each canary a label drawn uniformly from the K - 1 wrong ones.

  A record's wrong label depends only on the seed and its position.
  """
  del source
  return data.x[rows], _wrong_labels(data, seed)[rows]


def blank(
  data: Dataset, rows: np.ndarray, seed: int, source: Dataset | None
) -> Contents:
  """Make each canary one random colour, with a random label.

  Deviation: [ours] a channel's colour is uniform between its smallest and largest value
    in the data. A record of a table has all features at one random height u of their
    ranges, low + u (high - low); features with two values take the nearer one, so that
    a binary table has two blank records only, all low or all high, and other canaries
    suit it better.
  """
  del source
  validate.quantities(data.x, "a blank canary")
  validate.in_memory(data.x, "a blank canary")
  random = stream(seed, "blank")
  image = data.x.ndim > 2
  channels = data.x.shape[-1] if data.x.ndim > 3 else 1
  table = data.x.reshape(-1, channels) if image else data.x
  low, high = table.min(axis=0).astype(float), table.max(axis=0).astype(float)
  height = random.random((len(rows), channels if image else 1))
  two_valued = ((table == low) | (table == high)).all(axis=0)
  colour = low + np.where(two_valued, height >= 0.5, height) * (high - low)
  if data.x.dtype == np.uint8:
    colour = np.rint(colour)
  if image:
    shape = (len(rows), *(1,) * (data.x.ndim - 2), channels)
    colour = colour.reshape(shape if data.x.ndim > 3 else (len(rows), 1, 1))
  x = np.broadcast_to(colour, (len(rows), *data.x.shape[1:])).astype(data.x.dtype)
  return x, _random_labels(data, rows, seed)


def ood(data: Dataset, rows: np.ndarray, seed: int, source: Dataset | None) -> Contents:
  """Replace the canaries by records of another distribution, with random labels.

  If `source`, a data set with records of the same shape and type, is given, canaries
  are distinct random records of it.

  Deviation: [ours] without a source, each feature is drawn independently from its own
    column of the data: the marginals are right and everything between them is lost.
  """
  random = stream(seed, "ood")
  if source is None:
    validate.in_memory(data.x, "an ood canary without a source")
    table = data.x.reshape(len(data), -1)
    drawn = random.integers(len(data), size=(len(rows), table.shape[1]))
    x = table[drawn, np.arange(table.shape[1])].reshape(len(rows), *data.x.shape[1:])
    return x, _random_labels(data, rows, seed)
  if (source.x.shape[1:], source.x.dtype) != (data.x.shape[1:], data.x.dtype):
    raise ValueError(
      f"source has records {source.x.dtype} {source.x.shape[1:]}, but the data have "
      f"{data.x.dtype} {data.x.shape[1:]}; preprocess both in the same way"
    )
  if len(source) < len(rows):
    raise ValueError(
      f"source has {len(source)} records for {len(rows)} canaries; plant fewer"
    )
  drawn = random.permutation(len(source))[: len(rows)]
  return source.x[drawn], _random_labels(data, rows, seed)


def duplicates(
  data: Dataset, rows: np.ndarray, seed: int, source: Dataset | None
) -> Contents:
  """Make each canary a mislabelled copy of another record that every model trains on.

  This targets defenses that train parts of a model on parts of the records (SELENA):
  the copy and its clean twin are in different parts.

  Deviation: [ours] the paper varies half of the twins as well; here all of them stay
    in, so that a canary's membership is the only difference.
  """
  del source
  others = ~data.auxiliary
  others[rows] = False
  if others.sum() < len(rows):
    raise ValueError(
      f"{len(rows)} duplicates need as many other records to copy, but there are "
      f"{int(others.sum())}; plant fewer"
    )
  twins = stream(seed, "twins").permutation(np.flatnonzero(others))[: len(rows)]
  return data.x[twins], _wrong_labels(data, seed)[twins]


CANARIES: dict[str, Callable[[Dataset, np.ndarray, int, Dataset | None], Contents]] = {
  "clean": clean,
  "mislabelled": mislabelled,
  "blank": blank,
  "ood": ood,
  "duplicates": duplicates,
}


def _wrong_labels(data: Dataset, seed: int) -> np.ndarray:
  shift = stream(seed, "wrong labels").integers(1, data.num_classes, size=len(data))
  return (data.y + shift) % data.num_classes


def _random_labels(data: Dataset, rows: np.ndarray, seed: int) -> np.ndarray:
  return stream(seed, "random labels").integers(data.num_classes, size=len(rows))


def _check_kind(kind: str) -> None:
  if kind not in CANARIES:
    raise ValueError(
      f"unknown kind of canaries {kind!r}; choose from {', '.join(CANARIES)}"
    )

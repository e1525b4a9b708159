"""The data set: arrays of records, labels and per-record flags."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from mixdef.core import record_names, validate
from mixdef.core.mapped import MappedRecords, kept_in_file
from mixdef.core.randomness import stream
from mixdef.data import labels
from mixdef.data.schema import Schema
from mixdef.data.sources import Sources


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(Sources):
  """The records that models are trained on, without any information on membership.

  Every method is pure and returns a new `Dataset`. The arrays are read-only.
  `from_arrays` validates your own arrays and creates a `Dataset`; `from_dataframe`,
  `from_huggingface` and `from_grain` read other sources, and `mixdef.load` files.

  Attributes:
    x: [N, ...] inputs: uint8 images (0..255), float32, or categorical int32, such as
      token ids. An array, or `MappedRecords` if they stay in a file.
    y: [N] int32 labels in [0, num_classes).
    num_classes: number of classes K.
    name: canonical name, printed in every report.
    auxiliary: [N] bool, the defender's auxiliary records, which are never members and
      never audited. All False by default.
    always_member: [N] bool, records that every model trains on and that are never
      audited, so that only the other records vary; see `auditing.plant`. All False by
      default.
    ids: [N] int or text, unique id of each record; by default its position 0..N-1 in
      the file it came from. Ids are kept when records are selected, so that scores of
      different selections can be joined.
    test: the official held-out file, if the set has one. Never part of N.
    standardized: whether `standardize` has transformed x by moments of its own records.
      No noise covers these moments, so training with an epsilon rejects such records.
    groups: [N] int or text, the person (or household, hospital, ...) that each record
      belongs to, or None. The records of a group are never split: all are members or
      non-members, training or test records, auxiliary or not.
    classes: K names of the classes, if the labels were text or other numbers.
    schema: how columns of a table became `x`, and which of them were fitted on the
      records, or None.
  """

  x: Any
  y: np.ndarray
  num_classes: int
  name: str = "user"
  auxiliary: Any = None
  always_member: Any = None
  ids: Any = None
  test: Dataset | None = None
  standardized: bool = False
  groups: Any = None
  classes: tuple[str, ...] | None = None
  schema: Schema | None = None

  def __post_init__(self) -> None:
    for field in ("auxiliary", "always_member"):
      if getattr(self, field) is None:
        object.__setattr__(self, field, np.zeros(len(self.x), bool))
    if self.ids is None:
      object.__setattr__(self, "ids", np.arange(len(self.x)))
    object.__setattr__(self, "x", kept_in_file(self.x))
    fields = ["y", "auxiliary", "always_member", "ids"]
    if not isinstance(self.x, MappedRecords):
      fields.append("x")
    checks = {"ids": record_names.ids, "groups": record_names.groups}
    for field in fields if self.groups is None else [*fields, "groups"]:
      check = checks.get(field, validate.numbers)
      frozen = check(getattr(self, field), field).view()
      frozen.flags.writeable = False
      object.__setattr__(self, field, frozen)
    validate.lengths(
      *(self.x, self.y),
      auxiliary=self.auxiliary,
      always_member=self.always_member,
      ids=self.ids,
      groups=self.x if self.groups is None else self.groups,
    )
    for field in ("auxiliary", "always_member"):
      validate.mask(getattr(self, field), (len(self.x),), field)
    both = np.flatnonzero(self.auxiliary & self.always_member)
    if both.size:
      raise ValueError(
        f"record {both[0]} is marked auxiliary (never a member) and always_member (a"
        " member of every model); unmark one"
      )

  def __len__(self) -> int:
    return len(self.x)

  def __repr__(self) -> str:
    test = "none" if self.test is None else f"{len(self.test):,}"
    always_member = (
      f" {int(self.always_member.sum()):,} always," if self.always_member.any() else ""
    )
    groups = "" if self.groups is None else f" {int(self.units.max()) + 1:,} groups,"
    return (
      f"Dataset({self.name}: {len(self):,} x {self.x.shape[1:]} {self.x.dtype},"
      f" {self.num_classes} classes, {int(self.auxiliary.sum()):,} auxiliary,"
      f"{always_member}{groups} test {test})"
    )

  @property
  def units(self) -> np.ndarray:
    """Number of each record's group, [N] in [0, G); its position without groups.

    >>> data = Dataset.from_arrays([[1.0], [2.0], [3.0]], [0, 1, 0], groups=[7, 5, 7])
    >>> data.units.tolist()
    [1, 0, 1]
    """
    if self.groups is None:
      return np.arange(len(self))
    return np.unique(self.groups, return_inverse=True)[1]

  @property
  def num_tokens(self) -> int | None:
    """The largest integer of the records and `test`, plus one; None for quantities."""
    if not validate.are_names(self.x):
      return None
    return int(max(part.x.max() for part in (self, self.test) if part is not None)) + 1

  @property
  def audited(self) -> np.ndarray:
    """The records on which attacks are scored, [N] bool."""
    return ~(self.auxiliary | self.always_member)

  @classmethod
  def from_arrays(
    cls,
    x: ArrayLike,
    y: ArrayLike,
    *,
    name: str = "user",
    test: Dataset | tuple[ArrayLike, ArrayLike] | None = None,
    num_classes: int | None = None,
    ids: ArrayLike | None = None,
    groups: ArrayLike | None = None,
  ) -> Self:
    """Create a `Dataset` from arrays after validating them.

    Args:
      x: [N, ...] numpy or jax array or nested list, N >= 2, all values finite. uint8
        is kept and means images of 0..255. Other integers become int32 and are treated
        as categorical, for example token ids for `nn.Embed`; functions that mix,
        perturb or crop records reject them. Pass quantities as floats, which become
        float32. Records of a `numpy.memmap` stay in their file (`MappedRecords`).
      y: [N] integers in [0, num_classes). One-hot rows [N, K], a column [N, 1], text,
        and -1 and +1 are read as such integers; `classes` keeps the names.
      name: name printed in reports.
      test: None, a `Dataset`, or a pair (x, y) of held-out records.
      num_classes: number of classes K; None means the largest label plus one.
      ids: [N] integers or text, unique ids of the records, shown in reports.
      groups: [N] integers or text, the person that each record belongs to.

    Returns:
      A `Dataset` whose `auxiliary` and `always_member` are all False.

    Raises:
      ValueError: naming the first bad value and the fix.

    >>> data = Dataset.from_arrays([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 1])
    >>> data
    Dataset(user: 3 x (2,) float32, 2 classes, 0 auxiliary, test none)
    """
    pair = isinstance(test, (tuple, list)) and len(test) == 2
    inputs = validate.inputs(x, "x")
    given = y
    y, test_y, classes = labels.read(given, test[1] if pair else None)
    if num_classes is None and np.ndim(given) == 2 and np.shape(given)[1] > 1:
      num_classes = np.shape(given)[1]  # one-hot rows
    validate.lengths(inputs, y)
    if len(inputs) < 2:
      raise ValueError(f"x has {len(inputs)} record; membership needs at least 2")
    if pair:
      test = test[0], test_y
    if isinstance(test, Dataset):
      held_out = labels.numbered_alike(test, classes, "test")
    else:
      held_out = _held_out(test, name)
    every = y if held_out is None else np.concatenate([y, held_out.y])
    if num_classes is None:
      num_classes = int(every.max()) + 1 if classes is None else len(classes)
    num_classes = validate.integer(num_classes, "num_classes", least=1)
    validate.label_range(y, num_classes, "y")
    if held_out is not None:
      validate.label_range(held_out.y, num_classes, "test y")
      validate.same_records(inputs, held_out.x)
      held_out = dataclasses.replace(held_out, num_classes=num_classes, classes=classes)
      if groups is not None and held_out.groups is not None:
        record_names.separate_groups(np.asarray(groups), held_out.groups)
    # If the held-out records were standardized, the records were as well.
    standardized = held_out is not None and held_out.standardized
    return cls(
      *(inputs, y, num_classes, name),
      ids=ids,
      test=held_out,
      standardized=standardized,
      groups=groups,
      classes=classes,
    )

  def select(self, rows: ArrayLike) -> Self:
    """Return the records of `rows`, in that order; the held-out file is kept.

    Args:
      rows: [M] integer indices in [0, N), or an [N] bool mask.

    Returns:
      A `Dataset` of M records; mapped ones are not read.

    Raises:
      ValueError: `rows` is empty, out of range or of the wrong length.
    """
    rows = validate.rows(rows, len(self))
    mapped = isinstance(self.x, MappedRecords)
    return dataclasses.replace(
      self,
      x=self.x.select(rows) if mapped else self.x[rows],
      y=self.y[rows],
      auxiliary=self.auxiliary[rows],
      always_member=self.always_member[rows],
      ids=self.ids[rows],
      groups=None if self.groups is None else self.groups[rows],
    )

  def with_auxiliary(self, count: int, *, seed: int = 0) -> Self:
    """Mark `count` random records as the defender's auxiliary records.

    Replaces any earlier marking. Auxiliary records are never members and never scored.
    They are drawn from the records that are not in every model. With groups, whole
    groups are drawn until the next one would exceed `count`.

    Args:
      count: number of auxiliary records, at least 0 and below the number of records
        that are not in every model; with groups, the number can be smaller.
      seed: non-negative int.

    Returns:
      A `Dataset` with the same records in the same order.

    Raises:
      ValueError: `count` is out of range, or below the size of the first group drawn.
    """
    count = validate.integer(count, "count")
    free = int((~self.always_member).sum())
    if not 0 <= count < free:
      kind = (
        "records that are not always members" if self.always_member.any() else "records"
      )
      raise ValueError(
        f"{count} auxiliary records of {free} {kind}; pass 0 to {free - 1}"
      )
    units = self.units
    sizes = np.bincount(units)
    order = stream(seed, "reference").permutation(len(sizes))
    kept = np.bincount(units, weights=self.always_member) > 0
    order = order[~kept[order]]
    chosen = order[np.cumsum(sizes[order]) <= count]
    if count and not chosen.size:
      raise ValueError(
        f"{count} auxiliary records are fewer than a group has; pass more"
      )
    return dataclasses.replace(self, auxiliary=np.isin(units, chosen))

  def hold_out(self, fraction: float = 0.2, *, seed: int = 0) -> Self:
    """Hold out a class-stratified random fraction as `test`.

    Use it for sets without an official test file. The number of held-out records per
    class is proportional to within one record, and the total is round(fraction * N).
    With groups, whole groups are held out: the fraction and the classes are those of
    groups, and the class of a group is that of its first record.

    Args:
      fraction: fraction of the records, or of the groups, in (0, 1).
      seed: non-negative int.

    Returns:
      A `Dataset` of the remaining records, in their original order, with `test`.

    Raises:
      ValueError: there is a test file already, rows are marked as auxiliary or always,
        or one side is empty.
    """
    if self.test is not None:
      raise ValueError(
        f"{self.name} already has test records; use them, or drop them first"
      )
    if self.auxiliary.any():
      raise ValueError("auxiliary records are already marked; call hold_out first")
    if self.always_member.any():
      raise ValueError("always-member records are already marked; call hold_out first")
    units = self.units
    first = np.unique(units, return_index=True)[1]
    total, kind = len(first), "records" if self.groups is None else "groups"
    count = round(validate.real(fraction, "fraction") * total)
    if not 0 < count < total:
      raise ValueError(
        f"fraction={fraction} holds out {count} of {total} {kind};"
        " both sides need at least one"
      )
    shuffled = stream(seed, "split").permutation(total)
    by_class = shuffled[np.argsort(self.y[first][shuffled], kind="stable")]
    # Equally spaced positions in the list sorted by class give a stratified sample.
    evenly = (2 * np.arange(count) + 1) * total // (2 * count)
    held = np.isin(units, by_class[evenly])
    return dataclasses.replace(self.select(~held), test=self.select(held))

  def standardize(self, moments_of: Dataset | None = None) -> Self:
    """Subtract the per-feature mean and divide by the clipped standard deviation.

    x' = (x - mean) / max(std, 1), on the raw scale (0..255 for uint8). Mean and std are
    computed over this file's N records, or over public records, and also applied to
    `test`.

    Args:
      moments_of: public records of the same form, from which mean and std are computed;
        `data.select(data.auxiliary)` if the defender's auxiliary records are public.

    Returns:
      A `Dataset` with float32 `x`; without `moments_of` it is marked `standardized`.

    Raises:
      ValueError: for integers other than uint8, which are names and no quantities, and
        for `moments_of` of another form.

    Guarantee: none. Without `moments_of` mean and spread come from the file's own
      records without noise: DP accounting does not cover them, so training with an
      epsilon refuses the records, and records outside a model's training set influence
      its inputs.
    Deviation: one sibling repository standardizes train and test apart; the statistics
      of the training file serve both here. On inputs in [0, 1] the clip at 1 leaves
      only the centring.
    Reference: Salem et al., "ML-Leaks", 2019, arXiv 1806.01246 (its preprocessing).

    >>> data = Dataset.from_arrays([[0.0, 0.0], [8.0, 1.0]], [0, 1])
    >>> data.standardize().x.tolist()
    [[-1.0, -0.5], [1.0, 0.5]]
    """
    validate.quantities(self.x, "standardize")
    validate.in_memory(self.x, "standardize")
    source = self.x
    if moments_of is not None:
      validate.same_records(self.x, moments_of.x)
      source = moments_of.x
    mean = source.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = source.astype(np.float32) - mean
    variance = np.einsum("n...,n...->...", centred, centred, dtype=np.float64)
    spread = np.sqrt(variance / len(source)).astype(np.float32)
    scale = np.maximum(spread, np.float32(1))

    def scaled(data):
      return dataclasses.replace(
        data,
        x=(data.x.astype(np.float32) - mean) / scale,
        standardized=data.standardized or moments_of is None,
        schema=data.schema and dataclasses.replace(data.schema, rescaled=True),
      )

    test = None if self.test is None else scaled(self.test)
    return dataclasses.replace(scaled(self), test=test)


def _held_out(test: Any, name: str) -> Dataset | None:
  if test is None:
    return None
  if not isinstance(test, (tuple, list)) or len(test) != 2:
    raise ValueError("test is not a pair of arrays; pass test=(x, y), or a Dataset")
  x, y = test
  x, y = validate.inputs(x, "test x"), validate.labels(y, "test y")
  validate.lengths(x, y)
  return Dataset(x, y, int(y.max()) + 1, name)


def to_float(x: Any) -> Any:
  """Convert inputs to the form that networks read; the only function to scale images.

  Args:
    x: [...] numpy or jax array: uint8 (0..255), float, or integers such as token ids.

  Returns:
    float32 x / 255 for uint8, else `x` itself. The type is static, so the function can
    be traced.

  >>> to_float(np.array([0, 51, 255], np.uint8)).tolist()
  [0.0, 0.20000000298023224, 1.0]
  """
  if x.dtype == np.uint8:
    return x.astype(np.float32) / np.float32(255)
  return x

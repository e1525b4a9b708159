"""Reader of Texas-100 and Purchase-100, binary tables with 100 classes."""

import io
import pathlib
import tarfile
import warnings
from typing import IO, NamedTuple

import numpy as np

from mixdef.core import files as core_files
from mixdef.core import validate
from mixdef.core.files import is_clutter
from mixdef.core.reading import Damaged
from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

_CLASSES = 100


class Source(NamedTuple):
  """The form in which the authors publish a set.

  Attributes:
    archive: name of their archive.
    folder: folder of the text files in the archive.
    texts: the text files; in their concatenation by columns, the first column is the
      label.
    widths: the known numbers of features of the set.
    num_records: number of records of the set.
  """

  archive: str
  folder: str
  texts: tuple[str, ...]
  widths: tuple[int, ...]
  num_records: int


SOURCES = {
  "texas100": Source(
    "dataset_texas.tgz", "texas/100", ("labels", "feats"), (6168, 6169), 67_330
  ),
  "purchase100": Source(
    "dataset_purchase.tgz", "", ("dataset_purchase",), (600,), 197_324
  ),
}


def read(
  data_dir: pathlib.Path, *, name: str, num_records: int | None = None
) -> Dataset:
  """Return Texas-100 or Purchase-100 from an npz file or the authors' text files.

  Reads the first of these that exists, and logs its number of features:
  `name.npz` with `features` and `labels`, one-hot [N, 100] or integers; the text files
  of the archive, unpacked; the archive itself. Integer labels run from 1 to 100, as in
  the text files, or from 0 to 99 if a label 0 occurs.

  Args:
    data_dir: folder with the npz file, the archive or its folders; data_dir/name is
      also searched.
    name: canonical name, a key of `SOURCES`.
    num_records: number of records of the set; None means the official number.

  Returns:
    A `Dataset` of float32 zeros and ones without a test file.

  Raises:
    FileNotFoundError: nothing is there, or one text file only.
    ValueError: a file is damaged or of another set; the line names it.

  Deviation: Texas-100 has 6,169 features in most codes and 6,168 in one; both load.

  Reference: Shokri, Stronati, Song, Shmatikov, "Membership Inference Attacks Against
    Machine Learning Models", 2017, arXiv 1610.05820.
  """
  source = SOURCES[name]
  if found := files.find(data_dir, (name, ""), (f"{name}.npz",)):
    place = found[0]
    arrays = files.read_npz(place, ("features", "labels"))
    x, y = arrays["features"], arrays["labels"]
  elif found := files.find(data_dir, (name, source.folder), source.texts):
    place = found[0].parent
    x, y = _join(place, [_read_text(path) for path in found])
  elif found := files.find(data_dir, (name, ""), (source.archive,)):
    place = found[0]
    x, y = _join(place, _unpack(place, source))
  else:
    raise FileNotFoundError(
      f"{name}: {data_dir / name} needs {name}.npz (arrays features, labels) or"
      f" {source.archive} or its {' and '.join(source.texts)}; put one there, or set"
      f" data_dir or MIXDEF_DATA ({files.contents(data_dir / name)})"
    )
  _check_features(x, place, name)
  counts.check_count(place, len(x), num_records or source.num_records, "records")
  with files.named(place):
    y = _labels(y)
  counts.check_classes(place, y, name, _CLASSES)
  return counts.dataset(place, x.astype(np.float32), y, name=name, num_classes=_CLASSES)


def _unpack(archive: pathlib.Path, source: Source) -> list[np.ndarray]:
  raw = io.BytesIO(files.read_bytes(archive))
  with files.decoding(archive), tarfile.open(fileobj=raw) as tar:
    held = {
      pathlib.PurePosixPath(member.name): member
      for member in tar.getmembers()
      if not is_clutter(member.name)
    }
    while tar.fileobj and tar.fileobj.read(1 << 20):
      pass  # read to the end, where gzip verifies its checksum
    tables = []
    for text in source.texts:
      member = pathlib.PurePosixPath(source.folder) / text
      if member not in held:
        names = ", ".join(map(str, list(held)[:5])) or "nothing"
        fix = f"put the authors' {source.archive} there"
        raise files.damaged(archive, f"it contains {names}, not {member}", fix)
      tables.append(_parse(archive / member, tar.extractfile(held[member])))
    return tables


def _read_text(path: pathlib.Path) -> np.ndarray:
  with files.decoding(path), core_files.opened(path) as text:
    return _parse(path, text)


def _parse(path: pathlib.Path, text: IO[bytes] | None) -> np.ndarray:
  if text is None:
    raise Damaged(f"{path} is a folder, not a text file; put the file there")
  with files.decoding(path), warnings.catch_warnings():
    warnings.simplefilter("error")  # an empty file causes only a warning
    return np.loadtxt(text, np.uint8, delimiter=",", ndmin=2, encoding="utf-8-sig")


def _join(
  place: pathlib.Path, tables: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  if len(lengths := {len(table) for table in tables}) > 1:
    raise ValueError(
      f"{place} is damaged: its files have {' and '.join(map(str, sorted(lengths)))} "
      "rows; put both files of the same download there"
    )
  table = np.concatenate(tables, axis=1)
  return table[:, 1:], table[:, 0]


def _check_features(x: np.ndarray, place: pathlib.Path, name: str) -> None:
  widths = SOURCES[name].widths
  if x.ndim != 2 or not len(x) or x.shape[1] not in widths:
    raise ValueError(
      f"{place} is not {name}: its features have shape {x.shape}, not [records,"
      f" {' or '.join(map(str, widths))}]"
    )
  if x.dtype.kind not in "buif":
    raise ValueError(
      f"{place} is not {name}: its features have type {x.dtype}, but must be numeric "
      "zeros and ones"
    )
  if (other := (x != 0) & (x != 1)).any():
    row, column = np.argwhere(other)[0]
    raise ValueError(
      f"{place} is not {name}: feature {column} of record {row} is {x[row, column]},"
      " neither 0 nor 1"
    )


def _labels(y: np.ndarray) -> np.ndarray:
  if y.ndim == 2:
    one_hot = ((y == 0) | (y == 1)).all() and ((y == 1).sum(1) == 1).all()
    if y.shape[1] != _CLASSES or not one_hot:
      raise ValueError(f"labels {y.shape} are not one-hot rows of {_CLASSES} classes")
    return y.argmax(1)
  y = validate.labels(y, "labels")
  first = 0 if (y == 0).any() else 1
  if y.max(initial=0) >= first + _CLASSES:
    raise ValueError(
      f"labels[{y.argmax()}] is {y.max()}; labels run from {first} to"
      f" {first + _CLASSES - 1}"
    )
  return y - first

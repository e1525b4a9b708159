"""Readers of pictures: folders with a subfolder for each class, and encoded columns."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mixdef.core import extras
from mixdef.core.reading import Damaged
from mixdef.data import files
from mixdef.data.dataset import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def dataset(folder: pathlib.Path, *, name: str, test: pathlib.Path | None) -> Dataset:
  """Return the pictures of a folder, whose sorted subfolders are the classes.

  Args:
    folder: folder with one subfolder per class; all pictures have one size.
    name: name of the data set.
    test: a folder of held-out pictures with the same subfolders, or None.

  Returns:
    A `Dataset` of uint8 [N, H, W, C], C = 1 if all pictures are gray, else 3. The ids
    are the paths of the files in the folder.

  Raises:
    ValueError: naming the file or folder and the fix.
  """
  extras.require("PIL")
  classes = tuple(path.name for path in files.subfolders(folder))
  if len(classes) < 2:
    raise ValueError(
      f"{folder} has {len(classes)} subfolders; pass a folder of pictures with a "
      f"subfolder for each of at least two classes ({files.contents(folder)})"
    )
  parts = [_read(folder, classes), *([_read(test, classes)] if test else [])]
  gray = all(_is_gray(x) for x, _, _ in parts)
  (x, y, ids), *held_out = [(x[..., :1] if gray else x, y, i) for x, y, i in parts]
  count = len(classes)
  others = [Dataset(x, y, count, name, ids=ids) for x, y, ids in held_out]
  with files.named(folder):
    data = Dataset.from_arrays(
      x,
      y,
      name=name,
      num_classes=count,
      ids=ids,
      test=others[0] if others else None,
    )
  known: dict[str, Any] = {"classes": classes}
  if data.test is not None:
    known["test"] = dataclasses.replace(data.test, **known)
  return dataclasses.replace(data, **known)


def of_bytes(values: Any, where: str) -> np.ndarray:
  """Return the pictures of a column of encoded files, uint8 [N, H, W, C].

  Args:
    values: pyarrow array of bytes, or of structs with the field `bytes`.
    where: the column, for error messages.

  Raises:
    ValueError: naming the row and the fix.
  """
  extras.require("PIL")
  entries: list[Any] = [
    entry.get("bytes") if isinstance(entry, dict) else entry
    for entry in values.to_pylist()
  ]
  if None in entries:
    raise ValueError(
      f"{where} has no bytes in row {entries.index(None)}; embed the files"
    )
  x = _stacked(
    (f"{where}: row {i}", _decoded(entry, f"{where}: row {i}"))
    for i, entry in enumerate(entries)
  )
  return x[..., :1] if _is_gray(x) else x


def _decoded(content: bytes, place: str) -> np.ndarray:
  try:
    return files.decode_picture(io.BytesIO(content), place, "RGB")
  except Damaged:
    raise
  except Exception as error:  # decoders raise many types of errors
    reason = files.first_line(error)
    raise ValueError(f"{place} is not a picture: {reason}; remove such rows") from error


def _read(
  folder: pathlib.Path, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  found = {path.name for path in files.subfolders(folder)}
  if unknown := sorted(found - set(classes)):
    raise ValueError(
      f"{folder} has a subfolder {unknown[0]!r}, which is not a class of the training "
      f"pictures, {', '.join(classes)!s:.80}"
    )
  paths, y = [], []
  for number, name in enumerate(classes):
    pictures = [
      path for path in files.entries(folder / name) if path.suffix.lower() in SUFFIXES
    ]
    if not pictures and name in found:
      raise ValueError(
        f"{folder / name} holds no {', '.join(SUFFIXES[:3])} files; pass a folder of "
        f"which every subfolder has pictures ({files.contents(folder / name)})"
      )
    paths += pictures
    y += [number] * len(pictures)
  x = _stacked((str(path), files.read_picture(path, "RGB")) for path in paths)
  ids = np.array([path.relative_to(folder).as_posix() for path in paths])
  return x, np.array(y, np.int32), ids


def _stacked(pictures: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
  """Return pictures as one array, checked to be of one size."""
  first, stack = "", []
  for place, pixels in pictures:
    first = first or place
    if stack and pixels.shape != stack[0].shape:
      sizes = [f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, stack[0].shape)]
      raise ValueError(
        f"{place} has {sizes[0]} pixels and {first} has {sizes[1]}; resize all to one "
        "size"
      )
    stack.append(pixels)
  return np.stack(stack)


def _is_gray(x: np.ndarray) -> bool:
  return bool((x[..., :1] == x).all())

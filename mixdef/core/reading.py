"""Read npz and JSON files; any defect raises a one-line error.

Damaged bytes reach the readers of zip, deflate, array headers and JSON, and each of
these raises different errors. This module converts all of them to `Damaged`, which
names the file, the problem and the fix. Nothing is unpickled, and no array is allocated
that is larger than the file could hold.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import pathlib
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy

from mixdef.core import files
from mixdef.core.files import path_of
from mixdef.core.mapped import MappedRecords, blocks_of

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DEFLATES = 1032  # maximal expansion of deflate, bytes per byte
_BLOCK = 2**20  # bytes that are decompressed at once
_LENGTHS = 26  # place of the lengths of name and extra field in a header of a zip
_SEAL = "checksum"
_LONGEST = 200  # maximal length of another library's message, in characters


class Damaged(ValueError):
  """A file that cannot be read, or whose content is not as expected."""


def read_npz(
  path: Any,
  *,
  fix: str,
  what: str = "is not an npz of plain arrays",
  names: Sequence[str] | None = None,
  mapped_from: float = math.inf,
) -> dict[str, np.ndarray]:
  """Read the arrays of an npz file.

  Args:
    path: path of the file.
    fix: what to do if the file is missing or damaged, for the error message.
    what: description of a damaged file, for the error message.
    names: the arrays to read, without fetching the others from a bucket; default all.
    mapped_from: bytes from which an array is not read but memory-mapped, if it is not
      compressed and the file is on this machine.

  Returns:
    The arrays by name.

  Raises:
    Damaged: if it is not an npz file of plain arrays, or its checksums do not match.
    FileNotFoundError: if the file does not exist.
    OSError: if the system prevents reading it.
  """
  path = path_of(path)
  with (
    _one_line(path, what, fix),
    _to_read(path, names) as file,
    _archive(file) as archive,
  ):
    members = archive.infolist()
    _refuse_claims(members, file.seek(0, io.SEEK_END))
    found = {info.filename.removesuffix(".npy"): info for info in members}
    for name in names or ():
      if name not in found:
        raise ValueError(f"it has no array {name!r}")
    return {
      name: _mapped(path, archive, found[name])
      if _is_mappable(path, found[name], mapped_from)
      else _read(archive, found[name])
      for name in names or found
    }


def read_npy(path: Any, *, fix: str, mapped_from: float) -> np.ndarray:
  """Read the array of an npy file, or memory-map it.

  Args:
    path: path of the file, on this machine.
    fix: what to do if the file is missing or damaged, for the error message.
    mapped_from: bytes from which the array is memory-mapped.

  Raises:
    Damaged: if it is not an npy file of a plain array.
    FileNotFoundError: if the file does not exist.
    OSError: if the system prevents reading it.
  """
  path = path_of(path)
  with _one_line(path, "is not an npy file of a plain array", fix):
    if files.on_bucket(path):
      raise ValueError("it is on a bucket, and must be on this machine")
    mode = "r" if path.stat().st_size >= mapped_from else None
    array = np.load(path, mmap_mode=mode, allow_pickle=False)
    if not isinstance(array, np.ndarray):
      raise ValueError("it is an archive")
    return array


def _archive(file):
  try:
    return zipfile.ZipFile(file)
  except zipfile.BadZipFile:
    file.seek(0)
    if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
      raise ValueError("it is a single array, written by numpy.save") from None
    raise


def _to_read(path, names=None) -> Any:
  whole = files.on_bucket(path) and names is None  # one request fetches all
  return io.BytesIO(files.read_bytes(path)) if whole else files.opened(path)


def read_json(
  path: Any,
  *,
  fix: str,
  form: Any = dict,
  sealed: bool = False,
  what: str = "is damaged",
) -> Any:
  """Read a JSON file.

  Args:
    path: path of the file.
    fix: what to do if the file is missing or damaged, for the error message.
    form: required form of the value; see `check_form`.
    sealed: whether the file was written with the checksum that `seal` adds.
    what: description of a damaged file, for the error message.

  Returns:
    The value, without the checksum.

  Raises:
    Damaged: if it is not JSON, has another form, or its checksum does not match.
    FileNotFoundError: if the file does not exist.
    OSError: if the system prevents reading it.
  """
  path = path_of(path)
  with _one_line(path, what, fix):
    value = parse_json(files.read_bytes(path), form)
    return unsealed(value) if sealed else value


def digest(*arrays) -> str:
  """Hash the content, shape and type of arrays to 16 hexadecimal digits.

  Mapped records are read in blocks, and have the digest of the array in memory.
  """
  state = hashlib.sha256()
  for array in arrays:
    array = array if isinstance(array, MappedRecords) else np.asarray(array)
    state.update(f"{array.dtype}{array.shape}".encode())
    for block in blocks_of(array):
      state.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
  return state.hexdigest()[:16]


def digest_file(path: Any, *, fix: str) -> str:
  """Hash the content of a file to 16 hexadecimal digits.

  Args:
    path: path of the file.
    fix: what to do if the file is missing, for the error message.

  Raises:
    FileNotFoundError: if the file does not exist.
    Damaged: if it is not a regular file.
    OSError: if the system prevents reading it.
  """
  path = path_of(path)
  with _one_line(path, "cannot be read", fix), _to_read(path) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_quoted(text: str) -> dict[str, str]:
  """Hash the files and folders that a text quotes, by their names.

  Such files are the weights in `start_from('weights.npz')`.
  """
  found: dict[str, str] = {}
  for _, name in re.findall(r"""(['"])(.+?)\1""", text):
    path = files.path_of(name)
    if not files.exists(path):
      continue  # other text, or a file that the part itself misses
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    marks = [digest_file(one, fix="it is read") for one in inside if one.is_file()]
    key = f"content of {path.name}"
    found[key] = digest(found.get(key, ""), *marks)
  return found


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
  """Add a checksum to a JSON object, which reveals later changes."""
  words = json.dumps(value, sort_keys=True)
  return {**value, _SEAL: hashlib.sha256(words.encode()).hexdigest()[:16]}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
  """Verify and remove the checksum that `seal` added to a JSON object.

  Raises:
    ValueError: if it was changed afterwards.
  """
  rest = {name: item for name, item in value.items() if name != _SEAL}
  if seal(rest) != value:
    raise ValueError("it was changed after it was written")
  return rest


def parse_json(text: bytes, form: Any = dict, *, finite: bool = True) -> Any:
  """Parse UTF-8 encoded JSON.

  Args:
    text: the JSON.
    form: required form of the value; see `check_form`.
    finite: whether to reject NaN and infinities, which other readers do not support.

  Raises:
    ValueError: if it is not JSON, or has another form.
  """
  number = _finite if finite else float
  try:
    value = json.loads(
      text.decode("utf-8-sig"), parse_constant=number, parse_float=number
    )
  except RecursionError:
    raise ValueError("it is nested too deeply") from None
  check_form(value, form)
  return value


def check_form(value: Any, form: Any, place: str = "it") -> None:
  """Raise unless a JSON value has the given form.

  Args:
    value: the parsed value.
    form: a type or a tuple of types; `[form]` for a list of values of that form;
      `{name: form}` for an object with at least these names. A bool is not a number.
    place: name of the value in the error message.

  Raises:
    ValueError: the message names the first difference.

  >>> check_form({"sizes": [1, 2], "more": None}, {"sizes": [int]})
  >>> check_form({"sizes": [1, "2"]}, {"sizes": [int]})
  Traceback (most recent call last):
  ValueError: sizes[1] is '2', not int
  """
  if isinstance(form, dict | list):
    kinds: tuple[type, ...] = (type(form),)
  else:
    kinds = form if isinstance(form, tuple) else (form,)
  if not _is_of(value, kinds):
    named = ("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{place} is {_shortened(repr(value))}, not {' or '.join(named)}")
  if isinstance(form, list):
    (inner,) = form
    for i, item in enumerate(value):
      check_form(item, inner, f"{place}[{i}]")
  elif isinstance(form, dict):
    for name, inner in form.items():
      if name not in value:
        raise ValueError(f"{place} has no {name!r}")
      check_form(value[name], inner, name if place == "it" else f"{place}.{name}")


def _is_of(value, kinds) -> bool:
  if isinstance(value, bool):
    return bool in kinds
  return isinstance(value, (*kinds, int) if float in kinds else kinds)


@contextlib.contextmanager
def _one_line(path: pathlib.Path, what: str, fix: str) -> Iterator[None]:
  """Convert any error while reading into a one-line error about the file."""
  try:
    if not files.on_bucket(path) and path.exists() and not path.is_file():
      raise ValueError("it is not a regular file")
    with warnings.catch_warnings():
      # Ignore warnings about headers that look like those of Python 2.
      warnings.simplefilter("ignore")
      yield
  except (FileNotFoundError, NotADirectoryError):
    raise FileNotFoundError(f"{path} is missing; {fix}") from None
  except Exception as error:
    # EINVAL results from a seek to an offset read from damaged bytes. Other errors come
    # from the system, and the file may be intact.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
      raise OSError(error.errno, error.strerror, str(path)) from None
    reason = _shortened(str(error) or type(error).__name__)
    raise Damaged(f"{path} {what}: {reason}; {fix}") from None


def _refuse_claims(members, size) -> None:
  """Raise if archive members claim more data than a file of this size can hold."""
  largest = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATES}
  if len({info.filename for info in members}) < len(members):
    raise ValueError("it holds two arrays with the same name")
  for info in members:
    if info.compress_type not in largest:
      raise ValueError(f"{info.filename!r} uses a compression that numpy never writes")
    if info.file_size > largest[info.compress_type] * info.compress_size:
      raise ValueError(f"{info.filename!r} claims more bytes than the file has")
  if sum(info.compress_size for info in members) > size:
    raise ValueError("its entries claim more bytes than the file has")


def _read(archive, info) -> np.ndarray:
  """Read one member of the archive, to its end, where `zipfile` verifies a checksum."""
  with archive.open(info) as file:
    shape, columns_first, dtype = _header(file, info)
    content = bytearray(info.file_size - file.tell())  # the array can be written to
    view, start = memoryview(content), 0
    while count := file.readinto(view[start : start + _BLOCK]):
      start += count
    if start < len(content):
      raise ValueError(f"{info.filename!r} is cut short")
  return np.ndarray(shape, dtype, content, order="F" if columns_first else "C")


def _header(file, info):
  """Read the header of an array: its shape, whether columns come first, its type."""
  version = npy.read_magic(file)
  if version not in _HEADERS:
    raise ValueError(f"{info.filename!r} has the unknown version {version}")
  shape, columns_first, dtype = _HEADERS[version](file)
  if dtype.hasobject:
    raise ValueError(f"{info.filename!r} holds Python objects, not numbers")
  if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
    raise ValueError(f"{info.filename!r} is not as long as its header says")
  return shape, columns_first, dtype


def _is_mappable(path, info, mapped_from) -> bool:
  stored = info.compress_type == zipfile.ZIP_STORED
  return stored and info.file_size >= mapped_from and not files.on_bucket(path)


def _mapped(path, archive, info) -> np.ndarray:
  """Map one member of the archive, after reading it once to verify its checksum."""
  with archive.open(info) as file:
    shape, columns_first, dtype = _header(file, info)
    start = file.tell()
    while file.read(_BLOCK):
      continue
  with path.open("rb") as file:
    file.seek(info.header_offset + _LENGTHS)
    start += sum(struct.unpack("<HH", file.read(4))) + file.tell()
  order = "F" if columns_first else "C"
  return np.memmap(path, dtype, "r", offset=start, shape=shape, order=order)


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"it has {text}, which is not a number")
  return value


def _shortened(text: str) -> str:
  line = text.splitlines()[0] if text else text
  return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."

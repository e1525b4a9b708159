"""User-supplied paths, on this machine and on buckets, and atomic file writes.

A path on a bucket is a `UPath` of universal_pathlib, which has the methods of
`pathlib.Path` and supports every protocol of fsspec. A bucket has no folders. A file is
one object, written by one request, so that it either exists completely or not at all.
"""

import contextlib
import csv
import errno
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

from mixdef.core import extras

Result = TypeVar("Result")

_CLUTTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_CUT_URL = re.compile(r"(s3a?|gcs?|gs|memory|file|https?|abfs|az):/", re.IGNORECASE)
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_RAISING = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")
_BUFFER = 2**16  # bytes fetched by one request, if only parts of a file are read


def path_of(path: Any, name: str = "path") -> pathlib.Path:
  """Return a user-supplied path, on this machine or on a bucket.

  Args:
    path: path of a file or folder, as text or an object. `~` is expanded; `s3://`,
      `gs://` and every other protocol of fsspec is a bucket.
    name: name of the argument, for the error message.

  Returns:
    A `pathlib.Path`, or a `UPath`, which has the same methods; see `on_bucket`.

  Raises:
    ValueError: if it is empty, starts with the name of an unknown user, or names a
      protocol that is unknown or whose package is not installed.
    TypeError: if it is not a path.

  >>> path_of("runs/digits").as_posix()
  'runs/digits'
  """
  if on_bucket(path):
    return _bucket(str(path), name, path.storage_options)
  if not isinstance(path, str | os.PathLike):
    raise TypeError(f"{name}={path!r} must be a path, as text or pathlib.Path")
  text = os.fspath(path)
  if not text:
    raise ValueError(f"{name} is empty: pass the path of a file or folder, or omit it")
  if isinstance(text, str) and text.startswith("file://"):
    path = text.removeprefix("file://")
  elif isinstance(text, str) and _URL.match(text):
    return _bucket(text, name)
  elif isinstance(text, str) and _CUT_URL.match(text):
    raise ValueError(
      f"{name}={text!r}: a slash is missing: pass the URL as text, as pathlib.Path "
      "cuts it, or ./ before the name of a folder of this machine"
    )
  if "\0" in str(text):
    raise ValueError(f"{name}={text!r}: no path can have a null character")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise ValueError(f"{name}={str(path)!r}: {error}") from None


def _bucket(text: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
  """Return a path on a bucket; errors are one line, which names a missing package."""
  import fsspec
  import upath

  protocol, _, place = text.partition("://")
  protocol = protocol.lower()
  # A bucket keeps empty parts in the names of its objects; file systems ignore them.
  text = f"{protocol}://{re.sub('/{2,}', '/', place)}"
  options, given = dict(options or {}), f"{name}={text!r}"
  try:
    if driver := _DRIVERS.get(protocol):
      extras.require(driver)
      # Other hosts write into the same folder, so listings must not be cached.
      options["use_listings_cache"] = False
    fsspec.get_filesystem_class(protocol)
  except ImportError as error:
    raise ValueError(f"{given}: {error}") from None
  except ValueError:
    raise ValueError(
      f"{given}: {protocol}:// is unknown: pass a path of this machine, or s3://, "
      "gs:// or another protocol of fsspec"
    ) from None
  return upath.UPath(text, **options)


def on_bucket(path: Any) -> bool:
  """Return whether a path is a `UPath`, which is a path on a bucket."""
  return hasattr(path, "storage_options") and not isinstance(path, pathlib.Path)


def of_a_bucket(error: Exception) -> bool:
  """Return whether an error comes from the driver of a bucket."""
  return type(error).__module__.partition(".")[0] in _RAISING


def _request(
  path: Any, call: Callable[..., Result], *args: Any, **options: Any
) -> Result:
  """Make a request to a bucket; every failure is an `OSError`.

  Drivers raise their own exceptions if there is no network or no credentials. These do
  not mean that the file is damaged.
  """
  try:
    return call(*args, **options)
  except (FileNotFoundError, FileExistsError):
    raise
  except Exception as error:
    code = errno.EACCES if isinstance(error, PermissionError) else errno.EIO
    named = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    reason = " ".join(f"{named}{error}".split())
    raise OSError(code, reason, str(path)) from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a file that takes the place of `path` once it is fully written.

  On this machine it is a temporary file that is renamed; for a bucket it is a buffer in
  memory that one request writes. Missing folders are created.

  Args:
    path: destination; an existing file is kept until the new one is complete.

  Yields:
    The file, open for writing bytes.

  Raises:
    OSError: if `path` cannot be written or the disk is full; no partial file remains.
  """
  if on_bucket(path):
    memory = io.BytesIO()
    yield memory
    _put(path, memory.getvalue())
    return
  fresh = path.with_name(f"{path.name}.new")
  make_folder(path.parent)
  try:
    try:
      with fresh.open("wb") as file:
        yield file
      os.replace(fresh, path)
    finally:
      fresh.unlink(missing_ok=True)
  except OSError as error:
    if error.filename not in (None, str(fresh)):
      raise  # the error concerns another file, which the caller was reading
    raise _unwritten(path, error) from None


def make_folder(folder: pathlib.Path) -> None:
  """Create a folder of this machine, if it does not exist.

  Raises:
    OSError: if it cannot be created; the message says what to do.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    reason = f"{error.strerror}: the folder cannot be created; choose another"
    raise OSError(error.errno, reason, str(folder)) from None


def _put(path: Any, content: bytes, **options: Any) -> None:
  try:
    _request(path, path.fs.pipe_file, path.path, content, **options)
  except FileExistsError:
    raise
  except OSError as error:
    raise _unwritten(path, error) from None


def _unwritten(path: Any, error: OSError) -> OSError:
  reason = f"{error.strerror or error}: nothing was changed there, so fix the cause and"
  return OSError(error.errno or errno.EIO, f"{reason} run again", str(path))


def created(path: Any, content: bytes) -> bool:
  """Create a file on a bucket; return False if it already exists.

  If several processes try at once, exactly one succeeds, as S3 and GCS guarantee.
  """
  try:
    _put(path, content, mode="create")
  except FileExistsError:
    return False
  return True


def remove(path: Any) -> None:
  """Remove a file, or a folder with its content, if it exists."""
  if on_bucket(path):
    with contextlib.suppress(FileNotFoundError):
      _request(path, path.fs.rm, path.path, recursive=True)
  elif path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def listed(folder: Any, pattern: str) -> list[Any]:
  """Return the sorted paths in a folder that match a pattern, without clutter."""
  if on_bucket(folder):
    found = _request(folder, lambda: list(folder.glob(pattern)))
  else:
    found = folder.glob(pattern)
  return sorted((path for path in found if not is_clutter(path)), key=str)


def exists(path: Any) -> bool:
  """Return whether a file or folder exists."""
  return _request(path, path.exists) if on_bucket(path) else path.exists()


def read_bytes(path: Any) -> bytes:
  """Return the bytes of a file.

  Raises:
    OSError: if it cannot be read, for example because it does not exist.
  """
  if on_bucket(path):
    return _request(path, path.fs.cat_file, path.path)
  return path.read_bytes()


def opened(path: Any) -> IO[bytes]:
  """Open a file to read parts of it; only those are fetched from a bucket."""
  if on_bucket(path):
    return io.BufferedReader(_Parts(path), _BUFFER)
  return path.open("rb")


class _Parts(io.RawIOBase):
  """A file on a bucket; only the parts that are read are fetched.

  The end is fetched first, because archives store their table of contents there.
  """

  def __init__(self, path: Any):
    self._path, self._at = path, 0
    self._size = _request(path, path.fs.size, path.path)
    self._last = max(0, self._size - _BUFFER)
    self._end = self._fetched(self._last, self._size) if self._size else b""

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
    if start + offset < 0:
      raise OSError(errno.EINVAL, "seek before the start")
    self._at = start + offset
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    end = min(self._at + len(buffer), self._size)
    if end <= self._at:
      return 0
    if self._at >= self._last:
      part = self._end[self._at - self._last : end - self._last]
    else:
      part = self._fetched(self._at, end)
    buffer[: len(part)] = part
    self._at += len(part)
    return len(part)

  def _fetched(self, start: int, end: int) -> bytes:
    fetch = self._path.fs.cat_file
    return _request(self._path, fetch, self._path.path, start=start, end=end)


def write_text(path: pathlib.Path, text: str) -> None:
  """Write text as UTF-8; see `whole_file`."""
  with whole_file(path) as file:
    file.write(text.encode())


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Write a table with a header; values missing from a row are left empty."""
  text = io.StringIO(newline="")
  table = csv.DictWriter(text, columns)
  table.writeheader()
  table.writerows(rows)
  write_text(path, text.getvalue())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Write JSON; see `whole_file`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def save_figure(figure: Any, path: Any) -> None:
  """Save a matplotlib figure; the file's suffix selects the format."""
  path = path_of(path)
  with whole_file(path) as file:
    figure.savefig(file, format=path.suffix[1:], dpi=150)


def is_clutter(path: Any) -> bool:
  """Return whether a file or folder was created by the operating system, without data.

  Args:
    path: path of a file or folder; only its name matters.

  Returns:
    True for hidden files, such as macOS's `.DS_Store` and `._name`, for its folder
    `__MACOSX`, and for Windows' `Thumbs.db` and `desktop.ini`.

  >>> [name for name in ("._1.jpg", "Thumbs.db", "1.jpg") if not is_clutter(name)]
  ['1.jpg']
  """
  name = pathlib.PurePath(str(path)).name
  return name.startswith(".") or name.lower() in _CLUTTER

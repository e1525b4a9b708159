"""Reader of the idx files of MNIST and Fashion-MNIST."""

import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mixdef.core import validate
from mixdef.data import counts, files
from mixdef.data.dataset import Dataset

NAMES = (
  "train-images-idx3-ubyte.gz",
  "train-labels-idx1-ubyte.gz",
  "t10k-images-idx3-ubyte.gz",
  "t10k-labels-idx1-ubyte.gz",
)
# Many sets use the same file names. The SHA-256 of the decompressed content
# distinguishes them.
DIGESTS = {
  "mnist": (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
  ),
  "fashion_mnist": (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
  ),
}


def read(
  data_dir: pathlib.Path,
  name: str,
  *,
  digests: Mapping[str, Sequence[str]] = DIGESTS,
) -> Dataset | None:
  """Return the `Dataset` of the four idx files, or None if none of them exists.

  Args:
    data_dir: the files are in data_dir/name or in data_dir itself.
    name: canonical name of the set.
    digests: for each set, the SHA-256 of the content of the files in `NAMES`; if
      `name` is missing, any content is accepted.

  Raises:
    FileNotFoundError: only some of the files are there.
    ValueError: a file is damaged or of another set; the line names it.
  """
  paths = files.find(data_dir, (name, ""), NAMES)
  if paths is None:
    return None
  x, y, test_x, test_y = (read_idx(path) for path in paths)
  for images, labels, path in ((x, y, paths[1]), (test_x, test_y, paths[3])):
    if len(images) != len(labels):
      raise ValueError(
        f"{path} holds {len(labels)} labels for {len(images)} images; put the four"
        f" official files of {name} there"
      )
    validate.label_range(labels, 10, str(path))
  for i, (path, content) in enumerate(zip(paths, (x, y, test_x, test_y), strict=True)):
    _check_digest(path, content, name, i, digests)
  return counts.dataset(
    *(paths[0].parent, x[..., None], y),
    name=name,
    num_classes=10,
    test=(test_x[..., None], test_y),
  )


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Return the uint8 array of one idx file, compressed or not.

  The header is two zero bytes, the type (8 = unsigned byte), the number of axes (3 in
  a file of images, 1 in one of labels), and each axis as a big-endian int32.
  """
  raw = files.decompressed(path)
  axes = 3 if "idx3" in path.name.lower() else 1
  start = 4 + 4 * axes
  if raw[:4] != bytes([0, 0, 8, axes]) or len(raw) < start:
    raise files.damaged(path, f"it starts with {raw[:4].hex()}, not 0000080{axes}")
  shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">i4"))
  if min(shape) < 1:
    raise files.damaged(path, f"shape {shape} has no records")
  expected = math.prod(shape)
  if len(raw) - start != expected:
    raise files.damaged(
      path, f"shape {shape} needs {expected} bytes, not {len(raw) - start}"
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _check_digest(
  path: pathlib.Path,
  content: np.ndarray,
  name: str,
  place: int,
  digests: Mapping[str, Sequence[str]],
) -> None:
  axes = np.array(content.shape, ">i4").tobytes()
  header = bytes([0, 0, 8, content.ndim]) + axes
  digest = hashlib.sha256(header + content.tobytes()).hexdigest()
  if name not in digests or digest == digests[name][place]:
    return
  for other, known in digests.items():
    if digest in known:
      official = NAMES[known.index(digest)].removesuffix(".gz")
      raise ValueError(
        f"{path} holds {other}, not {name}: it is {official} of {other}; keep each "
        "data set in a folder of its name"
        if other != name
        else f"{path} is {official}; restore the official file names"
      )
  raise ValueError(
    f"{path} is not the official file of {name}: SHA-256 {digest[:8]}... of its "
    f"content, decompressed, is not {digests[name][place][:8]}...; another data set "
    f"has files of this name, or bytes were changed: put the file of {name} there"
  )
